"""One suite over buckets in this process and in Redis, and what happens when Redis stops or hangs."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from redis import Redis

from edge_api.errors import RateLimitedError
from edge_api.limits import Bucket, RateLimits
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, redis_server

LEAVE_ALONE_S = 0.1

# Of the tests in which Redis hangs; elsewhere a busy machine is given more.
TIMEOUT_S = 0.5
PATIENT_S = 10.0

# What this machine may add to a time limit.
SLACK_S = 1.0


class MakeBuckets(Protocol):
    def __call__(self, rates: dict[Bucket, str], **options: Any) -> RateLimits: ...


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.needs("redis"))])
def url(request: pytest.FixtureRequest) -> str | None:
    """Where the buckets are; None: in this process."""
    if request.param == "memory":
        return None
    server: RedisServer = request.getfixturevalue("redis")
    server.flush()
    return server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may stop or pause."""
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def make() -> AsyncIterator[MakeBuckets]:
    made: list[RateLimits] = []

    def make_one(rates: dict[Bucket, str], **options: Any) -> RateLimits:
        made.append(RateLimits(rates, **{"redis_timeout_s": PATIENT_S, "leave_alone_s": LEAVE_ALONE_S} | options))
        return made[-1]

    yield make_one
    for each in made:
        await each.close()


async def passes(buckets: RateLimits, key: str = "anna", bucket: Bucket = "user") -> bool:
    try:
        await buckets.hit(bucket, key)
    except RateLimitedError:
        return False
    return True


async def passed_of(buckets: RateLimits, count: int, key: str = "anna") -> int:
    """How many of some requests at once are let through."""
    return sum(await asyncio.gather(*(passes(buckets, key) for _ in range(count))))


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "edge_api.limits" and each.levelno == level]


async def use_until_logged(buckets: RateLimits, caplog: pytest.LogCaptureFixture, message: str) -> None:
    """Send requests of somebody else until it is in the log."""
    async with asyncio.timeout(10):
        while not any(message in each.getMessage() for each in caplog.records):
            await passes(buckets, "somebody else")
            await asyncio.sleep(0.01)


async def test_exactly_the_rate_is_let_through(url: str | None, make: MakeBuckets) -> None:
    buckets = make({"user": "3/minute"}, redis_url=url)

    assert [await passes(buckets) for _ in range(5)] == [True, True, True, False, False]


async def test_exactly_the_rate_is_let_through_when_all_come_at_once(url: str | None, make: MakeBuckets) -> None:
    buckets = make({"user": "7/minute"}, redis_url=url)

    assert await passed_of(buckets, 40) == 7


async def test_keys_and_buckets_are_counted_apart(url: str | None, make: MakeBuckets) -> None:
    buckets = make({"user": "1/minute", "login": "1/minute"}, redis_url=url)

    assert [await passes(buckets, key) for key in ("anna", "berta", "anna")] == [True, True, False]
    assert await passes(buckets, "anna", "login")


async def test_a_bucket_that_is_off_counts_nothing(url: str | None, make: MakeBuckets) -> None:
    buckets = make({"user": "off"}, redis_url=url)

    assert await passed_of(buckets, 200) == 200


async def test_keys_may_hold_anything(url: str | None, make: MakeBuckets) -> None:
    buckets = make({"user": "1/minute"}, redis_url=url)
    hostile = ["", "a/60/1/minute", "a\r\nFLUSHALL\r\n", "{}*", "\x00", "\ud800", "ä" * 100_000, "ä" * 100_001]

    assert [await passes(buckets, key) for key in hostile] == [True] * len(hostile)
    assert [await passes(buckets, key) for key in hostile] == [False] * len(hostile)


@pytest.mark.alone
async def test_a_refusal_says_when_the_next_request_passes(url: str | None, make: MakeBuckets) -> None:
    buckets = make({"user": "2/second"}, redis_url=url)
    started_s = time.monotonic()
    assert [await passes(buckets) for _ in range(2)] == [True, True]

    with pytest.raises(RateLimitedError) as refused:
        await buckets.hit("user", "anna")
    told_s = time.monotonic() + refused.value.retry_after_s
    # Refused requests are not counted, so asking again and again does not move the end.
    async with asyncio.timeout(10):
        while not await passes(buckets):
            assert time.monotonic() < told_s + SLACK_S
            await asyncio.sleep(0.005)

    assert time.monotonic() > told_s - 0.05
    assert told_s == pytest.approx(started_s + 1, abs=SLACK_S / 2)


async def test_closing_leaves_no_task_behind(url: str | None) -> None:
    buckets = RateLimits({"user": "3/minute"}, redis_url=url)
    await passed_of(buckets, 20)

    await buckets.close()

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_all_is_well_while_nothing_is_missing(url: str | None, make: MakeBuckets) -> None:
    assert await make({"user": "3/minute"}, redis_url=url).check() == "ok"


@pytest.mark.needs("redis")
async def test_edges_over_one_redis_count_together(redis: RedisServer, make: MakeBuckets) -> None:
    redis.flush()
    one, other = (make({"user": "4/minute"}, redis_url=redis.url) for _ in range(2))

    passed = [await passes(edge) for edge in (one, other, one, other, one, other)]

    assert passed == [True] * 4 + [False] * 2


@pytest.mark.needs("redis")
async def test_redis_is_told_no_names_and_forgets_on_its_own(redis: RedisServer, make: MakeBuckets) -> None:
    redis.flush()
    await passed_of(make({"user": "4/minute"}, redis_url=redis.url), 10, key="anna@example.org")

    with Redis.from_url(redis.url, decode_responses=True) as client:
        (key,) = client.keys("*")
        assert "anna" not in key
        assert client.llen(key) == 4
        assert 0 < client.ttl(key) <= 60


