"""WatchTurn and StopTurn over a real channel: resuming, looking on, stopping, and readers that stop reading."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import conversation_pb2 as conversation_pb
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb
from google.rpc import error_details_pb2 as details_pb

from agent_service.errors import ModelFailedError
from agent_service.rpc import stall
from agent_service.types import Token
from tests.support.answerers import (
    CUT_USAGE,
    CountingAnswerer,
    HeldAnswerer,
    ScriptedAnswerer,
)
from tests.support.redis_server import RedisServer
from tests.support.served import WAIT_S, Client, Served, failure_of, on_one_loop, serving
from tests.support.shelf import Shelf

pytestmark = on_one_loop

DETACHED = pb.ON_DISCONNECT_DETACH


async def watch(client: Client, turn_id: str, after: int = 0, **fields: Any) -> list[pb.WatchTurnResponse]:
    request = pb.WatchTurnRequest(turn_id=turn_id, after_sequence=after, **fields)
    return [event async for event in client.agent.WatchTurn(request, timeout=WAIT_S)]


async def stop(client: Client, turn_id: str) -> pb.StopTurnResponse:
    return await client.agent.StopTurn(pb.StopTurnRequest(turn_id=turn_id), timeout=WAIT_S)


@pytest_asyncio.fixture(loop_scope="session")
async def held() -> HeldAnswerer:
    return CountingAnswerer()


@pytest_asyncio.fixture(loop_scope="session")
async def served(held: HeldAnswerer) -> AsyncIterator[Served]:
    async with serving(Shelf(), answerer=held) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def client(served: Served) -> Client:
    return served.client


async def begin(client: Client, held: HeldAnswerer, **fields: Any) -> tuple[str, Any]:
    """A turn under way: its id, and the call that started it."""
    call = client.agent.Chat(pb.ChatRequest(message="why?", **fields), timeout=WAIT_S)
    first = await anext(aiter(call))
    await asyncio.wait_for(held.started.wait(), WAIT_S)
    return first.turn_id, call


async def test_a_turn_is_watched_and_resumed_from_any_place(client: Client, held: HeldAnswerer) -> None:
    turn_id, call = await begin(client, held)
    from_start = asyncio.create_task(watch(client, turn_id))
    from_one = asyncio.create_task(watch(client, turn_id, 1, observer=True))
    held.release.set()
    asked = [event async for event in call]

    whole = await from_start
    assert [event.sequence for event in whole] == [1, 2, 3]
    assert [event.SerializeToString() for event in whole[1:]] == [event.SerializeToString() for event in asked]
    assert await from_one == whole[1:]
    assert await watch(client, turn_id, 2) == whole[2:]
    assert await watch(client, turn_id, 3) == await watch(client, turn_id, 2**63) == []


async def test_a_request_id_that_is_a_uuid_is_the_turns_id(client: Client, held: HeldAnswerer) -> None:
    held.release.set()
    given = str(uuid.uuid4())

    assert {event.turn_id for event in await client.chat("why?", request_id=given)} == {given}
    (other,) = {event.turn_id for event in await client.chat("why?", request_id="mine")}
    assert str(uuid.UUID(other)) == other
    assert {event.turn_id for event in await client.chat("why?", request_id=given.upper())} != {given}


async def test_a_number_beyond_the_log_of_a_running_turn_is_an_invalid_argument(
    client: Client, held: HeldAnswerer
) -> None:
    turn_id, call = await begin(client, held)

    failure = await failure_of(watch(client, turn_id, 3))

    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["after_sequence"])
    call.cancel()


@pytest.mark.parametrize("rpc", [watch, stop], ids=["watch", "stop"])
@pytest.mark.parametrize("turn_id", ["", "a b", "x" * 129, "\u00e9", "../x"])
async def test_what_cannot_be_a_turns_id_is_an_invalid_argument(client: Client, rpc: Any, turn_id: str) -> None:
    failure = await failure_of(rpc(client, turn_id))

    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["turn_id"])


@pytest.mark.parametrize("rpc", [watch, stop], ids=["watch", "stop"])
@pytest.mark.parametrize("turn_id", [str(uuid.UUID(int=0)), "anything", "x" * 128])
async def test_a_turn_that_is_not_there_is_not_found(client: Client, rpc: Any, turn_id: str) -> None:
    failure = await failure_of(rpc(client, turn_id))

    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TURN")
    resource = failure.detail(details_pb.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("turn", turn_id)


async def test_a_stop_aborts_the_turn_and_says_what_it_used(client: Client, held: HeldAnswerer) -> None:
    turn_id, call = await begin(client, held)
    watching = asyncio.create_task(watch(client, turn_id, observer=True))
    await asyncio.sleep(0)

    stopped = await stop(client, turn_id)

    assert held.cancelled.is_set()
    assert stopped.status == conversation_pb.TURN_STATUS_STOPPED
    assert (stopped.usage.requests, stopped.usage.output_tokens) == (CUT_USAGE.requests, CUT_USAGE.output_tokens)
    assert 0 < stopped.abort_ms < 1_000
    assert stopped.last_sequence == 3
    end = [event async for event in call][-1]
    assert (end.sequence, end.completed.status) == (3, conversation_pb.TURN_STATUS_STOPPED)
    assert end.completed.usage == stopped.usage
    assert end.completed.trace.agent == "billing"
    assert (await watching)[-1].completed == end.completed
    again = await stop(client, turn_id)
    assert (again.status, again.abort_ms, again.last_sequence) == (conversation_pb.TURN_STATUS_STOPPED, 0, 3)


async def test_an_observer_does_not_keep_a_turn(client: Client, held: HeldAnswerer) -> None:
    turn_id, call = await begin(client, held)
    watching = asyncio.create_task(watch(client, turn_id, observer=True))
    await asyncio.sleep(0.05)

    call.cancel()

    assert (await watching)[-1].completed.status == conversation_pb.TURN_STATUS_INTERRUPTED
    assert (await stop(client, turn_id)).status == conversation_pb.TURN_STATUS_INTERRUPTED


async def test_a_watcher_keeps_a_turn_and_its_deadline_ends_the_watch(client: Client, held: HeldAnswerer) -> None:
    turn_id, call = await begin(client, held)
    watching = client.agent.WatchTurn(pb.WatchTurnRequest(turn_id=turn_id), timeout=0.4)
    assert (await anext(aiter(watching))).sequence == 1
    call.cancel()
    await asyncio.sleep(0.1)
    assert not held.cancelled.is_set()

    async def rest() -> None:
        async for _ in watching:
            pass

    assert (await failure_of(rest())).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(held.cancelled.wait(), WAIT_S)


async def test_a_failed_turn_fails_every_watch_with_the_same_status() -> None:
    answerer = ScriptedAnswerer(Token("It "), failure=ModelFailedError("no"))
    async with serving(Shelf(), answerer=answerer) as one:
        given = str(uuid.uuid4())
        chat = await failure_of(one.client.chat("why?", request_id=given))
        for after in (0, 2, 99):
            failure = await failure_of(watch(one.client, given, after))
            assert failure.status == chat.status
        stopped = await stop(one.client, given)
    assert (stopped.status, stopped.last_sequence) == (conversation_pb.TURN_STATUS_FAILED, 2)


async def test_a_stopping_server_still_lets_turns_be_watched_and_stopped(held: HeldAnswerer) -> None:
    async with serving(Shelf(), answerer=held) as one:
        turn_id, call = await begin(one.client, held)
        stopping = asyncio.create_task(one.server.stop())
        watching = asyncio.create_task(watch(one.client, turn_id))
        refused = await failure_of(one.client.chat("And why?"))

        assert refused.reason == "DRAINING"
        assert (await stop(one.client, turn_id)).status == conversation_pb.TURN_STATUS_STOPPED
        assert (await watching)[-1].completed.status == conversation_pb.TURN_STATUS_STOPPED
        assert [event async for event in call][-1].completed.status == conversation_pb.TURN_STATUS_STOPPED
        await asyncio.wait_for(stopping, WAIT_S)


# --- readers that stop reading ---


async def test_a_follower_that_takes_nothing_is_cut_off_with_an_error_and_can_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stall, "STALLED_S", 0.3)
    monkeypatch.setattr(stall, "STATUS_S", 0.2)
    answerer = HeldAnswerer(first=[Token("x" * 20_000)] * 12)
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024))
    async with serving(Shelf(), answerer=answerer) as one:
        other = grpc.aio.insecure_channel(one.client.target, options=narrow)
        request = pb.ChatRequest(message="why?", request_id=str(uuid.uuid4()))
        call = pb_grpc.AgentServiceStub(other).Chat(request, timeout=WAIT_S)
        assert (await anext(aiter(call))).sequence == 1
        # It reads no more. It was the only follower, so that its place is seen to be given up at once.
        await asyncio.wait_for(answerer.cancelled.wait(), 5)

        seen: list[int] = [1]

        async def read_on() -> None:
            async for event in call:
                seen.append(event.sequence)  # noqa: PERF401 - what came before the failure counts

        failure = await failure_of(read_on())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "FOLLOWER_TOO_SLOW")
        assert "resumed" in failure.message
        assert len(seen) < 14

        rest = await watch(one.client, request.request_id, seen[-1])
        assert [*seen, *(event.sequence for event in rest)] == list(range(1, 15))
        # The channel is as good as before.
        assert (await pb_grpc.AgentServiceStub(other).ListAgents(pb.ListAgentsRequest(), timeout=WAIT_S)).agents
        await other.close()


async def test_a_follower_that_reads_slowly_but_reads_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALLED_S", 0.5)
    answerer = HeldAnswerer(first=[Token("x" * 20_000)] * 12)
    answerer.release.set()
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024))
    async with serving(Shelf(), answerer=answerer) as one:
        other = grpc.aio.insecure_channel(one.client.target, options=narrow)
        seen = []
        async for event in pb_grpc.AgentServiceStub(other).Chat(pb.ChatRequest(message="why?"), timeout=WAIT_S):
            seen.append(event.sequence)
            await asyncio.sleep(0.1)
        await other.close()
    assert seen == list(range(1, 15))


async def test_waiting_for_a_slow_model_cuts_nobody_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALLED_S", 0.1)
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as one:
        _, call = await begin(one.client, held)
        await asyncio.sleep(0.3)
        held.release.set()

        assert [event.sequence async for event in call] == [2, 3]


# --- two replicas ---


@pytest.mark.needs("redis")
async def test_two_servers_over_one_redis_serve_each_others_turns(redis: RedisServer) -> None:
    redis.flush()
    held = CountingAnswerer()
    async with (
        serving(Shelf(), answerer=held, redis_url=redis.url) as one,
        serving(Shelf(), answerer=HeldAnswerer(), redis_url=redis.url) as two,
    ):
        turn_id, call = await begin(one.client, held, request_id="once")
        watching = asyncio.create_task(watch(two.client, turn_id))
        attached = asyncio.create_task(two.client.chat("why?", request_id="once"))
        asked = time.monotonic()
        stopped = await stop(two.client, turn_id)
        took_s = time.monotonic() - asked

        assert took_s < 1
        assert stopped.status == conversation_pb.TURN_STATUS_STOPPED
        assert stopped.usage.output_tokens == CUT_USAGE.output_tokens
        watched = await watching
        assert [event.SerializeToString() for event in watched] == [
            event.SerializeToString() for event in await attached
        ]
        assert [event async for event in call][-1].completed == watched[-1].completed
        reused = await failure_of(two.client.chat("another question?", request_id="once"))
        assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


@pytest.mark.needs("redis")
async def test_a_failure_of_another_replica_arrives_as_its_own(redis: RedisServer) -> None:
    answerer = ScriptedAnswerer(Token("It "), failure=ModelFailedError("no"))
    async with (
        serving(Shelf(), answerer=answerer, redis_url=redis.url) as one,
        serving(Shelf(), answerer=HeldAnswerer(), redis_url=redis.url) as two,
    ):
        given = str(uuid.uuid4())
        here = await failure_of(one.client.chat("why?", request_id=given))
        there = await failure_of(watch(two.client, given))
    assert there.status == here.status
    assert there.code is here.code


def put() -> Any:
    document = knowledge_pb.Document(uri="a.md", text="Zeppelins fly.\n", collection="billing")
    return knowledge_pb.IngestDocumentsRequest(document=document)


async def ingest(client: Client) -> list[knowledge_pb.IngestDocumentsResponse]:
    async def one() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
        yield put()

    return [reply async for reply in client.knowledge.IngestDocuments(one(), timeout=WAIT_S)]


async def delete(client: Client) -> knowledge_pb.DeleteDocumentResponse:
    request = knowledge_pb.DeleteDocumentRequest(id=str(uuid.uuid4()))
    return await client.knowledge.DeleteDocument(request, timeout=WAIT_S)


@pytest.mark.needs("redis")
async def test_one_of_several_stores_of_their_own_is_not_changed(redis: RedisServer) -> None:
    redis.flush()
    async with serving(Shelf(), redis_url=redis.url) as one:
        assert len(await ingest(one.client)) == 1, "alone it may"
        async with serving(Shelf(), redis_url=redis.url) as two:
            for client in (one.client, two.client):
                for call in (ingest(client), delete(client)):
                    failure = await failure_of(call)
                    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STORE_NOT_SHARED")
                    (violation,) = failure.detail(details_pb.PreconditionFailure).violations
                    assert "AGENT_QDRANT_URL" in violation.description
                    assert "--load" in violation.description
        assert len(await ingest(one.client)) == 1, "alone again at once, because the other said good-bye"


@pytest.mark.needs("redis")
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
async def test_replicas_with_a_shared_store_change_it(redis: RedisServer) -> None:
    redis.flush()
    shared: dict[str, Any] = {"redis_url": redis.url, "qdrant_url": "http://127.0.0.1:1"}
    async with serving(Shelf(), **shared) as one, serving(Shelf(), **shared):
        assert len(await ingest(one.client)) == 1
