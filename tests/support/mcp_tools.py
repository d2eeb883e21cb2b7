"""An MCP server of the package's own kind, aware of what becomes of its calls.

`python -m tests.support.mcp_tools` speaks over standard input and output, `tests/support/mcp_http.py` serves the same
over HTTP in the test's own process.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.types import METHOD_NOT_FOUND


@dataclass
class Seen:
    """What has become of the calls of `wait`, and which methods came. Who waits for a change waits for `changed`."""

    started: int = 0
    cancelled: int = 0
    methods: list[str] = field(default_factory=list)
    wiped: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def note(self, change: Callable[["Seen"], None]) -> None:
        """Change something, and wake who waits."""
        async with self.changed:
            change(self)
            self.changed.notify_all()

    async def until(self, true: Callable[["Seen"], bool]) -> None:
        """Wait until something is so."""
        async with self.changed:
            await self.changed.wait_for(lambda: true(self))


def _count_start(seen: Seen) -> None:
    seen.started += 1


def _count_cancel(seen: Seen) -> None:
    seen.cancelled += 1


def make_server(seen: Seen, *, legacy: bool = False) -> MCPServer:
    """A server that keeps what it sees in `seen`."""

    async def noting(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        seen.methods.append(ctx.method)
        if legacy and ctx.method == "server/discover":
            raise MCPError(code=METHOD_NOT_FOUND, message="Method not found")
        return await call_next(ctx)

    async def wait() -> str:
        """Wait until it is released or cancelled."""
        await seen.note(_count_start)
        try:
            await seen.released.wait()
        except asyncio.CancelledError:
            # Shielded: the scope that it is cancelled by stays cancelled.
            await asyncio.shield(asyncio.ensure_future(seen.note(_count_cancel)))
            raise
        return "released"

    async def counts(started: int, cancelled: int) -> str:
        """Answer when so many calls of `wait` have started and so many were cancelled."""
        await seen.until(lambda now: now.started >= started and now.cancelled >= cancelled)
        return f"{seen.started} {seen.cancelled}"

    async def wipe() -> str:
        """What nobody may call."""
        seen.wiped = True
        return "wiped"

    server = MCPServer("test", log_level="CRITICAL", middleware=[noting])
    for function in (echo, huge, fail, wait, counts, wipe):
        server.add_tool(function)
    return server


async def echo(text: str) -> str:
    """Give the text back."""
    return text


async def huge(characters: int) -> str:
    """A long text."""
    return "x" * characters


async def fail() -> str:
    """Fail with a secret in the text."""
    raise RuntimeError("the secret is 4711")


if __name__ == "__main__":
    make_server(Seen()).run("stdio")
