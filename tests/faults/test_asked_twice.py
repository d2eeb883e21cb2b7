"""The same request, sent again: by a client that got no answer, or by ten at once."""

import asyncio
import uuid
from collections.abc import Callable

import httpx
import pytest

from tests.support.cluster import Cluster
from tests.support.cluster_client import NumberedReader, answer, body
from tests.support.cluster_model import Script

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60), pytest.mark.needs("postgres", "redis")]

POSTS = 10


def post(http: httpx.AsyncClient, edge: str, message: str, key: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(
        http.post(f"{edge}/api/chat", json=body(message), headers={"Idempotency-Key": key}, timeout=30)
    )


async def test_ten_posts_with_one_key_are_one_turn_and_ten_equal_answers(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    script, key = Script.of(20, 50), str(uuid.uuid4())
    async with cluster.person() as http:
        posts = [post(http, cluster.urls[number % 2], script.question, key) for number in range(POSTS)]
        replies = [await each for each in posts]
        stored = await answer(http, cluster.urls[0], replies[0].json()["session_id"], script)
        late = [await post(http, edge, script.question, key) for edge in cluster.urls]
        sessions = (await http.get(f"{cluster.urls[0]}/api/sessions")).json()["sessions"]
        other = await post(http, cluster.urls[1], "Something else?", key)

    assert {reply.status_code for reply in [*replies, *late]} == {200}, [reply.text for reply in replies]
    assert all(reply.json() == replies[0].json() for reply in [*replies, *late])
    assert replies[0].json()["answer"] == stored["content"] == script.answer
    assert len(sessions) == 1
    assert (other.status_code, other.json()["status"]) == (422, 422)
    figures(f"{len(replies)} posts at once and {len(late)} later: {len(cluster.model.calls(script))} model call")
    assert len(cluster.model.calls(script)) == 1


async def test_ten_streams_with_one_key_follow_one_turn(cluster: Cluster, figures: Callable[[str], None]) -> None:
    script, key = Script.of(20, 50), str(uuid.uuid4())
    async with cluster.person() as http:
        readers = [NumberedReader(http, script.question, key=key) for _ in range(POSTS)]
        async with asyncio.TaskGroup() as group:
            for number, reader in enumerate(readers):
                group.create_task(reader.finish([cluster.urls[number % 2]]))
        await answer(http, cluster.urls[0], readers[0].session_id, script)

    assert {reader.text for reader in readers} == {script.answer}
    assert all(reader.log == readers[0].log for reader in readers[1:])
    assert not any(reader.met for reader in readers)
    figures(f"{POSTS} streams at once: {len(cluster.model.calls(script))} model call")
    assert len(cluster.model.calls(script)) == 1


async def test_another_user_with_the_same_key_has_a_turn_of_their_own(cluster: Cluster) -> None:
    script, key = Script.of(20, 50), str(uuid.uuid4())
    async with cluster.person() as ada, cluster.person() as bob:
        posts = [post(http, edge, script.question, key) for http in (ada, bob) for edge in cluster.urls]
        replies = [(await each).json() for each in posts]
        of_ada, of_bob = replies[:2], replies[2:]
        foreign = await bob.get(f"{cluster.urls[0]}/api/session/{of_ada[0]['session_id']}/messages")

    assert of_ada[0] == of_ada[1]
    assert of_bob[0] == of_bob[1]
    for name in ("session_id", "turn_id", "message_id"):
        assert of_ada[0][name] != of_bob[0][name]
    assert [reply["answer"] for reply in replies] == [script.answer] * 4
    assert len(cluster.model.calls(script)) == 2
    assert foreign.status_code == httpx.codes.FORBIDDEN
