"""Both edges and both agents restarted one after the other, under a steady load: nobody loses anything."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster
from tests.support.cluster_load import Load
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(200), pytest.mark.needs("postgres", "redis")]

RATE_PER_S = 20
LOAD_S = 60
LONGEST_S = 90
RUN_UP_S = 3
STOP_S = 40


def script(number: int) -> Script:
    """Short answers, and now and then one that outlasts every grace of a restart."""
    return Script.of(16, 500) if number % 40 == 5 else Script.of(6, 100)


async def restart(cluster: Cluster, name: str) -> str:
    """SIGTERM, wait for its end, start it again, wait until it can be used. Returns what that took."""
    process = cluster.processes[name]
    started_s = time.monotonic()
    process.signal(signal.SIGTERM)
    code = await asyncio.to_thread(process.wait, STOP_S)
    ended_s = time.monotonic()
    assert code == 0, f"{name} ended with {code}"
    process.start()
    await asyncio.to_thread(cluster.wait_ready, name)
    return f"{name} {ended_s - started_s:.1f}+{time.monotonic() - ended_s:.1f} s"


async def test_a_rolling_restart_under_load_loses_no_turn(cluster: Cluster, figures: Callable[[str], None]) -> None:
    restarts: list[str] = []
    done = asyncio.Event()

    async def roll() -> None:
        await asyncio.sleep(RUN_UP_S)
        for name in ("edge0", "agent0", "edge1", "agent1"):
            took = await restart(cluster, name)
            restarts.append(took)
        done.set()

    async with Load(cluster, rate_per_s=RATE_PER_S, script=script) as load:
        async with asyncio.TaskGroup() as group:
            group.create_task(roll())
            group.create_task(load.run(lambda s: s < LOAD_S or (s < LONGEST_S and not done.is_set())))
        figures(f"{load.summary()}; restarts (end + start): {', '.join(restarts)}")
        unlike = await load.check(timeout_s=20)
    calls = Counter(len(cluster.model.calls(turn.script)) for turn in load.turns)

    figures(f"model calls a turn: {dict(calls)}")
    assert done.is_set()
    assert len(load.turns) >= RATE_PER_S * LOAD_S * 0.95
    assert not load.problems
    assert not unlike
    assert all(turn.status == "completed" for turn in load.turns)
    # Asked again or not, nobody pays twice.
    assert set(calls) == {1}
