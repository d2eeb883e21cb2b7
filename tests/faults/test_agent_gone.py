"""One of two agents is killed in mid-answer: its turns fail clearly and can be asked again; the other's go on."""

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest

from tests.support.cluster import Cluster
from tests.support.cluster_client import NumberedReader, answer, becomes_true, messages
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(120), pytest.mark.needs("postgres", "redis")]

TURNS = 6
TOLD_S = 6.0


async def until_error(reader: NumberedReader, edge: str, *, resume: bool) -> float:
    """Follow to the end of the stream. Returns when that was."""
    response = await (reader.resume(edge) if resume else reader.ask(edge))
    assert response.status_code == httpx.codes.OK, response.text
    return time.monotonic()


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_killed_agents_turns_fail_soon_and_regenerate_works(
    cluster: Cluster, figures: Callable[[str], None], victim: int
) -> None:
    scripts = [Script.of(40, 100) for _ in range(TURNS)]
    async with cluster.person() as http:
        asked = {script: NumberedReader(http, script.question) for script in scripts}
        edges = {script: cluster.urls[:: -1 if number % 2 else 1] for number, script in enumerate(scripts)}
        ended: dict[Script, list[asyncio.Task[float]]] = {
            script: [asyncio.create_task(until_error(reader, edges[script][0], resume=False))]
            for script, reader in asked.items()
        }
        await becomes_true(lambda: all(reader.log.start for reader in asked.values()), 10)
        others = {script: NumberedReader.of(http, reader) for script, reader in asked.items()}
        for script, reader in others.items():
            ended[script].append(asyncio.create_task(until_error(reader, edges[script][1], resume=True)))
        followers = [*asked.values(), *others.values()]
        await becomes_true(lambda: all(len(reader.log.words) > 8 for reader in followers), 10)
        lost = [script for script in scripts if cluster.model.call(script).agent == victim]
        killed_s = cluster.kill(cluster.agents[victim])
        at_s = {script: await asyncio.gather(*tasks) for script, tasks in ended.items()}
        told_s = [each - killed_s for script in lost for each in at_s[script]]
        untouched = [script for script in scripts if script not in lost]

        kept_words: list[int] = []
        for script in lost:
            partial = await answer(http, edges[script][0], asked[script].session_id, script)
            assert partial["status"] == "failed"
            assert script.answer.startswith(partial["content"])
            kept_words.append(len(partial["content"].split()))
            for reader in (asked[script], others[script]):
                assert reader.log.error is not None, "the stream ended without an error"
                assert reader.log.error["retryable"] is True, reader.log.error
                assert reader.log.error["status"] in {502, 503}
                assert script.answer.startswith(reader.text)
                # What was seen is kept.
                assert partial["content"].startswith(reader.text)
        again = await regenerated(cluster, http, {script: asked[script].session_id for script in lost})
        whole = [await answer(http, edges[script][1], asked[script].session_id, script) for script in untouched]

    figures(
        f"agent {victim}: {len(lost)} of {TURNS} turns lost, {len(told_s)} followers told after at most "
        f"{max(told_s, default=0):.1f} s; words kept {kept_words}; {again} regenerated"
    )
    assert lost
    assert untouched
    assert max(told_s) <= TOLD_S
    assert again == len(lost)
    for script in untouched:
        for reader in (asked[script], others[script]):
            assert (reader.text, reader.status) == (script.answer, "completed")
    assert [each["content"] for each in whole] == [script.answer for script in untouched]


async def regenerated(cluster: Cluster, http: httpx.AsyncClient, lost: dict[Script, str]) -> int:
    """Answer the lost turns again, while one agent is away; the partial answer stays beside. Returns how many."""

    async def again(script: Script, session: str, edge: str, other: str) -> None:
        reader = NumberedReader(http, script.question)
        response = await reader.regenerate(edge, session)
        assert response.status_code == httpx.codes.OK, response.text
        assert (reader.text, reader.status) == (script.answer, "completed"), reader.log.error
        question, found = await messages(http, other, session)
        assert question["content"] == script.question
        assert (found["content"], found["status"]) == (script.answer, "completed")
        assert [each["status"] for each in found["alternatives"]] == ["failed"]
        assert script.answer.startswith(found["alternatives"][0]["content"])

    async with asyncio.TaskGroup() as group:
        for number, (script, session) in enumerate(lost.items()):
            group.create_task(again(script, session, cluster.urls[number % 2], cluster.urls[1 - number % 2]))
    return len(lost)
