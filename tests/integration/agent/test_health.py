"""grpc.health.v1 as probes and channels see it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.rpc.health_servicer import HealthServicer

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
