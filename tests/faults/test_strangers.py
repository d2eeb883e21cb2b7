"""Other people's turns on a pair of edges and agents: nobody follows, stops or repeats them. And grpcurl, twice."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc

from tests.conftest import tool
from tests.support.cluster import Cluster
from tests.support.cluster_client import NumberedReader, becomes_true, words
from tests.support.cluster_model import Script
from tests.support.tokens import internal_token

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60), pytest.mark.needs("postgres", "redis")]

WAIT_S = 10


async def attempts(http: httpx.AsyncClient, edge: str, turn: NumberedReader) -> list[tuple[int, str]]:
    """Status and code of everything that one may try with a turn."""
    chat = f"{edge}/api/chat/{turn.session_id}"
    replies = [
        await http.get(f"{chat}/stream", params={"turn_id": turn.turn_id}),
        await http.get(f"{chat}/stream", headers={"Last-Event-ID": "1"}),
        await http.post(f"{chat}/stop"),
        await http.post(f"{chat}/regenerate", json={}),
    ]
    return [(reply.status_code, reply.json()["code"]) for reply in replies]


async def test_another_users_token_reaches_nothing_of_a_turn(cluster: Cluster) -> None:
    script = Script.of(40, 50)
    async with cluster.person() as ada, cluster.person() as bob:
        reader = NumberedReader(ada, script.question)
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.ask(cluster.urls[0]))
            await becomes_true(lambda: bool(reader.log.words), WAIT_S)
            tried = [found for edge in cluster.urls for found in await attempts(bob, edge, reader)]
            ran_on = reader.log.complete is None
        tried += [found for edge in cluster.urls for found in await attempts(bob, edge, reader)]

    assert ran_on
    assert set(tried) == {(403, "not_your_session")}
    assert (reader.text, reader.status) == (script.answer, "completed")
    assert len(cluster.model.calls(script)) == 1


@asynccontextmanager
async def stub(target: str) -> AsyncIterator["pb_grpc.AgentServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield pb_grpc.AgentServiceStub(channel)


async def watched(target: str, turn_id: str, token: str) -> tuple[grpc.StatusCode, int]:
    """How a watch ends, and how many events came."""
    came = 0
    async with stub(target) as agent:
        try:
            request = pb.WatchTurnRequest(turn_id=turn_id)
            async for _ in agent.WatchTurn(request, timeout=WAIT_S, metadata=bearer(token)):
                came += 1
        except grpc.aio.AioRpcError as err:
            return err.code(), came
    return grpc.StatusCode.OK, came


async def stopped(target: str, turn_id: str, token: str) -> grpc.StatusCode:
    async with stub(target) as agent:
        try:
            await agent.StopTurn(pb.StopTurnRequest(turn_id=turn_id), timeout=WAIT_S, metadata=bearer(token))
        except grpc.aio.AioRpcError as err:
            return err.code()
    return grpc.StatusCode.OK


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def settled(cluster: Cluster, token: str) -> None:
    """Wait until a Redis that a test before has restarted is believed again: until then agents say UNAVAILABLE."""
    async with asyncio.timeout(WAIT_S):
        for target in cluster.targets:
            while (await watched(target, str(uuid.uuid4()), token))[0] is grpc.StatusCode.UNAVAILABLE:
                pass


async def test_another_subjects_turn_is_not_found_over_grpc(cluster: Cluster) -> None:
    script = Script.of(40, 50)
    ada, bob = (internal_token(cluster.signing_key, subject=name) for name in ("ada", "bob"))
    other_tenant = internal_token(cluster.signing_key, subject="ada", tenant="other")
    turn_id = ""
    refused: list[grpc.StatusCode] = []
    events = 0
    await settled(cluster, bob)
    async with stub(cluster.targets[0]) as agent:
        request = pb.ChatRequest(message=script.question, agent="billing")
        async for event in agent.Chat(request, timeout=WAIT_S, metadata=bearer(ada)):
            events += 1
            if event.WhichOneof("event") == "token" and not turn_id:
                turn_id = event.turn_id
                for target in cluster.targets:
                    for token in (bob, other_tenant):
                        status, came = await watched(target, turn_id, token)
                        refused += [status, await stopped(target, turn_id, token)]
                        assert came == 0
        owner = [await watched(target, turn_id, ada) for target in cluster.targets]

    assert refused == [grpc.StatusCode.NOT_FOUND] * 8
    assert owner == [(grpc.StatusCode.OK, events)] * 2
    assert len(cluster.model.calls(script)) == 1


async def test_a_turn_of_the_edge_is_not_found_by_other_subjects(cluster: Cluster) -> None:
    script = Script.of(40, 50)
    bob = internal_token(cluster.signing_key, subject="bob")
    await settled(cluster, bob)
    async with cluster.person() as http:
        reader = NumberedReader(http, script.question)
        await reader.ask(cluster.urls[0], words(1))
        refused = [await watched(target, reader.turn_id, bob) for target in cluster.targets]
        stops = [await stopped(target, reader.turn_id, bob) for target in cluster.targets]
        await reader.finish(cluster.urls)

    assert refused == [(grpc.StatusCode.NOT_FOUND, 0)] * 2
    assert stops == [grpc.StatusCode.NOT_FOUND] * 2
    assert reader.text == script.answer


class Shell:
    """grpcurl in a terminal: what it has printed so far, message by message."""

    def __init__(self, target: str, method: str, data: dict[str, Any]) -> None:
        call = [target, f"answerdesk.v1.AgentService/{method}"]
        self._command = [str(tool("grpcurl")), "-plaintext", "-d", json.dumps(data), *call]
        self._text = ""
        self.messages: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    async def run(self) -> None:
        """Run it to its end."""
        piped = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*self._command, stdout=piped, stderr=asyncio.subprocess.STDOUT)
        try:
            assert child.stdout is not None
            async with asyncio.timeout(4 * WAIT_S):
                while printed := await child.stdout.read(65536):
                    self._take(printed.decode())
                self.exit_code = await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    def _take(self, printed: str) -> None:
        self._text = (self._text + printed).lstrip()
        while self._text:
            try:
                message, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError:
                return
            self.messages.append(message)
            self._text = self._text[end:].lstrip()


@pytest.mark.needs("grpcurl")
async def test_two_shells_with_grpcurl_see_one_turn_and_a_third_stops_it(cluster: Cluster) -> None:
    script = Script.of(400, 50)
    first, second = cluster.targets
    chat = Shell(first, "Chat", {"message": script.question, "agent": "billing"})
    async with asyncio.TaskGroup() as group:
        group.create_task(chat.run())
        await becomes_true(lambda: len(chat.messages) > 8, WAIT_S)
        turn_id = chat.messages[0]["turn_id"]
        watch = Shell(second, "WatchTurn", {"turn_id": turn_id, "after_sequence": 5})
        group.create_task(watch.run())
        await becomes_true(lambda: len(watch.messages) > 8, WAIT_S)
        stop = Shell(second, "StopTurn", {"turn_id": turn_id})
        pressed_s = time.monotonic()
        await stop.run()
        await becomes_true(lambda: chat.exit_code is not None and watch.exit_code is not None, WAIT_S)
        ended_s = time.monotonic()

    assert [chat.exit_code, watch.exit_code, stop.exit_code] == [0, 0, 0]
    assert [int(event["sequence"]) for event in chat.messages] == list(range(1, len(chat.messages) + 1))
    assert watch.messages == chat.messages[5:]
    assert chat.messages[-1]["completed"]["status"] == "TURN_STATUS_STOPPED"
    (reply,) = stop.messages
    assert reply["status"] == "TURN_STATUS_STOPPED"
    assert int(reply["last_sequence"]) == len(chat.messages)
    assert reply["usage"] == chat.messages[-1]["completed"]["usage"]
    assert ended_s - pressed_s < 5
    assert cluster.model.call(script).hung_up_s is not None
