"""An MCP server in nothing but the standard library: it starts in a moment, and owes nothing to the client's package.

It speaks the protocol of 2025 (`initialize`, sessions, `notifications/cancelled`) over standard input and output.
`tests/support/mcp_tools.py` is its sister with the package's own server.
"""

import asyncio
import json
import os
import sys
from typing import Any

Json = dict[str, Any]

TOOLS: dict[str, dict[str, str]] = {
    "echo": {"text": "string"},
    "huge": {"characters": "integer"},
    "fail": {},
    "die": {},
    "variables": {},
    "shout": {"characters": "integer"},
    "picture": {},
    "wait": {},
    "counts": {"started": "integer", "cancelled": "integer"},
    "wipe": {},
}


class Program:
    """One connection."""

    def __init__(self) -> None:
        self._calls: dict[Any, asyncio.Task[None]] = {}
        self._started = self._cancelled = 0
        self._changed = asyncio.Condition()

    async def serve(self) -> None:
        """Until the input ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self._take(json.loads(line))

    def _take(self, message: Json) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "notifications/cancelled":
            if call := self._calls.pop(params["requestId"], None):
                call.cancel()
        elif method == "initialize":
            answer(message, capabilities={"tools": {}}, protocolVersion=params["protocolVersion"],
                   serverInfo={"name": "program", "version": "1"})  # fmt: skip
        elif method == "tools/list":
            answer(message, tools=[listed(name) for name in TOOLS])
        elif method == "tools/call":
            self._calls[message["id"]] = asyncio.create_task(self._call(message, **params))
        elif "id" in message:
            send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})

    async def _call(self, message: Json, name: str, arguments: Json, **_: Any) -> None:
        blocks: list[Json]
        if missing := sorted(TOOLS[name].keys() - arguments.keys()):
            answer(message, content=[text(f"missing: {missing}")], isError=True)
            return
        if name == "fail":
            answer(message, content=[text("it did not work")], isError=True)
            return
        if name == "picture":
            blocks = [text("seen"), {"type": "image", "data": "AAAA", "mimeType": "image/png"}]
        else:
            blocks = [text(await self._do(name, arguments))]
        answer(message, content=blocks)

    async def _do(self, name: str, arguments: Json) -> str:
        if name == "echo":
            return str(arguments["text"])
        if name == "huge":
            return "x" * int(arguments["characters"])
        if name == "die":
            os._exit(3)
        if name == "variables":
            return " ".join(sorted(os.environ))
        if name == "shout":
            sys.stderr.write("!" * int(arguments["characters"]))
            sys.stderr.flush()
            return "shouted"
        if name == "wait":
            await self._wait()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._started >= arguments["started"] and self._cancelled >= arguments["cancelled"]
            )
        return f"{self._started} {self._cancelled}"

    async def _wait(self) -> None:
        await self._note(started=1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self._note(cancelled=1)
            raise

    async def _note(self, started: int = 0, cancelled: int = 0) -> None:
        async with self._changed:
            self._started += started
            self._cancelled += cancelled
            self._changed.notify_all()


def listed(name: str) -> Json:
    """A tool as a server lists it."""
    schema: Json = {"type": "object"}
    # Without parameters it does not say `properties`, as a server may; not every provider takes that.
    if parameters := TOOLS[name]:
        schema["properties"] = {key: {"type": kind} for key, kind in parameters.items()}
        schema["required"] = sorted(parameters)
    return {"name": name, "description": f"Does {name}.", "inputSchema": schema}


def text(value: str) -> Json:
    """A block of text."""
    return {"type": "text", "text": value}


def answer(message: Json, **result: Any) -> None:
    """Answer a request."""
    send({"id": message["id"], "result": result})


def send(message: Json) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Program().serve())
