"""Reading the edge's streams over a real socket."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.unit.edge.sse_parser import Event, parse


class Stream:
    """An open event stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.text = ""
        self._chunks = response.aiter_text()

    async def until(self, wanted: str) -> str:
        """Read until `wanted` has arrived, or the stream has ended; all that was read so far."""
        while wanted not in self.text:
            try:
                self.text += await anext(self._chunks)
            except StopAsyncIteration:
                break
        return self.text

    async def rest(self) -> list[Event]:
        """Read to the end; all events."""
        async for chunk in self._chunks:
            self.text += chunk
        return parse(self.text)


@asynccontextmanager
async def streaming(
    http: httpx.AsyncClient, path: str = "/chat", message: str = "hello", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Stream]:
    """Post a message and read its stream."""
    async with http.stream("POST", path, json={"message": message}, headers=headers) as response:
        yield Stream(response)


async def events_of(http: httpx.AsyncClient, path: str = "/chat", **body: Any) -> list[Event]:
    """All events of one answer."""
    response = await http.post(path, json={"message": "hello"} | body, headers={"Accept": "text/event-stream"})
    assert response.status_code == 200, response.text
    return parse(response.text)
