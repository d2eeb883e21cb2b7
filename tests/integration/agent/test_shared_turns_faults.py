"""Shared turns when something breaks: a replica killed or held still, Redis away, hanging, or without its data."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answerdesk.v1 import conversation_pb2 as conversation_pb

from agent_service.errors import (
    DrainingError,
    ReplayedError,
    RequestIdReusedError,
    SequenceExpiredError,
    TurnLogUnavailableError,
    TurnLostError,
    UnknownTurnError,
)
from agent_service.turns import log_redis_mirror as mirror
from agent_service.turns import log_redis_poller as poller
from agent_service.turns.identity import identified
from agent_service.types import OnDisconnect, RequestId, Token, TurnId, TurnRequest, TurnStatus
from tests.integration.agent.replicas import Reader, Replica, replicas, until, until_async, within
from tests.support.answerers import ANSWERED, REQUEST, HeldAnswerer
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own: it is stopped, held still and emptied."""
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe a Redis that just came up."""
    monkeypatch.setattr(poller, "SETTLED_MS", 0)
    monkeypatch.setattr("agent_service.turns.log_redis.SETTLED_MS", 0)


def fresh(**changes: object) -> TurnRequest:
    return replace(REQUEST, request_id=RequestId(str(uuid.uuid4())), **changes)  # type: ignore[arg-type]


def turn_of(request: TurnRequest) -> TurnId:
    return identified(request)[0].turn_id


async def running(replica: Replica, request: TurnRequest) -> Reader:
    reader = Reader(replica.chat(request))
    await within(replica.held.started.wait())
    await reader.has(2)
    return reader


async def settle(redis_is_believed: Replica) -> None:
    """Wait until Redis was reached for long enough to be believed."""

    async def unknown() -> bool:
        try:
            await Reader(redis_is_believed.watch(TurnId(str(uuid.uuid4())))).ends()
        except UnknownTurnError:
            return True
        except TurnLogUnavailableError:
            return False
        return False

    await until_async(unknown)


# --- a replica is killed, or held still ---


async def test_followers_elsewhere_hear_within_6_s_that_the_replica_was_killed(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        await settle(b)
        here = await running(a, request)
        follower, observer = Reader(b.watch(turn_of(request))), Reader(b.watch(turn_of(request), observer=True))
        await follower.has(2)
        killed = time.monotonic()
        await a.die()

        for reader in (follower, observer):
            with pytest.raises(ReplayedError) as raised:
                await reader.ends()
            assert raised.value.reason == "TURN_LOST"
        took_s = time.monotonic() - killed
        assert took_s < 6

        # The same request again: what was written, and the same error.
        again = Reader(b.chat(request))
        with pytest.raises(ReplayedError, match="gone"):
            await again.ends()
        assert again.sequences == [1, 2]
        assert len(b.held.requests) == 0
        stopped = await b.stop(turn_of(request))
        assert (stopped.status, stopped.abort_ms, stopped.last_sequence) == (TurnStatus.FAILED, 0.0, 2)
        await here.leave()


async def test_a_stop_of_a_turn_whose_replica_was_killed_says_that_it_failed(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        await settle(b)
        here = await running(a, request)
        await until(lambda: a.link.asked > 3)
        await a.die()

        stopped = await b.stop(turn_of(request))

        assert stopped.status is TurnStatus.FAILED
        await here.leave()


@pytest.mark.usefixtures("at_once")
async def test_an_owner_that_was_held_still_too_long_is_fenced_and_gives_up(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        a.link.goes_on.clear()
        with pytest.raises(ReplayedError):
            await there.ends()

        # It goes on, writes what it has, and learns that it is too late.
        a.log_of(request).emit(Token("late"))
        a.link.goes_on.set()

        with pytest.raises(TurnLostError):
            await here.ends()
        await within(a.held.cancelled.wait())
        assert here.text == "It late"
        again = Reader(b.watch(turn_of(request)))
        with pytest.raises(ReplayedError):
            await again.ends()
        assert again.text == "It "
        assert (await a.stop(turn_of(request))).status is TurnStatus.FAILED


@pytest.mark.usefixtures("at_once")
async def test_an_owner_that_was_held_still_for_a_short_time_loses_nothing(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        a.link.goes_on.clear()
        await asyncio.sleep(2)
        a.link.goes_on.set()
        a.held.release.set()

        assert await there.ends() == await here.ends()


@pytest.mark.usefixtures("at_once")
async def test_a_killed_follower_elsewhere_does_not_keep_a_turn_for_ever(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        await here.leave()
        await b.die()

        await within(a.held.cancelled.wait(), 8)
        await there.leave()


# --- Redis is away ---


async def test_without_redis_turns_run_for_those_who_follow_them_directly(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.stop()
    with caplog.at_level(logging.INFO):
        async with replicas(own_redis.url) as (a, b):
            request = fresh()
            here = await running(a, request)
            with pytest.raises(TurnLogUnavailableError):
                await Reader(b.watch(turn_of(request))).ends()
            with pytest.raises(TurnLogUnavailableError):
                await b.stop(turn_of(request))
            attached = Reader(a.chat(request))
            a.held.release.set()

            assert await attached.ends() == await here.ends()
            with pytest.raises(RequestIdReusedError):
                await Reader(a.chat(replace(request, message="Something else"))).ends()
            await b.host.drain(0)
            with pytest.raises(DrainingError):
                await Reader(b.chat(fresh())).ends()
    away = [record for record in caplog.records if "Redis is away" in record.message]
    assert len(away) == 2, "once for each replica"
    assert str(own_redis.port) not in caplog.text


async def test_nobody_waits_long_for_a_redis_that_hangs(own_redis: RedisServer) -> None:
    a = Replica(own_redis.url)
    a.link._timeout_s = 0.5
    async with replicas(own_redis.url, a):
        own_redis.pause()
        started = time.monotonic()
        for _ in range(3):
            reader = Reader(a.chat(fresh()))
            await reader.has(2)
            await reader.leave()
        took_s = time.monotonic() - started
        own_redis.resume()
    # The time limit a few times over; the rest of the time it is left alone.
    assert took_s < 4


async def test_what_was_written_while_redis_was_away_is_written_when_it_is_back(own_redis: RedisServer) -> None:
    """Also of a turn that began meanwhile, and though Redis has lost what it had."""
    async with replicas(own_redis.url) as (a, b):
        await settle(b)
        before = fresh()
        here = await running(a, before)
        await Reader(b.watch(turn_of(before), 1, observer=True)).has(1)
        own_redis.stop()
        meanwhile = fresh()
        new = Reader(a.chat(meanwhile))
        await new.has(2)
        a.log_of(before).emit(Token("more "))
        own_redis.start()

        # Until owners had the time to write nobody says that there is no such turn.
        async with asyncio.timeout(10):
            while True:
                there = Reader(b.watch(turn_of(before)))
                try:
                    await there.has(3)
                    break
                except TurnLogUnavailableError:
                    await asyncio.sleep(0.05)
        late = Reader(b.watch(turn_of(meanwhile)))
        await late.has(2)
        a.held.release.set()

        assert await there.ends() == await here.ends()
        assert await late.ends() == await new.ends()
        assert there.text == "It more "


async def test_a_follower_in_the_middle_is_told_when_redis_stays_away(own_redis: RedisServer) -> None:
    request = fresh(on_disconnect=OnDisconnect.DETACH)
    async with replicas(own_redis.url) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        gone = time.monotonic()
        own_redis.stop()

        with pytest.raises(TurnLogUnavailableError):
            await there.ends()
        took_s = time.monotonic() - gone
        assert 1.5 < took_s < 4
        a.held.release.set()
        await here.ends()


@pytest.mark.usefixtures("at_once")
async def test_a_follower_in_the_middle_outlives_a_short_absence(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        own_redis.pause()
        await asyncio.sleep(0.8)
        own_redis.resume()
        a.held.release.set()

        assert await there.ends() == await here.ends()


async def test_a_redis_that_lost_its_data_is_given_everything_again(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        await settle(b)
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)

        own_redis.flush()

        with pytest.raises(TurnLogUnavailableError):
            await Reader(b.watch(TurnId(str(uuid.uuid4())))).ends()
        await asyncio.sleep(1.2)
        late = Reader(b.watch(turn_of(request)))
        await late.has(2)
        a.held.release.set()
        assert await late.ends() == await there.ends() == await here.ends()


async def test_a_redis_that_came_back_gives_owners_time_before_it_calls_them_gone(own_redis: RedisServer) -> None:
    """It hung for longer than an owner's word holds, so that by its own clock every owner is gone."""
    a, b = Replica(own_redis.url), Replica(own_redis.url)
    for each in (a, b):
        each.link._timeout_s = 0.3
    request = fresh()
    async with replicas(own_redis.url, a, b):
        await settle(b)
        here = await running(a, request)
        await Reader(b.watch(turn_of(request), 1, observer=True)).has(1)
        own_redis.pause()
        await asyncio.sleep(6)
        own_redis.resume()
        async with asyncio.timeout(10):
            while True:
                there = Reader(b.watch(turn_of(request)))
                try:
                    await there.has(2)
                    break
                except TurnLogUnavailableError:
                    await asyncio.sleep(0.01)
        a.held.release.set()

        assert await there.ends() == await here.ends()


