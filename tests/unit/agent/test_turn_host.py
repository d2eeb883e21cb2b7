"""A turn outlives the calls that follow it: starting, attaching, leaving, overload, deadlines, drain."""

import asyncio
import gc
import math
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from agent_service.errors import (
    DeadlineError,
    DrainingError,
    InvalidRequestError,
    ModelFailedError,
    OverloadedError,
    RequestIdReusedError,
    RetryableError,
    UnknownTurnError,
)
from agent_service.ports import Answerer, EventSink
from agent_service.turns.host import TurnHost
from agent_service.turns.kept import KEPT_TURNS
from agent_service.types import (
    AgentName,
    AgentSelected,
    CachedPassage,
    Caller,
    Completed,
    DocumentId,
    Event,
    Message,
    OnDisconnect,
    PassageId,
    RequestId,
    Role,
    Started,
    State,
    StoppedTurn,
    Strategy,
    Token,
    TurnEvent,
    TurnId,
    TurnRequest,
    TurnStatus,
)
from tests.support.answerers import (
    ANSWERED,
    BILLING,
    CALLER,
    CUT_TRACE,
    CUT_USAGE,
    REQUEST,
    CountingAnswerer,
    HeldAnswerer,
    ScriptedAnswerer,
    StubbornAnswerer,
    here,
)

# A guard against a hang; every wait ends at its event, far earlier.
GUARD_S = 5.0
# A grace or limit that a test waits out.
SHORT_S = 0.1

Follower = AsyncGenerator[TurnEvent]
T = TypeVar("T")


def host_of(
    answerer: Answerer, *, max_turns: int = 10, keep_s: float = 60.0, turn_timeout_s: float = GUARD_S
) -> TurnHost:
    return TurnHost(answerer, max_turns=max_turns, keep_s=keep_s, turn_timeout_s=turn_timeout_s)


def follow(host: TurnHost, request: TurnRequest = REQUEST, *, budget_s: float | None = None) -> Follower:
    return here(host.chat(request, budget_s=budget_s))


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, GUARD_S)


async def read(follower: Follower) -> list[TurnEvent]:
    return [event async for event in follower]


async def events_of(follower: Follower) -> list[Event]:
    return [event.event for event in await within(read(follower))]


async def settled() -> None:
    """Let callbacks and tasks that are ready run; nothing here waits for time to pass."""
    for _ in range(10):
        await asyncio.sleep(0)


async def collect(follower: Follower, into: list[TurnEvent]) -> None:
    """Read on until the end or the failure; what was seen before it stays in the list."""
    async for event in follower:
        into.append(event)  # noqa: PERF401 - a comprehension loses what came before a failure


def as_detached(grace_s: float) -> TurnRequest:
    return replace(REQUEST, on_disconnect=OnDisconnect.DETACH, grace_s=grace_s)


def completed(events: list[Event]) -> Completed:
    (end,) = [event for event in events if isinstance(event, Completed)]
    assert events[-1] is end
    return end


# --- start and follow ---


async def test_a_turn_begins_with_started_and_the_answerers_events_follow_in_order() -> None:
    host = host_of(ScriptedAnswerer(Token("It "), Token("costs."), ANSWERED))

    events = await within(read(follow(host)))

    assert [event.event for event in events] == [Started(REQUEST.request_id), Token("It "), Token("costs."), ANSWERED]
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    assert len({event.turn_id for event in events}) == 1


async def test_started_comes_before_the_answerer_does_anything() -> None:
    answerer = HeldAnswerer(first=())
    async with aclosing(follow(host_of(answerer))) as events:
        assert isinstance((await within(anext(events))).event, Started)
        await within(answerer.started.wait())


async def test_a_request_without_an_id_gets_one_and_the_answerer_sees_it() -> None:
    answerer = ScriptedAnswerer(ANSWERED)

    events = await events_of(follow(host_of(answerer), replace(REQUEST, request_id=RequestId(""))))

    assert isinstance(events[0], Started)
    assert events[0].request_id
    assert answerer.requests[0].request_id == events[0].request_id


