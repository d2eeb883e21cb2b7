"""Answerers for tests of the turn host: each cheats in the way its name says, and none asks a model."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from agent_service.ports import EventSink
from agent_service.types import (
    AgentName,
    Caller,
    Completed,
    EncodedEvent,
    Event,
    Outcome,
    RequestId,
    Strategy,
    Token,
    Trace,
    TurnEvent,
    TurnRequest,
    TurnStatus,
    Usage,
)


def here(events: AsyncGenerator[TurnEvent | EncodedEvent]) -> AsyncGenerator[TurnEvent]:
    """A turn's events where one replica runs and follows it: none of them comes from elsewhere, encoded."""
    return cast("AsyncGenerator[TurnEvent]", events)


CALLER = Caller("ada", "acme")
REQUEST = TurnRequest(RequestId("r1"), "What does it cost?", CALLER)
BILLING = AgentName("billing")
ANSWERED = Completed(TurnStatus.COMPLETED, Outcome.ANSWERED, BILLING, None)


class ScriptedAnswerer:
    """Emits the same events in every turn and ends, with `failure` if there is one."""

    def __init__(self, *events: Event, failure: BaseException | None = None) -> None:
        self.requests: list[TurnRequest] = []
        self.logs: list[weakref.ref[EventSink]] = []
        self._events = events
        self._failure = failure

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        self.requests.append(request)
        self.logs.append(weakref.ref(events))
        for event in self._events:
            events.emit(event)
        if self._failure is not None:
            raise self._failure


class HeldAnswerer:
    """Emits the first events, then waits until it is released or cancelled; released, it emits the last ones."""

    def __init__(self, first: Sequence[Event] = (Token("It "),), last: Sequence[Event] = (ANSWERED,)) -> None:
        self.requests: list[TurnRequest] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._first = first
        self._last = last

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        self.requests.append(request)
        for event in self._first:
            events.emit(event)
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        for event in self._last:
            events.emit(event)


CUT_USAGE = Usage(requests=1, input_tokens=20, output_tokens=2)
CUT_TRACE = Trace(BILLING, Strategy.HYBRID, reason="is the entry of the team")


class CountingAnswerer(HeldAnswerer):
    """Held; when it is cut off it leaves behind what it used, as the team does."""

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        try:
            await super().answer(request, events)
        except BaseException:
            events.cut(CUT_USAGE, CUT_TRACE)
            raise


class StubbornAnswerer:
    """Takes its time over its end: it ignores the first cancellation until it is released."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.release.wait()
