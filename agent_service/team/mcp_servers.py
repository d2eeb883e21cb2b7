"""MCP servers: connected in the background, kept, missed, and connected again. Without one, its tools are not offered.

`mcp.Client` is used, not the agents SDK's `MCPServerStdio` and `MCPServerStreamableHttp` around it: those let one
request at a time through to an HTTP server, pass a program's standard error through, and do not notice when a
connection ends. See ADR 0012.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import Client, MCPError, Tool
from mcp.types import CONNECTION_CLOSED, CallToolResult

from agent_service.ports import Vitals
from agent_service.team.mcp_transports import ErrorTail, Streams, over_http, over_stdio, values_of
from agent_service.team.tool_arguments import an_object
from agent_service.team.tool_call import ToolRefusedError, ToolText
from agent_service.team.tool_spec import McpServerSpec

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before the first try to connect again, the second, and so on; the last holds for all that follow."""

STEADY_S = 30.0
"""A connection that held this long begins anew with the first pause when it breaks."""

CHECK_S = 30.0
"""How often a server is asked whether it is there, in case that nobody calls its tools."""

CLOSE_S = 3.0
"""How long a session may take to end by itself."""

MOST_PAGES = 20
MOST_DESCRIPTION_CHARACTERS = 2_000

AWAY = "The tool is not available now."


@dataclass(frozen=True, slots=True)
class _Session:
    """A connection that stands, and what it offers of what is wanted."""

    client: Client
    tools: Mapping[str, Tool]


class McpKeeper:
    """Keeps the connection to one server. One task enters and leaves it, as anyio's scopes want."""

    def __init__(
        self,
        spec: McpServerSpec,
        wanted: Collection[str],
        changed: Callable[[], None],
        vitals: Vitals | None = None,
    ) -> None:
        """`wanted`: the tools that may be offered and called; what else the server has is as if it were not there.

        Raises:
            StartupError: a variable that the roster names is missing.
        """
        self._spec = spec
        self._wanted = frozenset(wanted)
        self._changed = changed
        self._vitals = vitals
        self._values = values_of(spec)
        self._session: _Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None
        self._wake = asyncio.Event()
        self._is_closing = False
        self._failures = 0

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The wanted tools that can be called now, as the server describes them."""
        return self._session.tools if self._session else {}

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._scope = anyio.CancelScope()
        self._task = asyncio.create_task(self._keep(self._scope), name=f"mcp server {self._spec.name}")

    async def close(self) -> None:
        """End the session and stop the program. Bounded: mcp gives a program 4 s, then kills it."""
        self._is_closing = True
        self._wake.set()
        if self._task is None or self._scope is None:
            return
        if self._session is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_S)
        self._scope.cancel()
        # Not awaited: who closes may be cancelled, and the program would be left running.
        await asyncio.wait({self._task})

    async def call(self, name: str, arguments: str) -> ToolText:
        """Call a tool. Who is cancelled here has the server told: mcp sends `notifications/cancelled`, or hangs up.

        Raises:
            ToolRefusedError: the server is away or has no such tool, or the arguments are no JSON object.
            MCPError: the server refused the call.
        """
        session = self._session
        if session is None or name not in session.tools:
            raise ToolRefusedError(AWAY)
        values = an_object(arguments)
        try:
            return text_of(await session.client.call_tool(name, values))
        except MCPError as err:
            # Whatever it is, the connection may be of no more use: have it looked at.
            self._wake.set()
            if err.code == CONNECTION_CLOSED:
                raise ToolRefusedError(AWAY) from None
            raise

    async def _keep(self, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                began = time.monotonic()
                errors = ErrorTail()
                try:
                    await self._hold(errors)
                except Exception as err:  # noqa: BLE001 - whatever a server does, the service goes on without it
                    self._note(err, errors)
                if self._is_closing:
                    return
                self._leave()
                self._failures = 1 if time.monotonic() - began > STEADY_S else self._failures + 1
                await anyio.sleep(PAUSES_S[min(self._failures, len(PAUSES_S)) - 1])

    async def _hold(self, errors: ErrorTail) -> None:
        """Connect, and stay until the connection is of no more use."""
        with anyio.CancelScope() as limit:
            limit.deadline = anyio.current_time() + self._spec.connect_timeout_s
            async with Client(self._transport(errors), cache=None) as client:
                listed = await _listed(client)
                limit.deadline = math.inf
                errors.settled()
                self._arrive(client, listed)
                try:
                    await self._watch(client, limit)
                finally:
                    # Before the transport is wound up, which may take seconds.
                    self._leave()
        if limit.cancelled_caught:
            raise TimeoutError

    def _transport(self, errors: ErrorTail) -> AbstractAsyncContextManager[Streams]:
        if self._spec.url is not None:
            return over_http(self._spec, self._values)
        return over_stdio(self._spec, self._values, errors)

    async def _watch(self, client: Client, limit: anyio.CancelScope) -> None:
        """Ask now and then, and when a call has failed, whether the server is there; end when it is not."""
        while True:
            with anyio.move_on_after(CHECK_S):
                await self._wake.wait()
            self._wake.clear()
            if self._is_closing:
                return
            limit.deadline = anyio.current_time() + self._spec.connect_timeout_s
            await client.list_tools()
            limit.deadline = math.inf

    def _arrive(self, client: Client, listed: Mapping[str, Tool]) -> None:
        missing = sorted(self._wanted - listed.keys())
        if missing:
            log.warning("an MCP server lacks tools", extra={"mcp_server": self._spec.name, "missing": missing})
        self._session = _Session(client, {name: listed[name] for name in self._wanted & listed.keys()})
        tools = len(self._session.tools)
        log.info("an MCP server is connected", extra={"mcp_server": self._spec.name, "tools": tools})
        self._tell(ok=not missing)
        self._changed()

    def _leave(self) -> None:
        had, self._session = self._session, None
        if not self._is_closing:
            self._tell(ok=False)
        if had is not None:
            self._changed()

    def _tell(self, *, ok: bool) -> None:
        if self._vitals is not None:
            self._vitals.tell("tools", self._spec.name, ok=ok)

    def _note(self, err: Exception, errors: ErrorTail) -> None:
        """Once in a row of failures: a server may be away for days."""
        if self._failures == 0:
            kind = "+".join(sorted({type(each).__name__ for each in _causes(err)}))
            said = {"stderr": errors.text} if errors.text else {}
            log.warning("an MCP server is away", extra={"mcp_server": self._spec.name, "kind": kind, **said})


async def _listed(client: Client) -> dict[str, Tool]:
    tools: dict[str, Tool] = {}
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools.update((tool.name, tool) for tool in page.tools)
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _causes(err: BaseException) -> list[BaseException]:
    if isinstance(err, BaseExceptionGroup):
        return [cause for each in err.exceptions for cause in _causes(each)]
    return [err]


def schema_of(tool: Tool) -> dict[str, Any]:
    """A tool's parameters as providers take them: `properties` must be there."""
    return {"properties": {}, **tool.input_schema}


def description_of(tool: Tool) -> str:
    """What a server says of its tool: foreign text that stands in the prompt, so it is bounded."""
    return (tool.description or tool.title or tool.name)[:MOST_DESCRIPTION_CHARACTERS]


def text_of(result: CallToolResult) -> ToolText:
    """A result as text. What is no text is named and left out."""
    parts = [block.text if block.type == "text" else f"({block.type} left out)" for block in result.content]
    return ToolText("\n".join(parts), ok=not result.is_error)