@pytest.mark.usefixtures("at_once")
async def test_a_turn_that_only_others_followed_ends_when_redis_stays_away(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        await here.leave()
        own_redis.stop()

        with pytest.raises(TurnLogUnavailableError):
            await there.ends()
        await within(a.held.cancelled.wait(), 10)


async def test_the_end_of_a_drain_is_written_before_the_connection_is_closed(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        await settle(b)
        await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        for task in a.shared._tasks:
            if task.get_name() == "mirror of turns":
                task.cancel()
        await a.host.drain(0)
        await a.host.close()

        assert (await there.ends())[-1].completed.status == conversation_pb.TURN_STATUS_INTERRUPTED


async def test_every_end_is_written_before_the_connection_is_closed(own_redis: RedisServer) -> None:
    """More turns than fit into a round trip, and more events than fit into a call, ended at once."""
    many = [fresh() for _ in range(3 * mirror.ROUND_TURNS)]
    a, b = Replica(own_redis.url, max_turns=1_000), Replica(own_redis.url)
    async with replicas(own_redis.url, a, b):
        await settle(b)
        readers = [await running(a, request) for request in many]
        for _ in range(2 * mirror.BATCH_EVENTS):
            a.log_of(many[0]).emit(Token("x"))
        await a.host.drain(0)
        await a.host.close()

        ends = [(await Reader(b.watch(turn_of(request))).ends())[-1] for request in many]
        for reader in readers:
            await reader.leave()
    assert {each.completed.status for each in ends} == {conversation_pb.TURN_STATUS_INTERRUPTED}
    assert ends[0].sequence == 2 * mirror.BATCH_EVENTS + 3


async def test_a_slow_moment_of_redis_makes_no_turn_that_the_others_do_not_know(own_redis: RedisServer) -> None:
    request = fresh()
    a = Replica(own_redis.url)
    a.link._timeout_s = 0.2
    async with replicas(own_redis.url, a, Replica(own_redis.url)) as (_, b):
        await settle(b)
        own_redis.pause()
        reader = Reader(a.chat(request))
        await until(lambda: a.link.away_s > 0)
        own_redis.resume()
        await reader.has(2)

        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        await reader.leave()
        await there.leave()


@pytest.mark.usefixtures("at_once")
async def test_a_turn_that_was_started_twice_is_the_others_afterwards(own_redis: RedisServer) -> None:
    request = fresh()
    async with replicas(own_redis.url) as (a, b):
        theirs = await running(b, request)
        a.link._away_since_s, a.link._retry_at_s = time.monotonic() - 60, time.monotonic() + 1
        ours = await running(a, request)

        with pytest.raises(TurnLostError):
            await ours.ends()
        assert (await a.stop(turn_of(request))).status is TurnStatus.STOPPED
        assert (await theirs.ends())[-1].completed.status == conversation_pb.TURN_STATUS_STOPPED
        assert b.held.cancelled.is_set()


async def test_a_replica_starts_without_redis_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with caplog.at_level(logging.INFO):
        async with replicas(f"redis://:planted-secret@127.0.0.1:{port}/0", number=1):
            pass

    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message for record in warnings] == ["Redis is away, turns are not shared"]
    assert "planted-secret" not in caplog.text


async def test_a_fault_with_one_turn_ends_neither_mirror_nor_poller(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "RENEW_S", 0.1)
    monkeypatch.setattr(poller, "RENEW_S", 0.1)
    faults = iter([True, True])

    async def faulty(*_: object, **__: object) -> None:
        if next(faults, False):
            raise LookupError("a bug")

    async with replicas(own_redis.url) as (a, b):
        request = fresh()
        here = await running(a, request)
        there = Reader(b.watch(turn_of(request)))
        await there.has(2)
        with monkeypatch.context() as patched:
            patched.setattr(a.shared._mirror, "write", faulty)
            patched.setattr(b.shared._poller, "poll", faulty)
            a.log_of(request).emit(Token("x"))
            await until(lambda: not next(faults, False))
        a.held.release.set()

        assert await there.ends() == await here.ends()
    assert "a bug" not in caplog.messages


@pytest.mark.usefixtures("at_once")
async def test_a_log_that_lost_its_beginning_is_told_as_expired(own_redis: RedisServer) -> None:
    request = fresh()
    answerer = HeldAnswerer(last=(*[Token("x")] * 3, ANSWERED))
    async with replicas(own_redis.url, Replica(own_redis.url, answerer), Replica(own_redis.url)) as (a, b):
        here = await running(a, request)
        a.held.release.set()
        await here.ends()
        await Reader(b.watch(turn_of(request))).ends()
        log = f"turn:{{{identified(request)[0].tag}}}:log"
        assert own_redis.ask(f"XTRIM {log} MINID 4-0").startswith(":")

        with pytest.raises(SequenceExpiredError):
            await Reader(b.watch(turn_of(request), 1)).ends()
        rest = Reader(b.watch(turn_of(request), 3))
        await rest.ends()
        assert rest.sequences == [4, 5, 6]
        own_redis.ask(f"DEL {log}")
        with pytest.raises(SequenceExpiredError):
            await Reader(b.watch(turn_of(request), 1)).ends()
