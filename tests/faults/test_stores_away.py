"""Redis away for ten seconds, and PostgreSQL restarted, both under load: what DESIGN.md promises for each holds."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster
from tests.support.cluster_client import NumberedReader, RefusedError, answer, body, words
from tests.support.cluster_load import Load
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150), pytest.mark.needs("postgres", "redis")]

RATE_PER_S = 6
RUN_UP_S = 3
AWAY_S = 10
AFTERWARDS_S = 5
DATABASE_AWAY_S = 3
STORED_LATEST_S = 60
REFUSED_WITHIN_S = 8
DIRECT = 4
HELD_UP_S = 5.0
"""What a Redis that is silent may cost a new turn."""


async def under_load(cluster: Cluster, fault: Callable[[], Awaitable[None]]) -> Load:
    """A load from before the fault to some time after it."""
    over_s: list[float] = []

    async def bring_about() -> None:
        await asyncio.sleep(RUN_UP_S)
        await fault()
        over_s.append(time.monotonic())

    async with Load(cluster, rate_per_s=RATE_PER_S, script=lambda _: Script.of(10, 80)) as load:
        async with asyncio.TaskGroup() as group:
            group.create_task(bring_about())
            group.create_task(load.run(lambda _: not over_s or time.monotonic() - over_s[0] < AFTERWARDS_S))
        unlike = await load.check(timeout_s=STORED_LATEST_S)
    assert not unlike
    return load


async def direct_followers(cluster: Cluster, http: httpx.AsyncClient, script: Script) -> NumberedReader:
    """Follow a turn without ever coming back."""
    reader = NumberedReader(http, script.question)
    response = await reader.ask(cluster.urls[0])
    assert response.status_code == httpx.codes.OK, response.text
    assert reader.log.error is None
    assert (reader.text, reader.status) == (script.answer, "completed")
    return reader


async def stop_soon(http: httpx.AsyncClient, edge: str, reader: NumberedReader) -> int:
    """Press stop while Redis is away. Returns the status: 503 where the owner cannot be reached, and soon."""
    started_s = time.monotonic()
    response = await http.post(f"{edge}/api/chat/{reader.session_id}/stop")
    assert time.monotonic() - started_s < REFUSED_WITHIN_S
    if response.status_code == httpx.codes.OK:
        assert response.json()["status"] == "stopped"
    else:
        assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
        check_refusal(response)
    return response.status_code


def check_refusal(response: httpx.Response) -> None:
    problem: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) >= 1
    assert problem["retryable"] is True


@pytest.mark.alone
async def test_without_redis_turns_run_and_afterwards_they_are_resumed_anywhere(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    through = [Script.of(int((RUN_UP_S + AWAY_S + 3) / 0.1), 100) for _ in range(DIRECT)]
    cut_meanwhile = [Script.of(40, 100) for _ in range(4)]
    stops: Counter[int] = Counter()
    ends: Counter[str] = Counter()

    async with cluster.person() as http:

        async def away() -> None:
            before = [NumberedReader(http, Script.of(600, 50).question) for _ in range(4)]
            for reader in before:
                await reader.ask(cluster.urls[0], words(2))
            cluster.redis.stop()
            gone_s = time.monotonic()
            cut = [NumberedReader(http, script.question) for script in cut_meanwhile]
            async with asyncio.TaskGroup() as group:
                for reader in cut:
                    group.create_task(reader.ask(cluster.urls[0], words(3)))
            coming_back = asyncio.gather(*(reader.finish(cluster.urls[::-1]) for reader in cut))
            for reader in before:
                stops[await stop_soon(http, cluster.urls[1], reader)] += 1
            await asyncio.sleep(max(0.0, gone_s + AWAY_S - time.monotonic()))
            cluster.redis.start()
            await coming_back
            for script, reader in zip(cut_meanwhile, cut, strict=True):
                stored = await answer(http, cluster.urls[0], reader.session_id, script)
                # Where no agent could be asked for it in time, nobody followed it, and the grace ran out.
                assert stored["status"] in {"completed", "interrupted"}
                assert reader.forgotten or (reader.text, reader.status) == (stored["content"], stored["status"])
                assert script.answer.startswith(stored["content"])
                ends[f"{stored['status']}{', by 410' if reader.forgotten else ''}"] += 1

        async with asyncio.TaskGroup() as group:
            direct = [group.create_task(direct_followers(cluster, http, script)) for script in through]
            loading = group.create_task(under_load(cluster, away))
        load = loading.result()
        for script, each in zip(through, direct, strict=True):
            stored = await answer(http, cluster.urls[1], each.result().session_id, script)
            assert stored["content"] == script.answer
        # All is as before, with a Redis that has forgotten everything.
        resumed = [await resumed_elsewhere(cluster, http, number) for number in range(4)]

    figures(
        f"{AWAY_S} s without Redis: {load.summary()}; {len(direct)} direct followers saw nothing of it; "
        f"stops meanwhile {dict(stops)}; cut meanwhile {dict(ends)}; {len(resumed)} resumed elsewhere afterwards"
    )
    assert not load.problems
    assert set(stops) <= {200, 503}
    assert not load.met["ConnectError"]


@pytest.mark.alone
async def test_while_redis_hangs_new_turns_run_and_stop_is_answered(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    late_s: list[float] = []
    long = Script.of(600, 50)

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        script = Script.of(10, 50)
        reader = NumberedReader(http, script.question)
        started_s = time.monotonic()
        await reader.ask(cluster.urls[number % 2])
        late_s.append(time.monotonic() - started_s - script.duration_s)
        assert (reader.text, reader.status) == (script.answer, "completed")

    async with cluster.person() as http:
        reader = NumberedReader(http, long.question)
        await reader.ask(cluster.urls[0], words(2))
        cluster.redis.pause()
        try:
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                stopping = group.create_task(stop_soon(http, cluster.urls[1], reader))
                for number in range(4):
                    group.create_task(ask(http, number))
        finally:
            cluster.redis.resume()

    figures(f"{len(late_s)} turns without an answering Redis: {max(late_s):.2f} s late; stop: {stopping.result()}")
    assert max(late_s) <= HELD_UP_S


async def resumed_elsewhere(cluster: Cluster, http: httpx.AsyncClient, number: int) -> NumberedReader:
    script = Script.of(20, 50)
    reader = NumberedReader(http, script.question)
    await reader.ask(cluster.urls[number % 2], words(4))
    await reader.finish([cluster.urls[1 - number % 2]])
    assert (reader.text, reader.status) == (script.answer, "completed")
    return reader


@pytest.mark.alone
async def test_postgresql_restarted_under_load_loses_no_acknowledged_message(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    refused: list[httpx.Response] = []

    async with cluster.person() as http:

        async def restart() -> None:
            await asyncio.to_thread(cluster.postgres.stop)
            refused.extend([await ask_once(http, edge) for edge in cluster.urls])
            await asyncio.sleep(DATABASE_AWAY_S)
            await asyncio.to_thread(cluster.postgres.start)

        load = await under_load(cluster, restart)

    figures(f"PostgreSQL restarted, {DATABASE_AWAY_S} s away: {load.summary()}")
    assert [response.status_code for response in refused] == [503, 503]
    for response in refused:
        check_refusal(response)
    assert not load.problems
    assert all(turn.acknowledged for turn in load.turns)


async def ask_once(http: httpx.AsyncClient, edge: str) -> httpx.Response:
    started_s = time.monotonic()
    response = await http.post(f"{edge}/api/chat", json=body("Is anybody there?"))
    assert time.monotonic() - started_s < REFUSED_WITHIN_S
    return response


async def test_a_message_that_was_never_acknowledged_can_be_sent_again_with_its_key(cluster: Cluster) -> None:
    script = Script.of(5, 20)
    async with cluster.person() as http:
        cluster.postgres.stop()
        try:
            reader = NumberedReader(http, script.question)
            with pytest.raises(RefusedError, match="nothing came"):
                await reader.finish(cluster.urls, patience_s=2)
        finally:
            cluster.postgres.start()
        await reader.finish(cluster.urls)
        stored = await answer(http, cluster.urls[0], reader.session_id, script)

    assert set(reader.met) == {"503"}
    assert reader.text == stored["content"] == script.answer
    assert len(cluster.model.calls(script)) == 1
