"""The ways to an MCP server: a program of this machine, or an address. What it is given is in the roster, all of it.

Nothing here knows of turns: what a server gets of a caller is the arguments that the model wrote.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx2
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage

from agent_service.errors import StartupError
from agent_service.team.tool_spec import McpServerSpec

READ_TIMEOUT_S = 310.0
"""Beyond every tool's own time limit, which is what ends a call."""

KEPT_ERROR_BYTES = 2_000

Streams = tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]


def values_of(spec: McpServerSpec) -> dict[str, str]:
    """What a server is given from the environment: headers by name, or its own variables.

    Raises:
        StartupError: a variable is missing, or cannot stand in a header.
    """
    variables = spec.headers or {name: name for name in spec.env}
    values: dict[str, str] = {}
    for name, variable in variables.items():
        value = os.environ.get(variable, "")
        if not value:
            raise StartupError(f"AGENT_ROSTER: MCP server {spec.name!r}: the variable {variable} is not set")
        if spec.headers and not (value.isascii() and value.isprintable()):
            raise StartupError(f"AGENT_ROSTER: MCP server {spec.name!r}: {variable} cannot be the value of a header")
        values[name] = value
    return values


class ErrorTail(asyncio.Protocol):
    """Reads a program's standard error to its end, and keeps the last of it until it is `settled`.

    What it says while it starts tells why it does not. What it says later may quote a call, and is dropped.
    """

    def __init__(self) -> None:
        self._kept = b""
        self._is_settled = False

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._is_settled:
            self._kept = (self._kept + data)[-KEPT_ERROR_BYTES:]

    def settled(self) -> None:
        """It has started."""
        self._is_settled = True
        self._kept = b""

    @property
    def text(self) -> str:
        """What was kept; of a broken encoding as much as can be read."""
        return self._kept.decode(errors="replace").strip()


@asynccontextmanager
async def over_stdio(spec: McpServerSpec, variables: Mapping[str, str], errors: ErrorTail) -> AsyncIterator[Streams]:
    """Start a server's program, and stop it again.

    It gets the few variables that any program needs (mcp's `get_default_environment`), and those that are named.
    """
    command, *arguments = (part.replace("{python}", sys.executable) for part in spec.command)
    parameters = StdioServerParameters(command=command, args=arguments, env=dict(variables))
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w", encoding="utf-8") as errlog:
        pipe = os.fdopen(read_end, "rb", buffering=0)
        reader, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: errors, pipe)
        try:
            async with stdio_client(parameters, errlog=errlog) as streams:
                yield streams
        finally:
            reader.close()


@asynccontextmanager
async def over_http(spec: McpServerSpec, headers: Mapping[str, str]) -> AsyncIterator[Streams]:
    """Speak to a server at an address. Redirects are followed within its origin only, so headers do not leave it."""
    # A request that waits too long for a connection would bring down the session of all: there is no such limit.
    timeout = httpx2.Timeout(spec.connect_timeout_s, read=READ_TIMEOUT_S, pool=None)
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=timeout, limits=httpx2.Limits()) as client,
        streamable_http_client(spec.url or "", http_client=client) as streams,
    ):
        yield streams
