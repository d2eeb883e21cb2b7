"""An agent server on a real port of this machine, over given parts; and what its clients see of an error."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import grpc
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import knowledge_service_pb2_grpc as knowledge_grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.ports import Answerer
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.rpc.interceptors import CallInterceptor
from agent_service.rpc.tokens import TokenVerifier
from agent_service.server import AgentServer
from agent_service.settings import Settings
from agent_service.turns.host import TurnHost
from agent_service.turns.shared import SharedTurns
from agent_service.wiring import Parts, wire
from tests.support.shelf import Shelf

WAIT_S = 20.0
"""Bound of every call that should end by itself: only a hanging test meets it."""

DETAILS = "grpc-status-details-bin"

on_one_loop = pytest.mark.asyncio(loop_scope="session")
"""For every test over a channel. grpc.aio has one queue of events for all loops of a process: an event that comes late
for a loop that a test has closed would hold up those behind it."""

M = TypeVar("M", bound=Message)


def settings(**given: Any) -> Settings:
    """Settings of a test: any free port, the offline model without delays, no file touched."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "model_provider": "offline",
        "offline_delay_s": 0.0,
        "data_dir": Path("/nonexistent"),
    }
    return Settings(**(values | given))


def parts_over(shelf: Shelf, **given: Any) -> Parts:
    """The service's own parts over a shelf's store."""
    return wire(settings(**given), shelf.store)


class Client:
    """The stubs of one channel."""

    def __init__(self, port: int, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.port = port
        self.target = f"127.0.0.1:{port}"
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = (
            grpc.aio.secure_channel(self.target, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(self.target, options=options)
        )
        self.agent = pb_grpc.AgentServiceStub(self.channel)
        self.knowledge = knowledge_grpc.KnowledgeServiceStub(self.channel)
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def chat(self, message: str, *, timeout_s: float = WAIT_S, **fields: Any) -> list[pb.ChatResponse]:
        """All events of a turn."""
        return [event async for event in self.agent.Chat(pb.ChatRequest(message=message, **fields), timeout=timeout_s)]

    async def health(self, service: str = "") -> str:
        """What health says of a service."""
        reply = await self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        return name


@dataclass(frozen=True, slots=True)
class Served:
    """A serving agent and a client of it."""

    server: AgentServer
    parts: Parts
    store: InMemoryStore
    client: Client


@asynccontextmanager
async def serving(
    shelf: Shelf, *, ready: bool = True, answerer: Answerer | None = None, **given: Any
) -> AsyncIterator[Served]:
    """Serve a shelf with everything that the service has; with `answerer` in place of the team. Settings by name."""
    parts = parts_over(shelf, **given)
    if answerer is not None:
        # What is wired for Redis plays both roles.
        shared = cast("SharedTurns | None", parts.guard)
        parts = replace(parts, turns=TurnHost(answerer, max_turns=10, keep_s=60, turn_timeout_s=60, shared=shared))
    server = AgentServer(parts, settings(**given))
    port = await server.start()
    if ready:
        await server.ready()
    client = Client(port)
    try:
        yield Served(server, parts, shelf.store, client)
    finally:
        await client.channel.close()
        await server.stop()
        await parts.turns.close()
        await parts.toolbox.close()
        await parts.models.close()


@asynccontextmanager
async def servicers(
    *add: Callable[[grpc.aio.Server], None], verifier: TokenVerifier | None = None
) -> AsyncIterator[Client]:
    """Serve single servicers behind the interceptor, without the rest of the service."""
    server = grpc.aio.server(interceptors=(CallInterceptor(verifier),))
    for each in add:
        each(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = Client(port)
    try:
        yield client
    finally:
        await client.channel.close()
        # A client has its status before the handler has ended, and logged that.
        await server.stop(2.0)


async def settled() -> None:
    """Let what calls have left behind be collected: where it warns, it warns in the test that left it."""
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()


class Failure:
    """What a client sees of an error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        self.metadata = [(key, value) for key, value in error.trailing_metadata()]
        self.everything = repr((error.code(), error.details(), error.debug_error_string(), self.metadata))
        packed = [value for key, value in self.metadata if key == DETAILS]
        self.status = (
            status_pb2.Status.FromString(packed[0] if isinstance(packed[0], bytes) else b"") if packed else None
        )

    def detail(self, kind: type[M]) -> M:
        """The one detail of a kind."""
        found = self.details(kind)
        assert len(found) == 1, f"{len(found)} details of {kind}"
        return found[0]

    def details(self, kind: type[M]) -> Sequence[M]:
        """The details of a kind."""
        found: list[M] = []
        for box in self.status.details if self.status is not None else ():
            message = kind()
            if box.Unpack(message):
                found.append(message)
        return found

    @property
    def bytes_of_metadata(self) -> int:
        """About what the trailers took on the wire: the message percent-encoded, what is binary in base64."""
        message = len(quote(self.message, safe=" "))
        return message + sum(len(key) + len(value) * 4 // 3 + 32 for key, value in self.metadata)

    @property
    def kinds(self) -> list[str]:
        """Names of all details, sorted."""
        boxes = self.status.details if self.status is not None else ()
        return sorted(box.TypeName().removeprefix("google.rpc.") for box in boxes)

    @property
    def reason(self) -> str:
        """The reason; its domain is checked on the way."""
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info.domain == "answerdesk"
        return str(info.reason)

    @property
    def fields(self) -> list[str]:
        """The fields that a BadRequest names."""
        return [violation.field for violation in self.detail(error_details_pb2.BadRequest).field_violations]


async def failure_of(call: Awaitable[object]) -> Failure:
    """What the client saw of a call that had to fail."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return Failure(raised.value)
