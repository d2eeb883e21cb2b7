"""The numbered event log of one turn, in process."""

import asyncio
from collections.abc import AsyncIterator

from agent_service.errors import ModelFailedError
from agent_service.types import (
    AgentName,
    AgentSelected,
    Completed,
    Event,
    Sources,
    Token,
    TurnEvent,
    TurnId,
    TurnRequest,
    TurnStatus,
)

MAX_LOG_BYTES = 256 * 1024
"""Bound of a turn's log: text of tokens and sources, the parts that a model or a document decides the size of."""


class TurnLog:
    """Events numbered from 1 without gaps, followed by any number of readers from any number on.

    One task writes; readers wait for a wake-up and then take everything that is new, so a slow reader costs nothing
    but its place.
    """

    def __init__(self, turn_id: TurnId, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._turn_id = turn_id
        self._max_bytes = max_bytes
        self._bytes = 0
        self._events: list[TurnEvent] = []
        self._closed = False
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether no event will follow."""
        return self._closed

    def emit(self, event: Event) -> None:
        """Append an event.

        Raises:
            ModelFailedError: the turn has written more than its log holds.
        """
        size = _size(event)
        if self._bytes + size > self._max_bytes:
            raise ModelFailedError("the answer is longer than a turn may be")
        self._bytes += size
        self._events.append(TurnEvent(self._turn_id, len(self._events) + 1, event))
        self._wake()

    def interrupt(self, request: TurnRequest) -> None:
        """Append the end of a turn that was cut off, unless it has one.

        Who answered is what the log says, else who was asked; the conversation keeps what it had before.
        """
        if self._events and isinstance(self._events[-1].event, Completed):
            return
        selected = [each.event for each in self._events if isinstance(each.event, AgentSelected)]
        last = selected[-1] if selected else AgentSelected(request.agent or AgentName(""), None)
        self.emit(Completed(TurnStatus.INTERRUPTED, None, last.agent, last.strategy, state=request.state))

    def close(self, failure: Exception | None = None) -> None:
        """End the log: every reader gets what is left, then the failure, if any."""
        self._closed = True
        self._failure = failure
        self._wake()

    async def follow(self, after_sequence: int = 0) -> AsyncIterator[TurnEvent]:
        """Events with a larger number, as they come; ends with the log.

        Raises:
            Exception: what the turn failed with, after its last event.
        """
        position = after_sequence
        while True:
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self._closed:
                if self._failure is not None:
                    raise self._failure.with_traceback(None)
                return
            await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _size(event: Event) -> int:
    match event:
        case Token(content):
            return len(content.encode())
        case Sources(sources):
            # A whole document (it has the document's own id) is sent as its beginning.
            return sum(
                len((p.text[:500] if str(p.id) == str(p.document_id) else p.text).encode())
                for p in (source.passage for source in sources)
            )
        case _:
            return 0
