"""Replicas of the service as far as turns go: a host each, over one Redis, in one process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from answerdesk.v1 import agent_service_pb2 as pb

from agent_service.ports import Answerer
from agent_service.rpc.convert_watch import chatted_to_proto
from agent_service.rpc.turn_codec import ProtoTurnCodec
from agent_service.turns.host import TurnHost
from agent_service.turns.identity import identified
from agent_service.turns.log_memory import TurnLog
from agent_service.turns.log_redis import RedisTurns
from agent_service.turns.log_redis_link import RedisLink
from agent_service.turns.log_redis_scripts import Call
from agent_service.types import EncodedEvent, StoppedTurn, TurnEvent, TurnId, TurnRequest
from tests.support.answerers import CALLER, REQUEST, HeldAnswerer

GUARD_S = 15.0
"""A guard against a hang; every wait ends at its event, far earlier."""

T = TypeVar("T")
Events = AsyncGenerator[TurnEvent | EncodedEvent]


async def within(awaitable: Awaitable[T], seconds: float = GUARD_S) -> T:
    """Wait for something that should come."""
    return await asyncio.wait_for(awaitable, seconds)


async def until(holds: Callable[[], object], seconds: float = GUARD_S) -> None:
    """Poll for something that nobody tells."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.005)


async def until_async(holds: Callable[[], Awaitable[bool]], seconds: float = GUARD_S) -> None:
    """Ask for something that nobody tells."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.02)


class PausableLink(RedisLink):
    """A link of a process that can be held still, as SIGSTOP does, or be cut off from Redis."""

    def __init__(self, url: str, *, leave_alone_s: float = 0.2) -> None:
        super().__init__(url, timeout_s=2.0, leave_alone_s=leave_alone_s)
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.asked = 0

    async def ask(self, *calls: Call) -> list[object]:
        await self.goes_on.wait()
        self.asked += 1
        return await super().ask(*calls)


@dataclass
class Replica:
    """One replica. Its answerer is held until it is released, unless another is given."""

    url: str
    answerer: Answerer = field(default_factory=HeldAnswerer)
    max_turns: int = 10
    keep_s: float = 60.0
    has_own_store: bool = False
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        self.link = PausableLink(self.url)
        self.shared = RedisTurns(self.link, ProtoTurnCodec(), keep_s=self.keep_s, has_own_store=self.has_own_store)
        self.host = TurnHost(
            self.answerer,
            max_turns=self.max_turns,
            keep_s=self.keep_s,
            turn_timeout_s=self.timeout_s,
            shared=self.shared,
        )

    @property
    def held(self) -> HeldAnswerer:
        """Its answerer."""
        assert isinstance(self.answerer, HeldAnswerer)
        return self.answerer

    def chat(self, request: TurnRequest = REQUEST) -> Events:
        return self.host.chat(request, budget_s=None)

    def watch(self, turn_id: TurnId, after: int = 0, *, observer: bool = False) -> Events:
        return self.host.watch(CALLER, turn_id, after, observer=observer)

    async def stop(self, turn_id: TurnId) -> StoppedTurn:
        return await within(self.host.stop(CALLER, turn_id))

    def log_of(self, request: TurnRequest) -> TurnLog:
        """The log of a turn that runs here."""
        turn = self.host._turns.get(identified(request)[0])
        assert turn is not None
        return turn.log

    async def die(self) -> None:
        """Leave without a word, as kill -9 does: the turns' tasks never end, Redis hears nothing more."""
        self.link.goes_on.clear()
        await self.shared._end_tasks()

    async def close(self) -> None:
        self.link.goes_on.set()
        await self.host.drain(0)
        await self.host.close()


@asynccontextmanager
async def replicas(url: str, *several: Replica, number: int = 2) -> AsyncIterator[tuple[Replica, ...]]:
    """Replicas that are open; those given, else `number` with held answerers."""
    all_of_them = several or tuple(Replica(url) for _ in range(number))
    for each in all_of_them:
        await each.host.open()
    try:
        yield all_of_them
    finally:
        for each in all_of_them:
            await each.close()


class Reader:
    """Reads a follower on in a task; what it has seen stays readable."""

    def __init__(self, events: Events) -> None:
        self.seen: list[pb.ChatResponse] = []
        self.arrived = asyncio.Event()
        self._events = events
        self._task = asyncio.create_task(self._read())
        # Else a failure that no test asks for is told to the log of another one.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _read(self) -> None:
        async for event in self._events:
            self.seen.append(chatted_to_proto(event))
            self.arrived.set()

    @property
    def sequences(self) -> list[int]:
        return [event.sequence for event in self.seen]

    @property
    def text(self) -> str:
        return "".join(event.token.content for event in self.seen)

    async def has(self, number: int, seconds: float = GUARD_S) -> None:
        """Wait for so many events."""
        async with asyncio.timeout(seconds):
            while len(self.seen) < number:
                if self._task.done():
                    await self._task
                    raise AssertionError(f"ended after {len(self.seen)} events")
                self.arrived.clear()
                waiting = asyncio.ensure_future(self.arrived.wait())
                await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()

    async def ends(self, seconds: float = GUARD_S) -> list[pb.ChatResponse]:
        """Wait for the end, and raise what it ended with."""
        await within(asyncio.shield(self._task), seconds)
        return self.seen

    async def leave(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._events.aclose()
