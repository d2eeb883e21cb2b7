"""A turn outlives the calls that follow it: starting, attaching, leaving, overload, deadlines, drain."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from agent_service.errors import (
    DeadlineError,
    DrainingError,
    ModelFailedError,
    OverloadedError,
    RequestIdReusedError,
    RetryableError,
)
from agent_service.ports import Answerer, EventSink
from agent_service.turns.host import KEPT_TURNS, TurnHost
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
    Strategy,
    Token,
    TurnEvent,
    TurnRequest,
    TurnStatus,
)
from tests.support.answerers import ANSWERED, BILLING, REQUEST, HeldAnswerer, ScriptedAnswerer, StubbornAnswerer

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
    return host.chat(request, budget_s=budget_s)


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


async def test_the_answerer_gets_the_request_as_it_was_asked() -> None:
    answerer = ScriptedAnswerer(ANSWERED)
    request = replace(REQUEST, history=(Message(Role.USER, "Hello"),), max_output_tokens=7)

    await events_of(follow(host_of(answerer), request))

    assert answerer.requests == [request]


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

    assert again[0].turn_id != first[0].turn_id


async def test_a_turn_that_was_forgotten_may_be_asked_with_another_content() -> None:
    host = host_of(ScriptedAnswerer(ANSWERED), keep_s=0.0)
    await events_of(follow(host))
    await asyncio.sleep(SHORT_S)

    assert await events_of(follow(host, replace(REQUEST, message="Something else")))


async def test_forgetting_a_turn_leaves_a_newer_one_under_the_same_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is out for the bound has a timer still; it must not take its successor along."""
    # The bound as a constant: 5,000 turns take longer than the short time that a test may wait for the timer.
    monkeypatch.setattr("agent_service.turns.host.KEPT_TURNS", 1)
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

    host = host_of(HeldForTheFirst())
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