async def test_two_requests_without_an_id_are_two_turns() -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    host = host_of(answerer)
    nameless = replace(REQUEST, request_id=RequestId(""))

    first, second = await within(read(follow(host, nameless))), await within(read(follow(host, nameless)))

    assert first[0].turn_id != second[0].turn_id
    assert len(answerer.requests) == 2


async def test_the_answerer_gets_the_request_as_it_was_asked_with_its_deadline() -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    request = replace(REQUEST, history=(Message(Role.USER, "Hello"),), max_output_tokens=7)

    before = time.monotonic()
    await events_of(follow(host_of(answerer), request, budget_s=5.0))

    (asked,) = answerer.requests
    assert replace(asked, deadline=math.inf) == request
    assert before < asked.deadline <= time.monotonic() + 5.0


async def test_running_counts_the_turns_under_way() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    assert host.running == 0

    reading = asyncio.create_task(read(follow(host)))
    await within(answerer.started.wait())
    assert host.running == 1

    answerer.release.set()
    await within(reading)
    await settled()


# --- attach ---


async def test_the_same_request_attaches_to_the_running_turn_and_the_answerer_is_asked_once() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    first = asyncio.create_task(read(follow(host)))
    await within(answerer.started.wait())
    second = asyncio.create_task(read(follow(host)))
    await settled()

    answerer.release.set()

    assert await within(first) == await within(second)
    assert len(answerer.requests) == 1


async def test_the_same_request_replays_an_ended_turn_from_its_first_event() -> None:
    answerer = ScriptedAnswerer(Token("It"), ANSWERED)
    host = host_of(answerer)

    first = await within(read(follow(host)))

    assert await within(read(follow(host))) == first
    assert len(answerer.requests) == 1


async def test_a_failed_turn_replays_its_log_and_its_failure() -> None:
    answerer = ScriptedAnswerer(Token("It"), failure=ModelFailedError("no"))
    host = host_of(answerer)
    for _ in range(2):
        seen: list[TurnEvent] = []
        with pytest.raises(ModelFailedError):
            await within(collect(follow(host), seen))
        assert [event.sequence for event in seen] == [1, 2]
    assert len(answerer.requests) == 1


@pytest.mark.parametrize(
    "caller", [Caller("bob", "acme"), Caller("ada", "globex")], ids=["other subject", "other tenant"]
)
async def test_a_request_id_of_somebody_else_is_another_turn(caller: Caller) -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    host = host_of(answerer)

    mine = await within(read(follow(host)))
    theirs = await within(read(follow(host, replace(REQUEST, caller=caller, message="Something else"))))

    assert mine[0].turn_id != theirs[0].turn_id
    assert [request.caller for request in answerer.requests] == [REQUEST.caller, caller]


KEPT = CachedPassage(DocumentId("d1"), "v1", PassageId("p1"))


@pytest.mark.parametrize(
    "change",
    [
        {"message": "Something else"},
        {"history": (Message(Role.USER, "Hello"),)},
        {"agent": BILLING},
        {"state": State(BILLING, (KEPT,))},
        {"max_output_tokens": 5},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_request_id_with_another_content_is_refused_and_starts_nothing(change: dict[str, Any]) -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    host = host_of(answerer)
    await events_of(follow(host))

    with pytest.raises(RequestIdReusedError):
        follow(host, replace(REQUEST, **change))

    assert len(answerer.requests) == 1
    assert host.running == 0


async def test_attaching_may_ask_for_another_way_to_disconnect() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED))
    first = await within(read(follow(host)))

    assert await within(read(follow(host, as_detached(5.0)))) == first


# --- overload ---


async def test_beyond_the_allowed_number_of_turns_a_new_one_is_refused_at_once() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer, max_turns=1)
    async with aclosing(follow(host)) as events:
        await anext(events)
        with pytest.raises(OverloadedError) as caught:
            follow(host, replace(REQUEST, request_id=RequestId("r2")))

    assert caught.value.retry_after_s > 0


async def test_an_overloaded_host_still_lets_attach() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer, max_turns=1)
    first = asyncio.create_task(read(follow(host)))
    await within(answerer.started.wait())
    second = asyncio.create_task(read(follow(host)))
    await settled()
    answerer.release.set()

    assert await within(second) == await within(first)


