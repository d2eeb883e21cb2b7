"""The numbered log of one turn: what is written once is read by everyone, from any number on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest

from agent_service.errors import ModelFailedError
from agent_service.turns.log_memory import MAX_LOG_BYTES, TurnLog
from agent_service.types import (
    AgentName,
    AgentSelected,
    Completed,
    Event,
    Outcome,
    RequestId,
    Sources,
    Started,
    State,
    Strategy,
    Token,
    TurnEvent,
    TurnId,
    TurnStatus,
    Usage,
)
from tests.support.answerers import ANSWERED, BILLING, CUT_TRACE, CUT_USAGE, REQUEST
from tests.support.briefings import source

TURN = TurnId("turn-1")
# A guard against a hang; every wait ends at its event, far earlier.
GUARD_S = 5.0

T = TypeVar("T")


@pytest.fixture
async def log() -> TurnLog:
    return TurnLog(TURN)


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, GUARD_S)


async def read(events: AsyncIterator[TurnEvent]) -> list[TurnEvent]:
    return [event async for event in events]


async def collect(events: AsyncIterator[TurnEvent], into: list[TurnEvent]) -> None:
    """Read on until the end or the failure; what was seen before it stays in the list."""
    async for event in events:
        into.append(event)  # noqa: PERF401 - a comprehension loses what came before a failure


async def sequences(log: TurnLog, after: int = 0) -> list[int]:
    return [event.sequence for event in await within(read(log.follow(after)))]


def contents(events: list[TurnEvent]) -> list[str]:
    return [event.event.content for event in events if isinstance(event.event, Token)]


async def test_events_are_numbered_from_one_without_gaps_and_carry_the_turn(log: TurnLog) -> None:
    written: list[Event] = [
        Started(RequestId("r1")),
        AgentSelected(BILLING, Strategy.RAG),
        Sources((source(),)),
        Token("It"),
        Completed(TurnStatus.COMPLETED, Outcome.ANSWERED, BILLING, Strategy.RAG),
    ]
    for event in written:
        log.emit(event)
    log.close()

    read_back = await within(read(log.follow()))

    assert read_back == [TurnEvent(TURN, number, event) for number, event in enumerate(written, start=1)]


@pytest.mark.parametrize(("after", "expected"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (99, [])])
async def test_a_follower_gets_what_comes_after_its_number(log: TurnLog, after: int, expected: list[int]) -> None:
    for text in "abc":
        log.emit(Token(text))
    log.close()

    assert await sequences(log, after) == expected


async def test_several_followers_each_get_every_event_at_their_own_pace(log: TurnLog) -> None:
    log.emit(Token("a"))
    eager = [asyncio.create_task(read(log.follow())) for _ in range(3)]
    slow = log.follow()
    first = await anext(slow)
    await asyncio.sleep(0)

    log.emit(Token("b"))
    log.emit(Token("c"))
    log.close()

    assert [contents(await within(task)) for task in eager] == [["a", "b", "c"]] * 3
    assert contents([first, *await within(read(slow))]) == ["a", "b", "c"]


async def test_a_follower_that_waits_gets_an_event_when_it_is_written(log: TurnLog) -> None:
    following = log.follow()
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    assert not waiting.done()

    log.emit(Token("a"))

    assert (await within(waiting)).sequence == 1


async def test_followers_from_different_numbers_share_one_log(log: TurnLog) -> None:
    from_start = asyncio.create_task(sequences(log))
    from_second = asyncio.create_task(sequences(log, after=2))
    await asyncio.sleep(0)

    for text in "abcd":
        log.emit(Token(text))
        await asyncio.sleep(0)
    log.close()

    assert await from_start == [1, 2, 3, 4]
    assert await from_second == [3, 4]


async def test_a_late_follower_gets_the_whole_log_of_an_ended_turn(log: TurnLog) -> None:
    log.emit(Token("a"))
    log.emit(ANSWERED)
    log.close()

    assert await sequences(log) == [1, 2]
    assert await sequences(log) == [1, 2]


async def test_a_failure_comes_after_the_last_event(log: TurnLog) -> None:
    log.emit(Token("a"))
    log.emit(Token("b"))
    log.close(ModelFailedError("it failed"))
    seen: list[TurnEvent] = []

    with pytest.raises(ModelFailedError, match="it failed"):
        await within(collect(log.follow(), seen))

    assert [event.sequence for event in seen] == [1, 2]


async def test_a_failure_reaches_every_follower_waiting_or_late(log: TurnLog) -> None:
    waiting = [asyncio.create_task(read(log.follow())) for _ in range(2)]
    await asyncio.sleep(0)
    log.close(ModelFailedError("it failed"))

    results = await within(asyncio.gather(*waiting, read(log.follow(7)), return_exceptions=True))

    assert [type(result) for result in results] == [ModelFailedError] * 3


async def test_the_log_says_whether_it_is_closed(log: TurnLog) -> None:
    assert not log.closed
    log.close()
    assert log.closed


async def test_a_follower_that_leaves_disturbs_neither_the_writer_nor_the_others(log: TurnLog) -> None:
    staying = asyncio.create_task(read(log.follow()))
    leaving = asyncio.create_task(read(log.follow()))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(leaving)
    # `follow` is declared as an iterator; an async generator can be closed.
    async with aclosing(cast("Any", log.follow())) as visiting:
        log.emit(Token("a"))
        await anext(visiting)

    log.emit(Token("b"))
    log.close()

    assert contents(await within(staying)) == ["a", "b"]


async def test_text_beyond_the_bound_fails_the_turn_and_is_not_logged() -> None:
    log = TurnLog(TURN, max_bytes=4)
    log.emit(Token("four"))

    with pytest.raises(ModelFailedError):
        log.emit(Token("5"))
    log.close()

    assert contents(await within(read(log.follow()))) == ["four"]


async def test_a_log_that_refused_a_text_still_takes_the_end_of_its_turn() -> None:
    log = TurnLog(TURN, max_bytes=4)
    log.emit(Token("four"))
    with pytest.raises(ModelFailedError):
        log.emit(Token("5"))

    log.emit(ANSWERED)
    log.close()

    assert [event.event async for event in log.follow()] == [Token("four"), ANSWERED]


async def test_the_bound_counts_utf_8_bytes_and_not_characters() -> None:
    log = TurnLog(TURN, max_bytes=5)
    log.emit(Token("éé"))

    with pytest.raises(ModelFailedError):
        log.emit(Token("é"))


async def test_sources_count_towards_the_bound() -> None:
    log = TurnLog(TURN, max_bytes=100)

    with pytest.raises(ModelFailedError):
        log.emit(Sources((source(1, "x" * 60), source(2, "y" * 60))))


async def test_a_turn_that_wrote_up_to_the_bound_can_still_complete() -> None:
    log = TurnLog(TURN, max_bytes=4)
    log.emit(Token("four"))
    log.emit(ANSWERED)
    log.close()

    assert await sequences(log) == [1, 2]


async def test_the_shipped_bound_is_256_kibibytes(log: TurnLog) -> None:
    assert MAX_LOG_BYTES == 256 * 1024
    log.emit(Token("x" * MAX_LOG_BYTES))

    with pytest.raises(ModelFailedError):
        log.emit(Token("x"))


async def test_the_error_of_an_overlong_turn_does_not_repeat_its_text() -> None:
    log = TurnLog(TURN, max_bytes=4)

    with pytest.raises(ModelFailedError) as caught:
        log.emit(Token("confidential"))

    assert "confidential" not in str(caught.value)


# --- how a turn ends early ---

ASKED = replace(REQUEST, agent=BILLING, state=State(BILLING))


async def the_end(log: TurnLog) -> Completed:
    log.close()
    last = (await within(read(log.follow())))[-1].event
    assert isinstance(last, Completed)
    return last


@pytest.mark.parametrize("status", [TurnStatus.STOPPED, TurnStatus.INTERRUPTED])
async def test_a_turn_that_ends_early_says_how_and_what_it_used(log: TurnLog, status: TurnStatus) -> None:
    log.emit(Token("It "))
    log.cut(CUT_USAGE, CUT_TRACE)
    log.end_early(status, ASKED)

    end = await the_end(log)

    assert (end.status, end.outcome, end.usage, end.trace) == (status, None, CUT_USAGE, CUT_TRACE)
    assert (end.agent, end.strategy) == (CUT_TRACE.agent, CUT_TRACE.strategy)
    assert end.state == ASKED.state
    assert (log.status, log.usage, log.last_sequence) == (status, CUT_USAGE, 2)


async def test_who_was_announced_counts_before_who_held_the_turn(log: TurnLog) -> None:
    log.emit(AgentSelected(AgentName("policy"), Strategy.CAG))
    log.cut(CUT_USAGE, CUT_TRACE)
    log.end_early(TurnStatus.STOPPED, ASKED)

    end = await the_end(log)

    assert (end.agent, end.strategy) == ("policy", Strategy.CAG)


async def test_a_turn_of_which_nothing_is_known_ends_early_without_usage(log: TurnLog) -> None:
    log.end_early(TurnStatus.STOPPED, ASKED)

    end = await the_end(log)

    assert (end.agent, end.usage, end.trace) == (BILLING, Usage(), None)


async def test_what_is_written_after_the_end_is_dropped(log: TurnLog) -> None:
    log.emit(ANSWERED)
    log.close()
    log.emit(Token("late"))
    log.close(ModelFailedError("late"))

    assert [event.event for event in await within(read(log.follow()))] == [ANSWERED]
    assert (log.failure, log.status) == (None, TurnStatus.COMPLETED)


async def test_the_status_of_a_log_follows_the_turn(log: TurnLog) -> None:
    assert (log.status, log.last_sequence, log.usage) == (TurnStatus.RUNNING, 0, Usage())
    log.emit(ANSWERED)
    log.close(ModelFailedError("after all"))
    assert log.status is TurnStatus.FAILED


async def test_a_log_that_ends_without_saying_how_has_failed(log: TurnLog) -> None:
    log.emit(Token("It "))
    log.close()

    assert log.status is TurnStatus.FAILED


async def test_who_mirrors_a_log_is_told_of_every_change(log: TurnLog) -> None:
    told: list[int] = []
    log.on_change = lambda: told.append(log.last_sequence)

    log.emit(Token("a"))
    log.emit(Token("b"))
    log.close()

    assert told == [1, 2, 2]
    assert [event.sequence for event in log.since(1, 10)] == [2]
    assert [event.sequence for event in log.since(0, 1)] == [1]
