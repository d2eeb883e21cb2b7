"""Connections that are cut, and people who leave: the turn goes on where it should, and ends where it should."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.support.cluster import GRACE_S, Cluster, percentile
from tests.support.cluster_client import NumberedReader, answer, answer_within, becomes_true, body, words
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120), pytest.mark.needs("postgres", "redis")]

CUTS = 50
AT_ONCE = 10
LONGEST_BYTES = 4_000

HANG_UPS = 256
LEAVING_AT_ONCE = 8
REACHES_MODEL_S = 0.1

LEAVERS = 4
LATE_S = 1.5
"""How much later than the grace a turn may be ended, and how long that may take to reach the model."""


async def cut_somewhere(http: httpx.AsyncClient, edge: str) -> tuple[Script, NumberedReader]:
    """Ask, and hang up at a random byte of the answer."""
    most = LONGEST_BYTES
    while True:
        script = Script.of(40, 25)
        reader = NumberedReader(http, script.question)
        await reader.ask(edge, cut_at=random.randrange(1, most))
        if reader.log.complete is None:
            return script, reader
        # It came after the end.
        most //= 2


async def test_an_answer_cut_anywhere_goes_on_without_gap_or_duplicate(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    cut_at: list[int] = []
    free = asyncio.Semaphore(AT_ONCE)

    async def cut(http: httpx.AsyncClient, number: int) -> None:
        first, other = cluster.urls[number % 2], cluster.urls[1 - number % 2]
        async with free:
            script, reader = await cut_somewhere(http, first)
            cut_at.append(reader.bytes)
            # Of four in a row: from the one edge to itself and to the other, and likewise from the other.
            await reader.finish([first if number % 4 < 2 else other])
            stored = await answer(http, first, reader.session_id, script)

        assert (reader.text, reader.status) == (script.answer, "completed")
        assert stored["content"] == script.answer
        assert len(cluster.model.calls(script)) == 1

    async with cluster.person() as http, asyncio.TaskGroup() as group:
        for number in range(CUTS):
            group.create_task(cut(http, number))

    shown = ", ".join(f"{percentile(cut_at, share):.0f}" for share in (0, 0.5, 1))
    figures(f"{len(cut_at)} of {CUTS} answers whole after a cut, half through the other edge; at bytes {shown}")
    assert len(cut_at) == CUTS


async def test_one_answer_may_be_cut_again_and_again(cluster: Cluster, figures: Callable[[str], None]) -> None:
    script = Script.of(150, 40)
    cuts = 0
    async with cluster.person() as http:
        reader = NumberedReader(http, script.question)
        edges = itertools.cycle(cluster.urls)
        await reader.ask(next(edges), words(1))
        while cuts < CUTS:
            response = await reader.resume(next(edges), cut_at=random.randrange(1, 250))
            assert response.status_code == httpx.codes.OK, response.text
            cuts += 1
        in_time = reader.log.complete is None
        await reader.finish(edges)
        stored = await answer(http, next(edges), reader.session_id, script)

    figures(f"one answer cut {cuts} times, every time another edge")
    assert in_time
    assert (reader.text, reader.status) == (script.answer, "completed")
    assert stored["content"] == script.answer
    assert len(cluster.model.calls(script)) == 1


async def test_whoever_asks_for_the_end_twice_is_told_that_there_is_no_more(cluster: Cluster) -> None:
    script = Script.of(5, 10)
    async with cluster.person() as http:
        reader = NumberedReader(http, script.question)
        await reader.ask(cluster.urls[0])
        at_the_end = [await reader.resume(edge) for edge in cluster.urls]
        again = NumberedReader.of(http, reader)
        await again.finish([cluster.urls[1]])

    assert [response.status_code for response in at_the_end] == [204, 204]
    assert again.log == reader.log


async def leave(cluster: Cluster, http: httpx.AsyncClient, number: int) -> float:
    """Ask, hang up in mid-answer. Returns how long that took to reach the model. Seconds."""
    script = Script.of(100, 50)
    edge = cluster.urls[number % 2]
    some = random.randrange(1, 10)
    # Every fourth is a client that waits for the whole answer and has seen nothing of it.
    if number % 4 == 3:
        asking = asyncio.create_task(http.post(f"{edge}/api/chat", json=body(script.question)))
        await becomes_true(lambda: bool(cluster.model.calls(script)), 10)
        await asyncio.sleep(some * 0.05)
        left_s = time.monotonic()
        asking.cancel()
        await asyncio.wait([asking], timeout=5)
    else:
        reader = NumberedReader(http, script.question)

        def enough(reader: NumberedReader) -> bool:
            nonlocal left_s
            left_s = time.monotonic()
            return len(reader.log.words) >= some

        left_s = 0.0
        await reader.ask(edge, enough)
    await becomes_true(lambda: not cluster.model.call(script).runs, 10)
    seen_s = cluster.model.call(script).hung_up_s
    assert seen_s is not None, "the model answered to the end"
    if number % 4 != 3:
        stored = await answer_within(http, [edge], reader.session_id, script, 5)
        assert stored["status"] == "interrupted"
        assert script.answer.startswith(stored["content"])
        assert stored["content"].startswith(reader.text)
    return seen_s - left_s


@pytest.mark.alone
async def test_256_hang_ups_without_grace_are_seen_by_the_model_at_once(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    cluster.use(EDGE_DISCONNECT_GRACE_S="0")
    took_s: list[float] = []
    free = asyncio.Semaphore(LEAVING_AT_ONCE)

    async def left(http: httpx.AsyncClient, number: int) -> None:
        async with free:
            took_s.append(await leave(cluster, http, number))

    async with cluster.person() as http, asyncio.TaskGroup() as group:
        for number in range(HANG_UPS):
            group.create_task(left(http, number))

    shown = ", ".join(f"{1000 * percentile(took_s, share):.0f}" for share in (0.5, 0.95, 0.99, 1))
    figures(f"{len(took_s)} of {HANG_UPS} hang-ups seen by the model; p50, p95, p99, most: {shown} ms")
    assert len(took_s) == HANG_UPS
    assert percentile(took_s, 0.99) <= REACHES_MODEL_S


@pytest.mark.alone
async def test_with_a_grace_only_a_turn_that_nobody_follows_any_more_is_ended(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    ended: Counter[str] = Counter()
    waited_s: list[float] = []

    async def started(http: httpx.AsyncClient, number: int) -> tuple[Script, NumberedReader, list[str]]:
        script = Script.of(90, 100)
        edges = [cluster.urls[number % 2], cluster.urls[1 - number % 2]]
        reader = NumberedReader(http, script.question)
        await reader.ask(edges[0], words(3))
        return script, reader, edges

    async def nobody(http: httpx.AsyncClient, number: int) -> None:
        script, reader, edges = await started(http, number)
        left_s = time.monotonic()
        await becomes_true(lambda: not cluster.model.call(script).runs, GRACE_S + 5)
        seen_s = cluster.model.call(script).hung_up_s
        assert seen_s is not None
        waited_s.append(seen_s - left_s)
        stored = await answer_within(http, edges, reader.session_id, script, 5)
        assert script.answer.startswith(stored["content"])
        assert stored["content"].startswith(reader.text)
        # Who comes back later finds the turn as it ended.
        await reader.finish([edges[1]])
        assert reader.text == stored["content"]
        assert reader.status == stored["status"] == "interrupted"
        ended["ended, nobody there"] += 1

    async def second(http: httpx.AsyncClient, number: int) -> None:
        script = Script.of(90, 100)
        first = NumberedReader(http, script.question)
        asking = asyncio.create_task(first.ask(cluster.urls[number % 2], words(5)))
        await becomes_true(lambda: bool(first.log.start), 10)
        follower = NumberedReader.of(http, first)
        await follower.resume(cluster.urls[1 - number % 2])
        await asking
        assert (follower.text, follower.status) == (script.answer, "completed")
        ended["followed on the other edge"] += 1

    async def back(http: httpx.AsyncClient, number: int) -> None:
        script, reader, edges = await started(http, number)
        await asyncio.sleep(GRACE_S - 2)
        await reader.finish([edges[1]])
        assert (reader.text, reader.status) == (script.answer, "completed")
        ended["back within the grace"] += 1

    async with cluster.person() as http, asyncio.TaskGroup() as group:
        for number in range(LEAVERS):
            for kind in (nobody, second, back):
                group.create_task(kind(http, number))

    shown = ", ".join(f"{wait:.2f}" for wait in sorted(waited_s))
    figures(f"{dict(ended)}; the model was hung up on after {shown} s of a grace of {GRACE_S} s")
    assert set(ended.values()) == {LEAVERS}
    assert min(waited_s) >= GRACE_S - 0.1
    assert max(waited_s) <= GRACE_S + LATE_S