@pytest.mark.needs("redis")
async def test_local_buckets_decide_while_redis_is_away(
    own_redis: RedisServer, make: MakeBuckets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    buckets = make({"user": "2/minute"}, redis_url=own_redis.url)
    assert await passes(buckets)

    own_redis.stop()

    assert await passed_of(buckets, 20) == 2, "this process counts from its own zero"
    assert await buckets.check() == "unreachable"
    assert messages(caplog, logging.WARNING) == ["Redis is away, each edge counts on its own"]

    own_redis.start()
    await use_until_logged(buckets, caplog, "Redis is back")

    assert await passed_of(buckets, 20) == 2, "the new server counts from zero"
    assert not await passes(make({"user": "2/minute"}, redis_url=own_redis.url)), "and counts for all edges again"
    assert await buckets.check() == "ok"
    assert len(messages(caplog, logging.WARNING)) == 1
    assert messages(caplog, logging.INFO) == ["Redis is back, edges count together"]


@pytest.mark.needs("redis")
async def test_a_restart_between_two_requests_is_no_outage(
    own_redis: RedisServer, make: MakeBuckets, caplog: pytest.LogCaptureFixture
) -> None:
    buckets = make({"user": "2/minute"}, redis_url=own_redis.url)
    await passed_of(buckets, 20)

    # In a thread: the event loop has to see that the connections were closed.
    await asyncio.to_thread(own_redis.stop)
    await asyncio.to_thread(own_redis.start)

    assert await passed_of(buckets, 20) == 2
    assert messages(caplog, logging.WARNING) == []


async def test_an_outage_is_logged_without_the_password(make: MakeBuckets, caplog: pytest.LogCaptureFixture) -> None:
    buckets = make({"user": "2/minute"}, redis_url=f"redis://:geheim@127.0.0.1:{free_port()}/0")

    assert await passed_of(buckets, 20) == 2
    assert await buckets.check() == "unreachable"
    (record,) = [each for each in caplog.records if each.name == "edge_api.limits"]
    assert record.__dict__["reason"] == "ConnectionError"
    assert "geheim" not in repr(record.__dict__)


@pytest.mark.alone
@pytest.mark.needs("redis")
async def test_a_redis_that_hangs_delays_a_request_by_its_time_limit_once(
    own_redis: RedisServer, make: MakeBuckets, caplog: pytest.LogCaptureFixture
) -> None:
    buckets = make({"user": "5/minute"}, redis_url=own_redis.url, redis_timeout_s=TIMEOUT_S, leave_alone_s=60.0)
    assert await passes(buckets)
    own_redis.pause()

    # Many more than there are connections: waiting for one is within the limit too.
    started_s = time.monotonic()
    assert await passed_of(buckets, 200) == 5
    first_s = time.monotonic() - started_s
    assert await passed_of(buckets, 200) == 0
    left_alone_s = time.monotonic() - started_s - first_s

    assert TIMEOUT_S * 0.9 < first_s < TIMEOUT_S + SLACK_S
    assert left_alone_s < TIMEOUT_S / 2
    assert len(messages(caplog, logging.WARNING)) == 1


@pytest.mark.alone
@pytest.mark.needs("redis")
async def test_one_request_at_a_time_tries_a_redis_that_hangs(own_redis: RedisServer, make: MakeBuckets) -> None:
    buckets = make({"user": "1000/minute"}, redis_url=own_redis.url, redis_timeout_s=TIMEOUT_S, leave_alone_s=0.0)
    own_redis.pause()
    await passes(buckets)
    # From here on the next request may try; it takes its turn for ten seconds.
    shared: Any = buckets._shared
    shared._leave_alone_s = 10.0

    trying = asyncio.create_task(passes(buckets))
    await asyncio.sleep(0)
    started_s = time.monotonic()
    assert await passed_of(buckets, 50) == 50

    assert time.monotonic() - started_s < TIMEOUT_S / 2
    assert not trying.done()
    assert await trying


@pytest.mark.needs("redis")
async def test_answers_that_come_too_late_are_never_taken_for_others(
    own_redis: RedisServer, make: MakeBuckets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    buckets = make({"user": "3/minute"}, redis_url=own_redis.url, redis_timeout_s=TIMEOUT_S)
    assert await passes(buckets, "anna")
    own_redis.pause()
    # One waits until its time is up, one is given up by its client.
    assert await passes(buckets, "late")
    left = asyncio.create_task(passes(buckets, "left"))
    await asyncio.sleep(0)
    left.cancel()

    own_redis.resume()
    await use_until_logged(buckets, caplog, "Redis is back")

    assert await passed_of(buckets, 20, "anna") == 2
    assert await passed_of(buckets, 20, "berta") == 3


@pytest.mark.alone
@pytest.mark.needs("redis")
async def test_a_redis_that_hangs_delays_neither_the_check_nor_the_end(own_redis: RedisServer) -> None:
    buckets = RateLimits({"user": "5/minute"}, redis_url=own_redis.url)
    await passed_of(buckets, 20)
    own_redis.pause()
    started_s = time.monotonic()

    assert await buckets.check() == "unreachable"
    await buckets.close()

    assert time.monotonic() - started_s < 1.0 + TIMEOUT_S + SLACK_S
    assert asyncio.all_tasks() == {asyncio.current_task()}
