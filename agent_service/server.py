"""The gRPC server's life: bind, load, serve, drain."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import grpc
from answerdesk.v1 import agent_service_pb2, agent_service_pb2_grpc, knowledge_service_pb2, knowledge_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent_service.errors import StartupError
from agent_service.rpc.agent_servicer import AgentServicer
from agent_service.rpc.health_servicer import HealthServicer
from agent_service.rpc.interceptors import CallInterceptor
from agent_service.rpc.knowledge_servicer import KnowledgeServicer
from agent_service.rpc.tls import ServerCertificates
from agent_service.rpc.tokens import TokenVerifier
from agent_service.settings import Settings
from agent_service.wiring import Parts

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Bound of one message either way: a document of 2 MiB with room for its UTF-8."""

STOP_GRACE_S = 2.0
"""After the drain: what calls that are not turns get to end."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # By default about 8 KiB, and beyond it calls are refused at random: too little for a token with many groups.
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.absolute_max_metadata_size", 64 * 1024),
    # A second server on the port is an error and not a silent half of the traffic.
    ("grpc.so_reuseport", 0),
    # Clients may ping every 10 s, also between calls; by default that gets them "too many pings".
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Above about 1000 calls not yet accepted grpc refuses at random; turns have a bound of their own.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
)

SERVICES = (
    agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name,
    knowledge_service_pb2.DESCRIPTOR.services_by_name["KnowledgeService"].full_name,
)

PART = "answerdesk.{}"
"""By this name health checks ask for a part of `PARTS`. What ails one does not count for the services."""


class AgentServer:
    """One listening server over the service's parts."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        """Make it from its parts; `start` begins to listen.

        Raises:
            StartupError: AGENT_VERIFY_KEY is no public key, or a file of AGENT_TLS_* cannot be used.
        """
        self._parts = parts
        self._settings = settings
        self._health = HealthServicer()
        self._knowledge = KnowledgeServicer(parts.searcher, parts.store, parts.pipeline, parts.guard)
        verifier = TokenVerifier(settings.verify_key) if settings.verify_key else None
        self._certificates = (
            ServerCertificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
            if settings.tls_cert and settings.tls_key
            else None
        )
        self._server = grpc.aio.server(interceptors=(CallInterceptor(verifier),), options=OPTIONS)

    async def start(self) -> int:
        """Bind and listen; health says NOT_SERVING until `ready`. Returns the port.

        Raises:
            StartupError: the address is taken or not of this machine.
        """
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(
            AgentServicer(self._parts.turns, self._parts.team), self._server
        )
        knowledge_service_pb2_grpc.add_KnowledgeServiceServicer_to_server(self._knowledge, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._health.set(health_pb2.HealthCheckResponse.NOT_SERVING, "", *SERVICES)
        self._parts.vitals.watch(self._tell_part)
        try:
            port = self._bind()
        except RuntimeError as err:
            raise StartupError(
                f"AGENT_LISTEN={self._settings.listen}: cannot listen there; is another agent service running? "
                "Stop it, or choose another port"
            ) from err
        await self._server.start()
        await self._parts.open()
        if self._settings.verify_key is None and not on_loopback(self._settings.listen):
            log.warning(
                "callers from other machines will all be refused: AGENT_VERIFY_KEY is not set",
                extra={"address": self._settings.listen},
            )
        return port

    async def ready(self) -> None:
        """Tell health checks that the service may be used."""
        self._health.set(health_pb2.HealthCheckResponse.SERVING, "", *SERVICES)

    async def stop(self) -> None:
        """Drain and stop: turns get AGENT_DRAIN_S to end; then what is left is aborted."""
        self._health.set(health_pb2.HealthCheckResponse.NOT_SERVING, "", *SERVICES)
        self._knowledge.drain()
        await self._parts.turns.drain(self._settings.drain_s)
        self._health.end_watches()
        await self._server.stop(STOP_GRACE_S)

    def _tell_part(self, part: str, ok: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ok else health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set(status, PART.format(part))

    def _bind(self) -> int:
        port: int = (
            self._server.add_insecure_port(self._settings.listen)
            if self._certificates is None
            else self._server.add_secure_port(self._settings.listen, self._certificates.credentials())
        )
        return port


def on_loopback(address: str) -> bool:
    """Whether HOST:PORT is of this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(parts: Parts, settings: Settings, load: Callable[[], Awaitable[None]] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        parts: what to serve.
        settings: address and drain time.
        load: done after listening and before health says SERVING.

    Raises:
        StartupError: the address is taken, AGENT_VERIFY_KEY or a file of AGENT_TLS_* is of no use, or loading failed.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = AgentServer(parts, settings)
    port = await server.start()
    log.info("listening", extra={"address": settings.listen, "port": port, "provider": settings.provider})
    waiting = asyncio.create_task(stopped.wait())
    try:
        if load is not None:
            loading = asyncio.ensure_future(load())
            await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                loading.cancel()
                # Nothing may still write when the store is closed.
                await asyncio.wait({loading}, timeout=STOP_GRACE_S)
                return
            await loading
        await server.ready()
        log.info("serving")
        await waiting
    finally:
        waiting.cancel()
        log.info("stopping")
        await server.stop()
