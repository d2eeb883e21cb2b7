"""Turns that several replicas share: any of them follows, attaches to and stops a turn that runs on another."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from answerdesk.v1 import conversation_pb2 as conversation_pb

from agent_service.errors import (
    DrainingError,
    InvalidRequestError,
    ModelFailedError,
    OverloadedError,
    ReplayedError,
    RequestIdReusedError,
    SequenceExpiredError,
    TurnLogUnavailableError,
    UnknownTurnError,
)
from agent_service.turns import log_redis_poller as poller
from agent_service.turns.identity import identified
from agent_service.types import (
    Caller,
    OnDisconnect,
    RequestId,
    State,
    Token,
    TurnId,
    TurnRequest,
    TurnStatus,
)
from tests.integration.agent.replicas import Reader, Replica, replicas, until, until_async, within
from tests.support.answerers import (
    ANSWERED,
    BILLING,
    CALLER,
    CUT_USAGE,
    REQUEST,
    CountingAnswerer,
    HeldAnswerer,
    ScriptedAnswerer,
)
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.needs("redis")

Pair = tuple[Replica, Replica]


def fresh(**changes: object) -> TurnRequest:
    """A request of its own."""
    return replace(REQUEST, request_id=RequestId(str(uuid.uuid4())), **changes)  # type: ignore[arg-type]


def turn_of(request: TurnRequest) -> TurnId:
    return identified(request)[0].turn_id


@pytest.fixture
async def pair(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    # A Redis that just came up is not believed at once; that has tests of its own.
    monkeypatch.setattr(poller, "SETTLED_MS", 0)
    monkeypatch.setattr("agent_service.turns.log_redis.SETTLED_MS", 0)
    async with replicas(redis.url) as (a, b):
        yield a, b


async def running(replica: Replica, request: TurnRequest) -> Reader:
    """A turn under way on this replica, with its first follower."""
    reader = Reader(replica.chat(request))
    await within(replica.held.started.wait())
    await reader.has(2)
    return reader


# --- following ---


async def test_a_turn_is_followed_through_another_replica_byte_for_byte(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    there = Reader(b.watch(turn_of(request)))
    await there.has(2)

    a.held.release.set()

    assert await there.ends() == await here.ends()
    assert there.sequences == [1, 2, 3]
    assert len(b.held.requests) == 0


@pytest.mark.parametrize("observer", [False, True])
@pytest.mark.parametrize(
    ("after", "expected"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (99, []), (2**64 - 1, [])]
)
async def test_an_ended_turn_is_read_from_any_number_on(
    pair: Pair, after: int, expected: list[int], observer: bool
) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    a.held.release.set()
    await here.ends()
    await Reader(b.watch(turn_of(request))).ends()

    for replica in pair:
        reader = Reader(replica.watch(turn_of(request), after, observer=observer))
        await reader.ends()
        assert reader.sequences == expected


async def test_a_number_beyond_the_log_of_a_running_turn_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "BEHIND_S", 0.2)
    request = fresh()
    reader = await running(pair[0], request)

    for replica in pair:
        for after in (99, 2**64 - 1):
            with pytest.raises(InvalidRequestError) as raised:
                await Reader(replica.watch(turn_of(request), after)).ends()
            assert raised.value.violations[0].field == "after_sequence"
    await reader.leave()


async def test_who_has_seen_more_than_redis_has_yet_is_waited_for(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    a.link.goes_on.set()
    reader = await running(a, request)
    await Reader(b.watch(turn_of(request), 1, observer=True)).has(1)
    a.link.goes_on.clear()
    await asyncio.sleep(0)
    a.held.release.set()
    await reader.has(3)

    ahead = Reader(b.watch(turn_of(request), 3, observer=True))
    await asyncio.sleep(0.2)
    a.link.goes_on.set()

    assert await ahead.ends() == []


async def test_a_turn_that_nobody_knows_is_not_found(pair: Pair) -> None:
    for replica in pair:
        with pytest.raises(UnknownTurnError):
            await Reader(replica.watch(TurnId(str(uuid.uuid4())))).ends()
        with pytest.raises(UnknownTurnError):
            await replica.stop(TurnId(str(uuid.uuid4())))


@pytest.mark.parametrize("other", [Caller("bob", "acme"), Caller("ada", "globex")], ids=["subject", "tenant"])
async def test_the_turns_of_others_are_not_found_anywhere(pair: Pair, other: Caller) -> None:
    a, b = pair
    request = fresh()
    reader = await running(a, request)
    await Reader(b.watch(turn_of(request))).has(2)

    for replica in pair:
        with pytest.raises(UnknownTurnError):
            async for _ in replica.host.watch(other, turn_of(request), 0, observer=False):
                pass
        with pytest.raises(UnknownTurnError):
            await replica.host.stop(other, turn_of(request))
    assert not a.held.cancelled.is_set()
    await reader.leave()


async def test_a_failure_is_the_same_on_every_replica(redis: RedisServer) -> None:
    answerers = [ScriptedAnswerer(Token("It "), failure=ModelFailedError("no")) for _ in range(2)]
    request = fresh()
    async with replicas(redis.url, *(Replica(redis.url, each) for each in answerers)) as (a, b):
        with pytest.raises(ModelFailedError):
            await Reader(a.chat(request)).ends()
        for events in (b.watch(turn_of(request)), b.chat(request)):
            there = Reader(events)
            with pytest.raises(ReplayedError, match="no") as raised:
                await there.ends()
            assert raised.value.reason == "MODEL_FAILED"
            assert there.sequences == [1, 2]
        stopped = await b.stop(turn_of(request))
    assert (stopped.status, stopped.abort_ms, stopped.last_sequence) == (TurnStatus.FAILED, 0.0, 2)


async def test_a_long_answer_arrives_whole_in_reads_of_many_events(redis: RedisServer) -> None:
    words = [Token(f"{number} ") for number in range(1_000)]
    request = fresh()
    answerer = HeldAnswerer(first=words)
    async with replicas(redis.url, Replica(redis.url, answerer), Replica(redis.url)) as (a, b):
        here = Reader(a.chat(request))
        await here.has(1_001)
        there = Reader(b.watch(turn_of(request)))
        await there.has(1_001)
        answerer.release.set()

        assert await there.ends() == await here.ends()


# --- attaching ---


async def test_the_same_request_attaches_through_another_replica_and_the_model_is_asked_once(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    there = Reader(b.chat(request))
    await there.has(2)

    a.held.release.set()

    assert await there.ends() == await here.ends()
    assert (len(a.held.requests), len(b.held.requests)) == (1, 0)


async def test_a_request_sent_to_both_at_once_is_run_by_one(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    readers = [Reader(replica.chat(request)) for replica in (a, b, a, b)]
    for reader in readers:
        await reader.has(2)
    for replica in pair:
        replica.held.release.set()

    ends = [await reader.ends() for reader in readers]

    assert ends == [ends[0]] * 4
    assert len(a.held.requests) + len(b.held.requests) == 1


async def test_another_body_under_the_same_request_id_is_refused_everywhere(pair: Pair) -> None:
    request = fresh()
    reader = await running(pair[0], request)

    for replica in pair:
        with pytest.raises(RequestIdReusedError):
            await Reader(replica.chat(replace(request, message="Something else"))).ends()
    await reader.leave()


async def test_a_draining_replica_starts_nothing_and_still_follows_and_stops(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    await running(a, request)
    own = await running(b, fresh())
    draining = asyncio.create_task(b.host.drain(10))
    await until(lambda: b.host._draining)

    with pytest.raises(DrainingError):
        await Reader(b.chat(fresh())).ends()
    attached, watching = Reader(b.chat(request)), Reader(b.watch(turn_of(request)))
    await attached.has(2)
    await watching.has(2)

    assert (await b.stop(turn_of(request))).status is TurnStatus.STOPPED
    assert (await attached.ends())[-1].completed.status == conversation_pb.TURN_STATUS_STOPPED
    b.held.release.set()
    await own.ends()
    await within(draining)


async def test_a_drained_replica_sends_those_elsewhere_who_follow_turns_of_others(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    there = Reader(b.watch(turn_of(request)))
    await there.has(2)

    await b.host.drain(0)

    with pytest.raises(DrainingError):
        await there.ends()
    with pytest.raises(DrainingError):
        await Reader(b.watch(turn_of(request))).ends()
    assert not a.held.cancelled.is_set()
    a.held.release.set()
    await here.ends()


async def test_an_overloaded_replica_still_attaches_to_what_runs_elsewhere(redis: RedisServer) -> None:
    request = fresh()
    async with replicas(redis.url, Replica(redis.url), Replica(redis.url, max_turns=1)) as (a, b):
        here = await running(a, request)
        own = await running(b, fresh())
        with pytest.raises(OverloadedError):
            await Reader(b.chat(fresh())).ends()
        there = Reader(b.chat(request))
        await there.has(2)
        for replica in (a, b):
            replica.held.release.set()

        assert await there.ends() == await here.ends()
        await own.ends()


async def test_a_caller_who_leaves_before_the_claim_is_answered_leaves_no_claim(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    a.link.goes_on.clear()
    leaving = Reader(a.chat(request))
    await asyncio.sleep(0.05)
    await leaving.leave()
    a.link.goes_on.set()

    reader = await running(b, request)
    b.held.release.set()
    assert (await reader.ends())[-1].completed.status == conversation_pb.TURN_STATUS_COMPLETED


async def test_many_requests_at_once_are_no_reason_to_think_redis_away(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ScriptedAnswerer(Token("It "), ANSWERED)
    async with replicas(redis.url, Replica(redis.url, writer, max_turns=2_000), number=1) as (a,):
        readers = [Reader(a.chat(fresh())) for _ in range(300)]
        for reader in readers:
            await reader.ends(30)
    assert "Redis is away" not in caplog.text


# --- stopping ---


async def test_a_turn_is_stopped_through_another_replica_with_its_usage(redis: RedisServer) -> None:
    answerer = CountingAnswerer()
    request = fresh(state=State(BILLING))
    async with replicas(redis.url, Replica(redis.url, answerer), Replica(redis.url)) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request), 1))
        await there.has(1)

        stopped = await b.stop(turn_of(request))

        assert (stopped.status, stopped.usage, stopped.last_sequence) == (TurnStatus.STOPPED, CUT_USAGE, 3)
        assert 0 < stopped.abort_ms < 1_000
        end = (await here.ends())[-1]
        assert (await there.ends())[-1] == end
        assert end.completed.status == conversation_pb.TURN_STATUS_STOPPED
        assert end.completed.usage.output_tokens == CUT_USAGE.output_tokens
        assert end.completed.state.agent == "billing"
        again = await b.stop(turn_of(request))
        assert (again.status, again.usage, again.abort_ms) == (TurnStatus.STOPPED, CUT_USAGE, 0.0)


async def test_many_stops_through_both_replicas_end_a_turn_once(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    reader = await running(a, request)

    stops = await asyncio.gather(*(replica.stop(turn_of(request)) for replica in (a, b) * 10))

    assert {(each.status, each.last_sequence) for each in stops} == {(TurnStatus.STOPPED, 3)}
    assert (await reader.ends())[-1].completed.status == conversation_pb.TURN_STATUS_STOPPED


async def test_a_stop_that_races_with_the_natural_end_says_how_it_ended(pair: Pair) -> None:
    a, b = pair
    for _ in range(10):
        request = fresh()
        a.held.started.clear()
        a.held.release.clear()
        reader = await running(a, request)
        stopping = asyncio.create_task(b.stop(turn_of(request)))
        await asyncio.sleep(0.001)
        a.held.release.set()

        stopped = await stopping

        end = (await reader.ends())[-1]
        names = {TurnStatus.STOPPED: "TURN_STATUS_STOPPED", TurnStatus.COMPLETED: "TURN_STATUS_COMPLETED"}
        assert conversation_pb.TurnStatus.Name(end.completed.status) == names[stopped.status]
        assert end.sequence == stopped.last_sequence


async def test_a_stop_is_heard_at_once_and_not_at_the_next_look(pair: Pair) -> None:
    a, b = pair
    took = []
    for _ in range(5):
        request = fresh()
        a.held.started.clear()
        a.held.cancelled.clear()
        reader = await running(a, request)
        asked = time.monotonic()
        stopping = asyncio.create_task(b.stop(turn_of(request)))
        await within(a.held.cancelled.wait())
        took.append(time.monotonic() - asked)
        await stopping
        await reader.ends()

    assert sorted(took)[2] < 0.25, took


async def test_a_stop_that_was_not_heard_is_seen_at_the_next_look(pair: Pair) -> None:
    a, b = pair
    # The subscription; its task has a name.
    (listening,) = [task for task in a.shared._tasks if task.get_name() == "stops of turns"]
    listening.cancel()
    request = fresh()
    await running(a, request)

    assert (await b.stop(turn_of(request))).status is TurnStatus.STOPPED


# --- followers of all replicas count ---


def detached(grace_s: float) -> TurnRequest:
    return fresh(on_disconnect=OnDisconnect.DETACH, grace_s=grace_s)


async def test_a_follower_elsewhere_keeps_a_turn_whose_caller_left(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    there = Reader(b.watch(turn_of(request)))
    await there.has(2)

    await here.leave()
    await asyncio.sleep(1.5)
    assert not a.held.cancelled.is_set()
    a.held.release.set()

    assert (await there.ends())[-1].completed.status == conversation_pb.TURN_STATUS_COMPLETED


async def test_an_observer_elsewhere_does_not_keep_a_turn(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    watching = Reader(b.watch(turn_of(request), observer=True))
    await watching.has(2)

    await here.leave()

    await within(a.held.cancelled.wait(), 1.0)
    assert (await watching.ends())[-1].completed.status == conversation_pb.TURN_STATUS_INTERRUPTED


async def test_the_last_follower_elsewhere_that_leaves_ends_the_turn(pair: Pair) -> None:
    a, b = pair
    request = fresh()
    here = await running(a, request)
    there = Reader(b.watch(turn_of(request)))
    await there.has(2)
    await here.leave()

    await there.leave()

    await within(a.held.cancelled.wait(), 3.0)


async def test_a_follower_elsewhere_within_the_grace_keeps_a_detached_turn(pair: Pair) -> None:
    a, b = pair
    request = detached(0.5)
    here = await running(a, request)
    await here.leave()

    there = Reader(b.watch(turn_of(request)))
    await there.has(2)
    await asyncio.sleep(1.5)
    assert not a.held.cancelled.is_set()
    left = time.monotonic()
    await there.leave()

    await within(a.held.cancelled.wait(), 4.0)
    assert time.monotonic() - left >= 0.5


async def test_a_caller_who_hangs_up_has_the_turn_aborted_within_100_ms(pair: Pair) -> None:
    a, _ = pair
    took = []
    for _ in range(20):
        request = fresh()
        a.held.started.clear()
        a.held.cancelled.clear()
        reader = await running(a, request)
        left = time.monotonic()
        await reader.leave()
        await within(a.held.cancelled.wait())
        took.append((time.monotonic() - left) * 1000)

    assert sorted(took)[10] < 100


# --- what is kept ---


async def test_everything_in_redis_expires_and_names_nobody(pair: Pair, redis: RedisServer) -> None:
    from redis import Redis  # noqa: PLC0415

    redis.flush()
    a, b = pair
    request = replace(fresh(), caller=CALLER)
    reader = await running(a, request)
    there = Reader(b.watch(turn_of(request)))
    await there.has(2)
    with Redis.from_url(redis.url) as client:
        while_running = {key: client.pttl(key) for key in client.scan_iter()}
        await there.leave()
        await reader.leave()
        await until(
            lambda: client.hget(next(k for k in client.scan_iter() if k.endswith(b":meta")), "status") != b"running"
        )
        afterwards = {key: client.pttl(key) for key in client.scan_iter()}

    assert any(key.endswith(b":owner") for key in while_running)
    for kept in (while_running, afterwards):
        assert all(0 < ttl <= 600_000 for ttl in kept.values()), kept
        assert not any(b"ada" in key or b"acme" in key for key in kept)
    assert {key.rsplit(b":", 1)[1] for key in afterwards if key.startswith(b"turn:")} == {b"log", b"meta"}


async def test_what_the_bound_of_kept_turns_puts_out_goes_from_redis_too(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_service.turns.kept.KEPT_TURNS", 1)
    monkeypatch.setattr(poller, "SETTLED_MS", 0)
    requests = [fresh() for _ in range(3)]
    async with replicas(redis.url, Replica(redis.url, ScriptedAnswerer(ANSWERED)), Replica(redis.url)) as (a, b):
        for request in requests:
            await Reader(a.chat(request)).ends()

        async def is_gone(request: TurnRequest) -> bool:
            try:
                await Reader(b.watch(turn_of(request))).ends()
            except (UnknownTurnError, SequenceExpiredError):
                return True
            except TurnLogUnavailableError:
                # It went in the moment between the first look and the first poll.
                return False
            return False

        await until_async(lambda: is_gone(requests[0]))
        await until_async(lambda: is_gone(requests[1]))
        assert not await is_gone(requests[2])
