"""A model provider that sends one prepared HTTP answer, byte for byte, to every request."""

from collections.abc import Mapping
from typing import Self

from aiohttp import web


class RawProvider:
    """The server, an async context manager. For answers that `openai_server` is too well-behaved to give."""

    def __init__(self, body: str | bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.requests = 0
        self.targets: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.base_url = ""
        self._body = body.encode() if isinstance(body, str) else body
        self._status = status
        self._sent_headers = {"Content-Type": "application/json", **(headers or {})}
        app = web.Application()
        app.router.add_post("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, http: web.Request) -> web.Response:
        self.requests += 1
        self.targets.append(http.path_qs)
        self.headers.append(http.headers)
        await http.read()
        return web.Response(body=self._body, status=self._status, headers=self._sent_headers)


def event_stream(*frames: str) -> str:
    """Server-sent events from the JSON of their data."""
    return "".join(f"data: {frame}\n\n" for frame in frames)
