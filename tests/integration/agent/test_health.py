"""grpc.health.v1 as probes and channels see it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.rpc.health_servicer import HealthServicer
from tests.support.answerers import HeldAnswerer
from tests.support.served import on_one_loop, serving
from tests.support.shelf import Shelf

SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
WAIT_S = 15


class Context:
    """What the servicer needs of a call."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise LookupError(code)


def watch(health: HealthServicer, service: str = "a") -> AsyncIterator[health_pb2.HealthCheckResponse]:
    context: Any = Context()
    return health.Watch(health_pb2.HealthCheckRequest(service=service), context)


async def status_of(watched: AsyncIterator[health_pb2.HealthCheckResponse]) -> int:
    return int((await asyncio.wait_for(anext(watched), WAIT_S)).status)


async def test_a_watcher_is_told_at_once_and_at_every_change() -> None:
    health = HealthServicer()
    watched = watch(health)

    assert await status_of(watched) == UNKNOWN
    health.set(NOT_SERVING, "a", "b")
    assert await status_of(watched) == NOT_SERVING
    health.set(SERVING, "b")
    health.set(SERVING, "a")
    assert await status_of(watched) == SERVING


async def test_a_watcher_that_takes_nothing_keeps_nobody_from_hearing() -> None:
    health = HealthServicer()
    health.set(SERVING, "a")
    frozen, other = watch(health), watch(health)
    assert [await status_of(frozen), await status_of(other)] == [SERVING, SERVING]

    health.set(NOT_SERVING, "a")

    assert await status_of(other) == NOT_SERVING


async def test_watches_end_with_the_server() -> None:
    health = HealthServicer()
    health.set(SERVING, "a")
    watched = watch(health)
    await status_of(watched)
    waiting = asyncio.ensure_future(anext(watched, None))
    await asyncio.sleep(0)
    health.end_watches()

    assert await asyncio.wait_for(waiting, WAIT_S) is None
    assert [each async for each in watch(health)] == []


async def test_a_service_that_is_none_is_not_found() -> None:
    context: Any = Context()
    health = HealthServicer()
    health.set(SERVING, "")

    assert (await health.Check(health_pb2.HealthCheckRequest(), context)).status == SERVING
    with pytest.raises(LookupError):
        await health.Check(health_pb2.HealthCheckRequest(service="nobody"), context)


async def test_a_server_that_is_watched_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    health = HealthServicer()
    health.set(SERVING, "")
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert (await call.read()).status == SERVING
        began = time.monotonic()
        health.end_watches()
        await server.stop(10)

        assert time.monotonic() - began < 5
        assert await call.read() is grpc.aio.EOF
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# --- of the parts that the service can do without ---

ALL_BUT_PARTS = ("", "answerdesk.v1.AgentService", "answerdesk.v1.KnowledgeService")


@on_one_loop
@pytest.mark.parametrize("part", ["model", "tools"])
async def test_a_part_is_told_by_its_own_name_and_counts_for_no_other(part: str) -> None:
    async with serving(Shelf()) as served:
        vitals, health = served.parts.vitals, served.client.health
        parts = ("answerdesk.model", "answerdesk.tools")
        assert {await health(each) for each in (*ALL_BUT_PARTS, *parts)} == {"SERVING"}

        vitals.tell(part, "someone", ok=False)
        assert {each: await health(each) for each in parts} == {
            each: "NOT_SERVING" if each.endswith(part) else "SERVING" for each in parts
        }
        assert {await health(each) for each in ALL_BUT_PARTS} == {"SERVING"}

        vitals.tell(part, "someone", ok=True)
        assert {await health(each) for each in parts} == {"SERVING"}


@on_one_loop
async def test_the_parts_are_told_also_before_the_service_may_be_used() -> None:
    async with serving(Shelf(), ready=False) as served:
        assert await served.client.health("answerdesk.model") == "SERVING"
        assert await served.client.health() == "NOT_SERVING"
        served.parts.vitals.tell("model", "someone", ok=False)

        await served.server.ready()

        assert await served.client.health("answerdesk.model") == "NOT_SERVING"
        assert await served.client.health() == "SERVING"


@on_one_loop
async def test_a_drain_leaves_the_parts_as_they_are() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as served:
        served.parts.vitals.tell("tools", "someone", ok=False)
        running = asyncio.create_task(served.client.chat("why?"))
        await asyncio.wait_for(held.started.wait(), WAIT_S)

        stopping = asyncio.create_task(served.server.stop())
        async with asyncio.timeout(WAIT_S):
            while await served.client.health() == "SERVING":
                pass

        assert await served.client.health("answerdesk.model") == "SERVING"
        assert await served.client.health("answerdesk.tools") == "NOT_SERVING"
        held.release.set()
        await running
        await stopping
