"""`grpc.health.v1.Health`, for probes and for clients that look before they call.

Not `grpc_health.v1.health.aio.HealthServicer` (1.85): it writes to a watcher while it holds the lock of all of them, so
that one frozen client keeps the others from hearing that this replica drains; and its watches never end by themselves,
so that a server that stops waits for them and logs a traceback for each.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.rpc.interceptors import Context

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):
    """How each service is. A watcher may miss what lasted shorter than its last message took."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._is_over = False

    def set(self, status: int, *services: str) -> None:
        """Say how these services are."""
        self._statuses.update(dict.fromkeys(services, status))
        self._wake()

    def end_watches(self) -> None:
        """Let every watch end, and those that are still to come: the server stops."""
        self._is_over = True
        self._wake()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Say how a service is."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Say how a service is, and again whenever that changes."""
        told: int | None = None
        while not self._is_over:
            changed = self._changed
            status = self._statuses.get(request.service, UNKNOWN)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            else:
                await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
