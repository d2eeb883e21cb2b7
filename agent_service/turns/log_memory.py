"""The numbered event log of one turn, in process."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from agent_service.errors import ModelFailedError
from agent_service.types import (
    AgentName,
    AgentSelected,
    Completed,
    Event,
    Sources,
    Token,
    Trace,
    TurnEvent,
    TurnId,
    TurnRequest,
    TurnStatus,
    Usage,
)

MAX_LOG_BYTES = 256 * 1024
"""Bound of a turn's log: text of tokens and sources, the parts that a model or a document decides the size of."""


class TurnLog:
    """Events numbered from 1 without gaps, followed by any number of readers from any number on.

    One task writes; readers wait for a wake-up and then take everything that is new, so a slow reader costs nothing
    but its place.
    """

    def __init__(self, turn_id: TurnId, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.on_change: Callable[[], None] | None = None
        """Called at every event and at the end, for who mirrors the log."""
        self._turn_id = turn_id
        self._max_bytes = max_bytes
        self._bytes = 0
        self._events: list[TurnEvent] = []
        self._closed = False
        self._failure: Exception | None = None
        self._known: tuple[Usage, Trace | None] = (Usage(), None)
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether no event will follow."""
        return self._closed

    @property
    def failure(self) -> Exception | None:
        """What the turn failed with, once the log is closed."""
        return self._failure

    @property
    def last_sequence(self) -> int:
        """The number of the newest event; 0 before the first."""
        return len(self._events)

    @property
    def status(self) -> TurnStatus:
        """How the turn stands; one that ended without saying how has failed."""
        if not self._closed:
            return TurnStatus.RUNNING
        end = self._end
        return end.status if end is not None and self._failure is None else TurnStatus.FAILED

    @property
    def usage(self) -> Usage:
        """Tokens that the turn used, as far as is known."""
        end = self._end
        return end.usage if end is not None else self._known[0]

    @property
    def _end(self) -> Completed | None:
        last = self._events[-1].event if self._events else None
        return last if isinstance(last, Completed) else None

    def emit(self, event: Event) -> None:
        """Append an event. What comes after the end is dropped: nobody would get it.

        Raises:
            ModelFailedError: the turn has written more than its log holds.
        """
        if self._closed:
            return
        size = _size(event)
        if self._bytes + size > self._max_bytes:
            raise ModelFailedError("the answer is longer than a turn may be")
        self._bytes += size
        self._events.append(TurnEvent(self._turn_id, len(self._events) + 1, event))
        self._wake()

    def cut(self, usage: Usage, trace: Trace | None) -> None:
        """See `EventSink.cut`."""
        self._known = (usage, trace)

    def end_early(self, status: TurnStatus, request: TurnRequest) -> None:
        """Append the end of a turn that was cut off, unless it has one.

        Who answered is what the log says, else who held the turn, else who was asked; the conversation keeps what it
        had before.
        """
        if self._end is not None:
            return
        usage, trace = self._known
        selected = [each.event for each in self._events if isinstance(each.event, AgentSelected)]
        if selected:
            agent, strategy = selected[-1].agent, selected[-1].strategy
        elif trace is not None:
            agent, strategy = trace.agent, trace.strategy
        else:
            agent, strategy = request.agent or AgentName(""), None
        self.emit(Completed(status, None, agent, strategy, usage=usage, trace=trace, state=request.state))

    def close(self, failure: Exception | None = None) -> None:
        """End the log: every reader gets what is left, then the failure, if any. Only the first time counts."""
        if self._closed:
            return
        self._closed = True
        self._failure = failure
        self._wake()

    def since(self, sequence: int, limit: int) -> Sequence[TurnEvent]:
        """At most `limit` events with a larger number, oldest first."""
        return self._events[sequence : sequence + limit]

    async def follow(self, after_sequence: int = 0) -> AsyncGenerator[TurnEvent]:
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
        if self.on_change is not None:
            self.on_change()


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