async def test_an_ended_turn_makes_room_for_the_next() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED), max_turns=1)
    await events_of(follow(host))
    await settled()

    assert (await events_of(follow(host, replace(REQUEST, request_id=RequestId("r2")))))[-1] == ANSWERED


# --- drain ---


async def test_draining_an_idle_host_returns_at_once() -> None:
    await within(host_of(ScriptedAnswerer(ANSWERED)).drain(GUARD_S))


async def test_a_draining_host_takes_no_new_turn() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED))
    await host.drain(0)

    with pytest.raises(DrainingError) as caught:
        follow(host)

    assert isinstance(caught.value, RetryableError)
    assert caught.value.retry_after_s > 0


async def test_drain_waits_for_the_turns_under_way_and_they_complete() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    reading = asyncio.create_task(events_of(follow(host)))
    await within(answerer.started.wait())
    draining = asyncio.create_task(host.drain(GUARD_S))
    await settled()
    assert not draining.done()

    answerer.release.set()
    await within(draining)

    assert completed(await within(reading)).status is TurnStatus.COMPLETED
    assert host.running == 0


async def test_a_turn_can_still_be_attached_to_while_the_host_drains() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    first = asyncio.create_task(events_of(follow(host)))
    await within(answerer.started.wait())
    draining = asyncio.create_task(host.drain(GUARD_S))
    await settled()

    second = asyncio.create_task(events_of(follow(host)))
    await settled()
    answerer.release.set()

    assert await within(second) == await within(first)
    await within(draining)


async def test_drain_aborts_what_is_left_when_its_time_is_up() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    reading = asyncio.create_task(events_of(follow(host)))
    await within(answerer.started.wait())

    await within(host.drain(SHORT_S))

    assert answerer.cancelled.is_set()
    assert host.running == 0
    events = await within(reading)
    assert events[:2] == [Started(REQUEST.request_id), Token("It ")]
    assert completed(events).status is TurnStatus.INTERRUPTED


async def test_an_answerer_that_is_slow_to_end_is_waited_for_after_the_abort() -> None:
    answerer = StubbornAnswerer()
    host = host_of(answerer)
    reading = asyncio.create_task(events_of(follow(host)))
    await within(answerer.started.wait())
    draining = asyncio.create_task(host.drain(0))
    await settled()

    answerer.release.set()
    await within(draining)

    assert completed(await within(reading)).status is TurnStatus.INTERRUPTED


# --- the last follower leaves: CANCEL ---


async def test_the_last_follower_that_leaves_cancels_the_answerer_at_once() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    events = follow(host)
    await anext(events)
    await within(answerer.started.wait())

    await events.aclose()
    await settled()

    assert answerer.cancelled.is_set()
    assert host.running == 0


async def test_a_follower_whose_task_is_cancelled_has_left() -> None:
    answerer = HeldAnswerer()
    reading = asyncio.create_task(read(follow(host_of(answerer))))
    await within(answerer.started.wait())
    await settled()

    reading.cancel()

    await within(answerer.cancelled.wait())
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_follower_that_leaves_keeps_the_turn_for_the_others() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    leaving = follow(host)
    await anext(leaving)
    staying = asyncio.create_task(events_of(follow(host)))
    await within(answerer.started.wait())
    await settled()

    await leaving.aclose()
    await settled()
    assert not answerer.cancelled.is_set()
    answerer.release.set()

    assert completed(await within(staying)).status is TurnStatus.COMPLETED


async def test_a_follower_that_leaves_with_the_first_event_ends_the_turn() -> None:
    """It leaves before the turn's task ran at all."""
    host = host_of(HeldAnswerer(), max_turns=1)
    events = follow(host)
    await anext(events)

    await events.aclose()
    await settled()

    assert host.running == 0
    late = await events_of(follow(host))
    assert completed(late).status is TurnStatus.INTERRUPTED


