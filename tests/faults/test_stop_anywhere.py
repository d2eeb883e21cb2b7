"""A person presses stop: the model is hung up on wherever the turn runs, whichever edge was asked."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, percentile
from tests.support.cluster_client import NumberedReader, answer, becomes_true
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120), pytest.mark.needs("postgres", "redis")]

STOPS = 20
AT_ONCE = 4
REACHES_MODEL_S = 1.0


async def press_stop(http: httpx.AsyncClient, edge: str, reader: NumberedReader) -> tuple[float, httpx.Response]:
    """Returns when it was pressed, and the reply."""
    pressed_s = time.monotonic()
    return pressed_s, await http.post(f"{edge}/api/chat/{reader.session_id}/stop")


def check_reply(reply: dict[str, Any], reader: NumberedReader) -> None:
    start = reader.log.start
    assert {name: reply[name] for name in ("session_id", "conversation_id", "turn_id", "message_id")} == {
        "session_id": start["session_id"],
        "conversation_id": start["session_id"],
        "turn_id": start["turn_id"],
        "message_id": start["message_id"],
    }
    assert reply["status"] == "stopped"
    assert reply["usage"]["total_tokens"] > 0
    assert 0 <= reply["abort_ms"] <= 1000 * REACHES_MODEL_S


@pytest.mark.alone
async def test_stop_through_the_other_edge_ends_the_turn_on_whichever_agent_it_runs(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    seen_s: list[float] = []
    abort_ms: list[float] = []
    agents: Counter[int] = Counter()
    free = asyncio.Semaphore(AT_ONCE)

    async def stopped(http: httpx.AsyncClient, number: int) -> None:
        script = Script.of(200, 50)
        reader = NumberedReader(http, script.question)
        some = random.randrange(1, 20)
        async with free, asyncio.TaskGroup() as group:
            group.create_task(reader.ask(cluster.urls[number % 2]))
            await becomes_true(lambda: len(reader.log.words) >= some, 10)
            pressed_s, response = await press_stop(http, cluster.urls[1 - number % 2], reader)
            # The reply leaves when all is stored.
            assert response.status_code == httpx.codes.OK, response.text
            stored = await answer(http, cluster.urls[1 - number % 2], reader.session_id, script)
        reply, call = response.json(), cluster.model.call(script)
        check_reply(reply, reader)
        assert call.hung_up_s is not None
        seen_s.append(call.hung_up_s - pressed_s)
        abort_ms.append(reply["abort_ms"])
        agents[call.agent] += 1
        assert reader.status == stored["status"] == "stopped"
        assert stored["content"] == reader.text
        assert script.answer.startswith(reader.text)
        assert some <= len(reader.text.split()) < script.words
        assert stored["usage"] == reply["usage"]

    async with cluster.person() as http, asyncio.TaskGroup() as group:
        for number in range(STOPS):
            group.create_task(stopped(http, number))

    shown = ", ".join(f"{1000 * percentile(seen_s, share):.0f}" for share in (0.5, 1))
    aborts = ", ".join(f"{percentile(abort_ms, share):.1f}" for share in (0.5, 1))
    figures(
        f"{len(seen_s)} of {STOPS} stopped, by agent {dict(agents)}; seen by the model (p50, most) after "
        f"{shown} ms; abort_ms {aborts}"
    )
    assert len(seen_s) == STOPS
    assert max(seen_s) <= REACHES_MODEL_S
    # Turns go round the agents; each has had its share.
    assert min(agents[0], agents[1]) >= STOPS // 5


async def test_after_a_stop_the_session_goes_on(cluster: Cluster) -> None:
    stopped, following = Script.of(200, 50), Script.of(5, 10)
    async with cluster.person() as http:
        reader = NumberedReader(http, stopped.question)
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.ask(cluster.urls[0]))
            await becomes_true(lambda: len(reader.log.words) >= 3, 10)
            busy = await http.post(f"{cluster.urls[1]}/api/chat/{reader.session_id}", json={"message": "And now?"})
            _, response = await press_stop(http, cluster.urls[1], reader)
        then = NumberedReader(http, following.question, session_id=reader.session_id)
        await then.ask(cluster.urls[1])

    assert (busy.status_code, busy.json()["code"]) == (409, "turn_running")
    assert busy.json()["turn_id"] == reader.turn_id
    assert response.status_code == httpx.codes.OK
    assert (then.text, then.status) == (following.answer, "completed")
