"""One of two edges is killed, or stands still, in mid-answer: the other one goes on with its turns."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.support.cluster import GRACE_S, LEASE_S, Cluster
from tests.support.cluster_client import NumberedReader, answer, answer_within, ask_whole, becomes_true, words
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180), pytest.mark.needs("postgres", "redis")]

KILLS = 20
READERS = 2
ADOPTED_S = LEASE_S + 6
"""When a turn that was over meanwhile is stored by another edge: the lease, a look every few seconds, the storing."""

WAKES_S = 3


async def test_an_edge_killed_in_mid_answer_20_times_costs_nobody_a_word(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    met: Counter[str] = Counter()
    asked: list[tuple[Script, str]] = []

    async def follow(http: httpx.AsyncClient, first: str, other: str, begun: asyncio.Semaphore) -> None:
        script = Script.of(40, 40)
        reader = NumberedReader(http, script.question)
        reader.met = met
        some = random.randrange(2, 20)

        def is_under_way(reader: NumberedReader) -> bool:
            if len(reader.log.words) >= some:
                begun.release()
            return False

        try:
            await reader.ask(first, is_under_way)
        except httpx.TransportError as err:
            met[type(err).__name__] += 1
        await reader.finish([other, first])
        assert (reader.text, reader.status) == (script.answer, "completed")
        asked.append((script, reader.session_id))

    async def wait(http: httpx.AsyncClient, first: str, other: str) -> None:
        """A client that wants the whole answer: it sends its request again, and gets the same turn."""
        script = Script.of(40, 40)
        reply = await ask_whole(http, [first, other], script, met)
        assert reply["answer"] == script.answer
        asked.append((script, reply["session_id"]))

    async with cluster.person() as http:
        async with asyncio.TaskGroup() as group:
            for number in range(KILLS):
                edge, (first, other) = cluster.edges[number % 2], cluster.urls[:: -1 if number % 2 else 1]
                begun = asyncio.Semaphore(0)
                for _ in range(READERS):
                    group.create_task(follow(http, first, other, begun))
                group.create_task(wait(http, first, other))
                await asyncio.wait_for(begun.acquire(), 20)
                cluster.kill(edge)
                edge.start()
                await asyncio.to_thread(cluster.wait_ready, f"edge{number % 2}")
        stored = [await answer(http, cluster.urls[0], session, script) for script, session in asked]

    figures(f"{KILLS} kills, {len(asked)} answers whole and stored once; clients met {dict(met)}")
    assert len(asked) == KILLS * (READERS + 1)
    assert [each["content"] for each in stored] == [script.answer for script, _ in asked]
    assert {each["status"] for each in stored} == {"completed"}
    assert {len(cluster.model.calls(script)) for script, _ in asked} == {1}
    # Each kill cuts at least the reader who had just read.
    assert sum(met.values()) >= KILLS


async def test_turns_of_a_killed_edge_are_adopted_when_nobody_comes_back(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    # These end before the grace does, and those would go on for long after it.
    short, long = [Script.of(40, 50) for _ in range(4)], [Script.of(400, 50) for _ in range(4)]
    took_s: Counter[str] = Counter()

    async with cluster.person() as http:
        readers = {script: NumberedReader(http, script.question) for script in (*short, *long)}
        async with asyncio.TaskGroup() as group:
            for reader in readers.values():
                group.create_task(reader.ask(cluster.urls[0], words(4)))
        following = [asyncio.create_task(reader.resume(cluster.urls[0])) for reader in readers.values()]
        await becomes_true(lambda: all(len(reader.log.words) > 5 for reader in readers.values()), 10)
        killed_s = cluster.kill(cluster.edges[0])
        await asyncio.wait(following, timeout=10)
        assert all(isinstance(each.exception(), httpx.TransportError) for each in following)
        for script, reader in readers.items():
            stored = await answer_within(http, [cluster.urls[1]], reader.session_id, script, 2 * ADOPTED_S)
            took_s[stored["status"]] = max(took_s[stored["status"]], round(time.monotonic() - killed_s))
            assert stored["status"] == ("completed" if script in short else "interrupted")
            assert script.answer.startswith(stored["content"])
            assert stored["content"].startswith(reader.text)
            assert (stored["content"] == script.answer) is (script in short)
        hung_up = [cluster.model.call(script).hung_up_s for script in long]
        waited_s = [at - killed_s for at in hung_up if at is not None]
        again = [await answer(http, cluster.urls[1], reader.session_id, script) for script, reader in readers.items()]

    shown = ", ".join(f"{wait:.1f}" for wait in sorted(waited_s))
    figures(
        f"adopted and stored, at most so many s after the kill: {dict(took_s)}; "
        f"the model was hung up on after {shown} s of a grace of {GRACE_S} s"
    )
    assert len(again) == len(readers)
    assert len(waited_s) == len(long)
    assert max(took_s.values()) <= ADOPTED_S
    assert min(waited_s) >= GRACE_S - 0.5
    assert max(waited_s) <= GRACE_S + 2


async def test_an_edge_that_stood_still_and_wakes_stores_nothing_twice(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    seen, unseen = [Script.of(60, 50) for _ in range(3)], [Script.of(60, 50) for _ in range(3)]
    async with cluster.person(read_s=2) as http:
        readers = {script: NumberedReader(http, script.question) for script in (*seen, *unseen)}
        following = [asyncio.create_task(reader.ask(cluster.urls[0])) for reader in readers.values()]
        await becomes_true(lambda: all(len(reader.log.words) > 3 for reader in readers.values()), 10)
        cluster.edges[0].signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        # Their clients hear nothing and hang up; some go on through the other edge, the others stay away.
        await asyncio.wait(following, timeout=10)
        assert all(isinstance(each.exception(), httpx.ReadTimeout) for each in following)
        async with asyncio.TaskGroup() as group:
            for script in seen:
                group.create_task(readers[script].finish([cluster.urls[1]]))
        resumed_s = time.monotonic() - stopped_s
        before = {
            script: await answer_within(http, [cluster.urls[1]], reader.session_id, script, 2 * ADOPTED_S)
            for script, reader in readers.items()
        }
        stored_s = time.monotonic() - stopped_s
        # Its lease is over by now, in any case.
        await asyncio.sleep(max(0.0, LEASE_S + 1 - stored_s))
        cluster.edges[0].signal(signal.SIGCONT)
        await asyncio.to_thread(cluster.wait_ready, "edge0")
        await asyncio.sleep(WAKES_S)
        after = {
            script: await answer(http, cluster.urls[1], reader.session_id, script) for script, reader in readers.items()
        }
        fresh = Script.of(5, 10)
        newcomer = NumberedReader(http, fresh.question)
        await newcomer.finish([cluster.urls[0]])

    figures(f"resumed elsewhere after {resumed_s:.1f} s, all {len(before)} stored after {stored_s:.1f} s, once")
    assert cluster.edges[0].exit_code is None
    assert [readers[script].text for script in seen] == [script.answer for script in seen]
    assert {script: each["content"] for script, each in before.items()} == {s: s.answer for s in readers}
    assert {each["status"] for each in before.values()} == {"completed"}
    assert after == before
    assert stored_s <= ADOPTED_S
    assert newcomer.text == fresh.answer