async def test_an_interrupted_turn_keeps_what_was_written_and_ends_with_completed() -> None:
    answerer = HeldAnswerer(first=(Token("It "), Token("costs")))
    host = host_of(answerer)
    events = follow(host)
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()
    await settled()

    late = await within(read(follow(host)))

    assert [event.sequence for event in late] == [1, 2, 3, 4]
    assert [event.event for event in late][1:3] == [Token("It "), Token("costs")]
    end = completed([event.event for event in late])
    assert end.status is TurnStatus.INTERRUPTED
    assert end.outcome is None


async def test_an_interrupted_turn_keeps_the_state_it_was_asked_with() -> None:
    state = State(BILLING, (KEPT,))
    request = replace(REQUEST, state=state)
    answerer = HeldAnswerer()
    host = host_of(answerer)
    events = follow(host, request)
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()
    await settled()

    assert completed(await events_of(follow(host, request))).state == state


async def test_an_interrupted_turn_says_who_was_answering() -> None:
    answerer = HeldAnswerer(first=(AgentSelected(BILLING, Strategy.HYBRID), Token("It ")))
    host = host_of(answerer)
    events = follow(host)
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()
    await settled()

    end = completed(await events_of(follow(host)))

    assert (end.agent, end.strategy) == (BILLING, Strategy.HYBRID)


async def test_an_interrupted_turn_that_was_asked_of_an_agent_names_it() -> None:
    request = replace(REQUEST, agent=AgentName("policy"))
    answerer = HeldAnswerer()
    host = host_of(answerer)
    events = follow(host, request)
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()
    await settled()

    assert completed(await events_of(follow(host, request))).agent == "policy"


async def test_a_turn_has_one_completed_even_if_everybody_leaves_at_it() -> None:
    """The answerer still tidies up when its last follower, having seen the end, leaves."""

    class TidyingAnswerer:
        async def answer(self, request: TurnRequest, events: EventSink) -> None:
            events.emit(ANSWERED)
            await asyncio.Event().wait()

    host = host_of(TidyingAnswerer())
    async with aclosing(follow(host)) as events:
        async for event in events:
            if isinstance(event.event, Completed):
                break
    await settled()

    assert await events_of(follow(host)) == [Started(REQUEST.request_id), ANSWERED]


async def test_leaving_an_ended_turn_changes_nothing() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED))
    events = follow(host)
    await anext(events)
    await settled()
    await events.aclose()

    assert await events_of(follow(host)) == [Started(REQUEST.request_id), ANSWERED]


# --- the last follower leaves: DETACH ---


async def test_a_detached_turn_is_cancelled_when_its_grace_is_over() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    events = follow(host, as_detached(SHORT_S))
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()
    await settled()
    assert not answerer.cancelled.is_set()
    assert host.running == 1

    await within(answerer.cancelled.wait())
    await settled()

    assert completed(await events_of(follow(host, as_detached(SHORT_S)))).status is TurnStatus.INTERRUPTED


async def test_a_detached_turn_without_grace_is_cancelled_when_its_last_follower_leaves() -> None:
    answerer = HeldAnswerer()
    events = follow(host_of(answerer), as_detached(0.0))
    await anext(events)
    await within(answerer.started.wait())

    await events.aclose()

    await within(answerer.cancelled.wait())


async def test_a_follower_that_comes_back_within_the_grace_keeps_the_turn() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    request = as_detached(SHORT_S)
    events = follow(host, request)
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()
    back = asyncio.create_task(events_of(follow(host, request)))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(answerer.cancelled.wait(), 2 * SHORT_S)
    answerer.release.set()

    assert completed(await within(back)).status is TurnStatus.COMPLETED


async def test_the_grace_begins_anew_each_time_the_last_follower_leaves() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    request = as_detached(SHORT_S)
    for _ in range(2):
        events = follow(host, request)
        await anext(events)
        await within(answerer.started.wait())
        await events.aclose()
        assert not answerer.cancelled.is_set()

    await within(answerer.cancelled.wait())


async def test_a_detached_turn_completes_without_a_follower_within_its_grace() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    request = as_detached(GUARD_S)
    events = follow(host, request)
    await anext(events)
    await within(answerer.started.wait())
    await events.aclose()

    answerer.release.set()
    await settled()

    assert completed(await events_of(follow(host, request))).status is TurnStatus.COMPLETED


