"""The tests' MCP server over HTTP, in the test's own process: it keeps every request, can be killed, and comes back."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.mcp_tools import Seen, make_server


@dataclass
class HttpMcpServer:
    """A server on a port of this machine that stays the same when it is stopped and started again."""

    legacy: bool = False
    seen: Seen = field(default_factory=Seen)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        app = self._recording(make_server(self.seen, legacy=self.legacy).streamable_http_app())
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=0))
        self._serving = asyncio.create_task(self._server._serve([listener]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """As if killed: connections are cut."""
        self._server.should_exit = self._server.force_exit = True
        await self._serving

    def _recording(self, app: ASGIApp) -> ASGIApp:
        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})

            async def receiving() -> Message:
                message = await receive()
                self.bodies.append(message.get("body", b""))
                return message

            await app(scope, receiving, send)

        return recorded


@contextlib.asynccontextmanager
async def http_mcp_server(*, legacy: bool = False) -> AsyncIterator[HttpMcpServer]:
    """A server that runs, and is stopped in the end unless that was done."""
    server = HttpMcpServer(legacy=legacy)
    await server.start()
    try:
        yield server
    finally:
        if not server._serving.done():
            await server.stop()
