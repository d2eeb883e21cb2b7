"""Whatever the order of events and followers: every follower of either replica sees the same log, without gaps."""

import asyncio
import uuid
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_service.ports import EventSink
from agent_service.types import Event, RequestId, Token, TurnRequest
from tests.integration.agent.replicas import Reader, Replica, replicas
from tests.support.answerers import ANSWERED, REQUEST
from tests.support.redis_server import RedisServer


@dataclass
class DictatedAnswerer:
    """Emits what it is told, when it is told."""

    told: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        while (event := await self.told.get()) is not None:
            events.emit(event)


@dataclass(frozen=True)
class Emit:
    """So many tokens at once."""

    number: int


@dataclass(frozen=True)
class Follow:
    """A follower, through one of two replicas, from a part of what was written so far."""

    replica: int
    part: float
    observer: bool


@dataclass(frozen=True)
class Pause:
    """Time for the mirror and the poller, or none."""

    ticks: int


STEPS = st.lists(
    st.one_of(
        st.builds(Emit, st.integers(1, 300)),
        st.builds(Follow, st.integers(0, 1), st.floats(0, 1), st.booleans()),
        st.builds(Pause, st.integers(0, 4)),
    ),
    max_size=12,
)


@pytest.mark.needs("redis")
@given(steps=STEPS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_every_follower_sees_the_same_log_without_gaps(redis: RedisServer, steps: list[object]) -> None:
    dictated = DictatedAnswerer()
    request = replace(REQUEST, request_id=RequestId(str(uuid.uuid4())))
    written = 1
    async with replicas(redis.url, Replica(redis.url, dictated), Replica(redis.url)) as pair:
        first = Reader(pair[0].chat(request))
        await first.has(1)
        turn_id = first.seen[0].turn_id
        readers: list[tuple[int, Reader]] = [(0, first)]
        for step in steps:
            match step:
                case Emit(number):
                    for _ in range(number):
                        dictated.told.put_nowait(Token(f"{written} "))
                        written += 1
                    await first.has(written)
                case Follow(replica, part, observer):
                    after = int(part * written)
                    events = pair[replica].watch(turn_id, after, observer=observer)  # type: ignore[arg-type]
                    readers.append((after, Reader(events)))
                case Pause(ticks):
                    await asyncio.sleep(ticks * 0.02)
        dictated.told.put_nowait(ANSWERED)
        dictated.told.put_nowait(None)

        whole = await first.ends()
        assert [event.sequence for event in whole] == list(range(1, written + 2))
        for after, reader in readers:
            assert await reader.ends() == whole[after:]
        late = Reader(pair[1].watch(turn_id))  # type: ignore[arg-type]
        assert await late.ends() == whole