# --- deadlines and failures ---


async def test_a_turn_ends_when_its_callers_time_is_up() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)

    with pytest.raises(DeadlineError):
        await within(read(follow(host, budget_s=SHORT_S)))

    assert answerer.cancelled.is_set()
    await settled()


async def test_a_turn_ends_when_the_time_of_every_turn_is_up() -> None:
    answerer = HeldAnswerer()

    with pytest.raises(DeadlineError):
        await within(read(follow(host_of(answerer, turn_timeout_s=SHORT_S), budget_s=None)))

    assert answerer.cancelled.is_set()


async def test_a_callers_long_deadline_does_not_lengthen_a_turn() -> None:
    with pytest.raises(DeadlineError):
        await within(read(follow(host_of(HeldAnswerer(), turn_timeout_s=SHORT_S), budget_s=10 * GUARD_S)))


async def test_a_deadline_comes_after_what_was_written() -> None:
    seen: list[TurnEvent] = []

    with pytest.raises(DeadlineError):
        await within(collect(follow(host_of(HeldAnswerer()), budget_s=SHORT_S), seen))

    assert [event.event for event in seen] == [Started(REQUEST.request_id), Token("It ")]


async def test_no_time_left_is_a_deadline_and_not_a_hang() -> None:
    with pytest.raises(DeadlineError):
        await within(read(follow(host_of(HeldAnswerer()), budget_s=0.0)))


async def test_a_time_out_inside_the_answerer_is_not_told_as_the_callers_deadline() -> None:
    host = host_of(ScriptedAnswerer(failure=TimeoutError("a socket's")))

    with pytest.raises(TimeoutError, match="a socket's"):
        await read(follow(host))


async def test_an_unknown_exception_reaches_every_follower_after_the_last_event() -> None:
    host = host_of(ScriptedAnswerer(Token("It "), failure=LookupError("a bug")))
    followers = [follow(host) for _ in range(2)]
    for follower in followers:
        seen: list[TurnEvent] = []
        with pytest.raises(LookupError, match="a bug"):
            await within(collect(follower, seen))
        assert [event.event for event in seen] == [Started(REQUEST.request_id), Token("It ")]
    assert host.running == 0


async def test_a_turn_that_writes_too_much_fails() -> None:
    host = host_of(ScriptedAnswerer(*[Token("x" * 65_536)] * 5, ANSWERED))

    with pytest.raises(ModelFailedError):
        await within(read(follow(host)))


# --- what is kept ---


async def test_an_ended_turn_is_forgotten_after_its_time() -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    host = host_of(answerer, keep_s=SHORT_S)
    first = await within(read(follow(host)))
    assert await within(read(follow(host))) == first

    async with asyncio.timeout(GUARD_S):
        while len(answerer.requests) == 1:
            again = await read(follow(host))
            await asyncio.sleep(SHORT_S / 5)

    assert again == first, "the same request names the same turn, also when it is run anew"


async def test_a_turn_that_was_forgotten_may_be_asked_with_another_content() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED), keep_s=0.0)
    await events_of(follow(host))
    await asyncio.sleep(SHORT_S)

    assert await events_of(follow(host, replace(REQUEST, message="Something else")))


async def test_forgetting_a_turn_leaves_a_newer_one_under_the_same_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is out for the bound has a timer still; it must not take its successor along."""
    # The bound as a constant: 5,000 turns take longer than the short time that a test may wait for the timer.
    monkeypatch.setattr("agent_service.turns.kept.KEPT_TURNS", 1)
    answerer = HeldAnswerer()
    host = host_of(answerer, keep_s=SHORT_S)
    answerer.release.set()
    await events_of(follow(host))
    await events_of(follow(host, replace(REQUEST, request_id=RequestId("r2"))))
    answerer.release.clear()
    newer = asyncio.create_task(read(follow(host)))
    await settled()
    await asyncio.sleep(2 * SHORT_S)
    attached = asyncio.create_task(read(follow(host)))
    await settled()
    answerer.release.set()

    assert await within(attached) == await within(newer)
    assert [request.request_id for request in answerer.requests] == ["r1", "r2", "r1"]


async def test_a_running_turn_is_never_forgotten_for_newer_ones() -> None:
    held = HeldAnswerer()
    quick = ScriptedAnswerer(ANSWERED)

    class HeldForTheFirst:
        async def answer(self, request: TurnRequest, events: EventSink) -> None:
            await (held if request.request_id == REQUEST.request_id else quick).answer(request, events)

    # Thousands of turns may take a busy machine longer than a guard.
    host = host_of(HeldForTheFirst(), turn_timeout_s=60.0)
    first = asyncio.create_task(read(follow(host)))
    await within(held.started.wait())
    for number in range(KEPT_TURNS + 1):
        await read(follow(host, replace(REQUEST, request_id=RequestId(f"n{number}"))))

    second = asyncio.create_task(read(follow(host)))
    await settled()
    held.release.set()

    assert await within(second) == await within(first)
    assert len(held.requests) == 1


async def test_no_more_ended_turns_are_kept_than_stated_and_the_oldest_goes_first() -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    host = host_of(answerer)
    for number in range(KEPT_TURNS + 1):
        await read(follow(host, replace(REQUEST, request_id=RequestId(f"n{number}"))))
    await settled()
    asked = len(answerer.requests)

    await read(follow(host, replace(REQUEST, request_id=RequestId("n1"))))
    assert len(answerer.requests) == asked
    await read(follow(host, replace(REQUEST, request_id=RequestId("n0"))))
    assert len(answerer.requests) == asked + 1


async def test_the_memory_of_a_turn_that_is_no_longer_kept_is_given_back() -> None:
    """The number of kept turns bounds memory only if nothing else holds on to those that are out."""
    answerer = ScriptedAnswerer(ANSWERED)
    host = host_of(answerer)
    for number in range(KEPT_TURNS + 10):
        await read(follow(host, replace(REQUEST, request_id=RequestId(f"n{number}"))))
    await settled()
    gc.collect()

    alive = sum(log() is not None for log in answerer.logs)

    assert alive <= KEPT_TURNS + 1


# --- nothing is left behind ---


async def test_no_task_is_left_after_turns_that_ended_in_every_way() -> None:
    before = asyncio.all_tasks()
    answered = host_of(ScriptedAnswerer(Token("It"), ANSWERED))
    await events_of(follow(answered))
    failed = host_of(ScriptedAnswerer(failure=LookupError()))
    with pytest.raises(LookupError):
        await read(follow(failed))
    with pytest.raises(DeadlineError):
        await read(follow(host_of(HeldAnswerer()), budget_s=0.0))
    left = HeldAnswerer()
    events = follow(host_of(left))
    await anext(events)
    await within(left.started.wait())
    await events.aclose()

    await settled()

    assert asyncio.all_tasks() - before == set()


# --- watch ---


def watch(
    host: TurnHost, turn_id: TurnId, after: int = 0, *, observer: bool = False, caller: Caller = CALLER
) -> Follower:
    return here(host.watch(caller, turn_id, after, observer=observer))


async def begun(host: TurnHost, answerer: HeldAnswerer, request: TurnRequest = REQUEST) -> tuple[TurnId, Follower]:
    """A turn under way, and its first follower."""
    events = follow(host, request)
    first = await within(anext(events))
    await within(answerer.started.wait())
    return first.turn_id, events


@pytest.mark.parametrize("observer", [False, True])
async def test_a_watcher_gets_what_comes_after_its_number(observer: bool) -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    watching = [asyncio.create_task(read(watch(host, turn_id, after, observer=observer))) for after in (0, 1, 2)]
    await settled()
    answerer.release.set()
    whole = [TurnEvent(turn_id, 1, Started(REQUEST.request_id)), *await within(read(events))]

    assert [await within(each) for each in watching] == [whole, whole[1:], whole[2:]]
    for after in (0, 1, 3, 99):
        assert await within(read(watch(host, turn_id, after, observer=observer))) == whole[after:]


async def test_a_number_beyond_the_log_of_a_running_turn_is_refused() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)

    with pytest.raises(InvalidRequestError) as raised:
        watch(host, turn_id, 3)
    assert [violation.field for violation in raised.value.violations] == ["after_sequence"]
    assert "2" in raised.value.violations[0].description

    await events.aclose()
    await settled()


async def test_a_failed_turn_fails_at_every_place() -> None:
    host = host_of(ScriptedAnswerer(Token("It"), failure=ModelFailedError("no")))
    seen: list[TurnEvent] = []
    with pytest.raises(ModelFailedError):
        await within(collect(follow(host), seen))

    for after in (0, 2, 99):
        with pytest.raises(ModelFailedError):
            await within(read(watch(host, seen[0].turn_id, after)))
    stopped = await host.stop(CALLER, seen[0].turn_id)
    assert (stopped.status, stopped.abort_ms, stopped.last_sequence) == (TurnStatus.FAILED, 0.0, 2)


@pytest.mark.parametrize("caller", [Caller("bob", "acme"), Caller("ada", "globex")], ids=["subject", "tenant"])
async def test_the_turn_of_somebody_else_is_unknown(caller: Caller) -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)

    with pytest.raises(UnknownTurnError):
        watch(host, turn_id, caller=caller)
    with pytest.raises(UnknownTurnError):
        await host.stop(caller, turn_id)
    assert not answerer.cancelled.is_set()

    await events.aclose()
    await settled()


async def test_a_turn_that_is_no_longer_kept_is_unknown() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED), keep_s=0.0)
    first = await within(read(follow(host)))
    await asyncio.sleep(SHORT_S)

    with pytest.raises(UnknownTurnError):
        watch(host, first[0].turn_id)
    with pytest.raises(UnknownTurnError):
        await host.stop(CALLER, first[0].turn_id)


async def test_observers_do_not_keep_a_turn() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    watching = [asyncio.create_task(events_of(watch(host, turn_id, observer=True))) for _ in range(3)]
    await settled()

    await events.aclose()

    await within(answerer.cancelled.wait())
    for each in watching:
        assert completed(await each).status is TurnStatus.INTERRUPTED


async def test_an_observer_that_leaves_ends_no_turn() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    looking = watch(host, turn_id, observer=True)
    await anext(looking)
    await looking.aclose()
    await settled()

    assert not answerer.cancelled.is_set()
    answerer.release.set()
    assert completed(await events_of(events)).status is TurnStatus.COMPLETED


async def test_a_watcher_takes_the_place_of_who_started_the_turn() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    watching = asyncio.create_task(events_of(watch(host, turn_id)))
    await settled()

    await events.aclose()
    await settled()
    assert not answerer.cancelled.is_set()
    answerer.release.set()

    assert completed(await within(watching)).status is TurnStatus.COMPLETED


async def test_a_watcher_that_comes_within_the_grace_keeps_the_turn_and_an_observer_does_not() -> None:
    for observer, kept in ((False, True), (True, False)):
        answerer = HeldAnswerer()
        host = host_of(answerer)
        turn_id, events = await begun(host, answerer, as_detached(SHORT_S))
        await events.aclose()
        watching = asyncio.create_task(events_of(watch(host, turn_id, observer=observer)))
        await asyncio.sleep(2 * SHORT_S)

        assert answerer.cancelled.is_set() is not kept
        answerer.release.set()
        await within(watching)


async def test_turns_can_be_watched_and_stopped_while_the_host_drains() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    draining = asyncio.create_task(host.drain(GUARD_S))
    await settled()
    watching = asyncio.create_task(events_of(watch(host, turn_id)))
    await settled()

    assert (await within(host.stop(CALLER, turn_id))).status is TurnStatus.STOPPED
    assert completed(await within(watching)).status is TurnStatus.STOPPED
    await within(draining)
    await events.aclose()


# --- stop ---


async def test_a_stopped_turn_keeps_what_was_written_and_says_what_it_used() -> None:
    answerer = CountingAnswerer(first=(Token("It "), Token("costs")))
    host = host_of(answerer)
    state = State(BILLING, (KEPT,))
    turn_id, events = await begun(host, answerer, replace(REQUEST, state=state))

    stopped = await within(host.stop(CALLER, turn_id))

    assert answerer.cancelled.is_set()
    assert (stopped.status, stopped.usage, stopped.last_sequence) == (TurnStatus.STOPPED, CUT_USAGE, 4)
    assert 0 < stopped.abort_ms < 1_000
    rest = await events_of(events)
    assert rest[:2] == [Token("It "), Token("costs")]
    end = completed(rest)
    assert (end.status, end.outcome, end.usage, end.state) == (TurnStatus.STOPPED, None, CUT_USAGE, state)
    assert (end.trace, end.agent, end.strategy) == (CUT_TRACE, BILLING, Strategy.HYBRID)
    assert host.running == 0


async def test_an_interrupted_turn_says_what_it_used() -> None:
    answerer = CountingAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    await events.aclose()
    await within(answerer.cancelled.wait())
    await settled()

    end = completed(await events_of(watch(host, turn_id)))

    assert (end.status, end.usage, end.trace) == (TurnStatus.INTERRUPTED, CUT_USAGE, CUT_TRACE)
    assert (await host.stop(CALLER, turn_id)).status is TurnStatus.INTERRUPTED


async def test_stopping_an_ended_turn_says_how_it_ended() -> None:
    used = replace(ANSWERED, usage=CUT_USAGE)
    host = host_of(ScriptedAnswerer(Token("It"), used))
    first = await within(read(follow(host)))
    await settled()

    stopped = await host.stop(CALLER, first[0].turn_id)

    assert stopped == StoppedTurn(TurnStatus.COMPLETED, CUT_USAGE, 0.0, 3)


async def test_many_stops_at_once_end_a_turn_once() -> None:
    answerer = CountingAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)

    stops = await within(asyncio.gather(*(host.stop(CALLER, turn_id) for _ in range(20))))

    assert {(each.status, each.last_sequence, each.usage) for each in stops} == {(TurnStatus.STOPPED, 3, CUT_USAGE)}
    assert completed(await events_of(events)).status is TurnStatus.STOPPED


@pytest.mark.parametrize("turns_of_the_loop", range(6))
async def test_a_stop_that_races_with_the_end_says_how_it_ended(turns_of_the_loop: int) -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    answerer.release.set()
    for _ in range(turns_of_the_loop):
        await asyncio.sleep(0)

    stopped = await within(host.stop(CALLER, turn_id))

    rest = await within(read(events))
    assert completed([event.event for event in rest]).status is stopped.status
    assert rest[-1].sequence == stopped.last_sequence


async def test_a_stop_of_a_turn_that_has_not_run_yet_ends_it() -> None:
    host = host_of(HeldAnswerer())
    events = follow(host)
    first = await anext(events)

    # Not in a task of its own, which the turn's would run before.
    stopped = await host.stop(CALLER, first.turn_id)

    assert (stopped.status, stopped.last_sequence) == (TurnStatus.STOPPED, 2)
    await events.aclose()


async def test_a_turn_that_does_not_end_when_it_is_stopped_ends_without_its_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent_service.turns.turn.ABORT_S", SHORT_S)
    answerer = StubbornAnswerer()
    host = host_of(answerer)
    events = follow(host)
    first = await anext(events)
    await within(answerer.started.wait())

    stopped = await within(host.stop(CALLER, first.turn_id))

    assert stopped.status is TurnStatus.STOPPED
    assert stopped.abort_ms >= SHORT_S * 1000
    assert completed(await events_of(events)).status is TurnStatus.STOPPED
    assert "did not end when it was stopped" in caplog.text
    answerer.release.set()
    await settled()
    assert host.running == 0


async def test_who_stops_and_leaves_at_once_leaves_a_stopped_turn() -> None:
    answerer = HeldAnswerer()
    host = host_of(answerer)
    turn_id, events = await begun(host, answerer)
    stopping = asyncio.create_task(host.stop(CALLER, turn_id))
    await asyncio.sleep(0)
    await events.aclose()

    assert (await within(stopping)).status is TurnStatus.STOPPED


async def test_a_host_alone_opens_and_closes_nothing() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED))

    await host.open()
    await host.close()

    assert (await events_of(follow(host)))[-1] == ANSWERED
