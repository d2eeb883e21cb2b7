"""The agent service as the edge sees it: one channel, typed answers, plain errors."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import knowledge_service_pb2 as pb_knowledge
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_knowledge_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_api.agent_client import convert
from edge_api.agent_client.answer import Answer
from edge_api.agent_client.decode import decoding
from edge_api.agent_client.events import Health, JsonObject, Question
from edge_api.errors import EdgeError
from edge_api.telemetry import request_id_var

MAX_MESSAGE_BYTES = 4 * 2**20
UNARY_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 2.0
SERVICES = {"agent": "answerdesk.v1.AgentService", "knowledge": "answerdesk.v1.KnowledgeService"}
"""The parts of the agent service that readiness asks for: our name, and its name in grpc.health.v1."""

CHANNEL_OPTIONS: Sequence[tuple[str, str | int]] = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Slower than the 10 s that the agent's server allows; faster, and it would end every stream.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # An agent that comes back is found within two seconds, without a restart of the edge.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The agent is a neighbour; a proxy for the way out would only lose it.
    ("grpc.enable_http_proxy", 0),
)


class AgentClient:
    """Calls of the agent service. Every one has a time limit; failures are `UpstreamError`."""

    def __init__(self, channel: grpc.aio.Channel, *, turn_timeout_s: float) -> None:
        self._agent = pb_grpc.AgentServiceStub(channel)
        self._knowledge = pb_knowledge_grpc.KnowledgeServiceStub(channel)
        # Its stubs describe no methods.
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._turn_timeout_s = turn_timeout_s
        self._open: set[Answer] = set()
        self._closed_by: EdgeError | None = None

    @asynccontextmanager
    async def answer(self, question: Question) -> AsyncIterator[Answer]:
        """Ask a question. Leaving the block cancels the call, whatever the reason for leaving."""
        call = self._agent.Chat(convert.question_to_proto(question), timeout=self._turn_timeout_s, metadata=_metadata())
        answer = Answer(call)
        if self._closed_by is not None:
            answer.abort(self._closed_by)
        self._open.add(answer)
        try:
            yield answer
        finally:
            self._open.discard(answer)
            await answer.close()

    def abort_all(self, reason: EdgeError) -> None:
        """End every open answer with `reason`, and those that are still to be opened."""
        self._closed_by = reason
        for answer in tuple(self._open):
            answer.abort(reason)

    async def agents(self) -> list[JsonObject]:
        """The team, the entry first.

        Raises:
            UpstreamError: the call failed.
        """
        with decoding():
            reply = await self._agent.ListAgents(pb.ListAgentsRequest(), timeout=UNARY_TIMEOUT_S, metadata=_metadata())
        return [convert.agent_from_proto(each) for each in reply.agents]

    async def search(self, query: str, *, collections: Sequence[str], top_k: int) -> JsonObject:
        """Passages for a question, without generation.

        Args:
            query: 1 to 8,000 characters.
            collections: search only these; empty: all.
            top_k: most passages to return, 1 to 50.

        Raises:
            UpstreamError: the call failed, or a collection is unknown.
        """
        request = pb_knowledge.SearchRequest(query=query, collections=collections, top_k=top_k)
        with decoding():
            reply = await self._knowledge.Search(request, timeout=UNARY_TIMEOUT_S, metadata=_metadata())
        return convert.search_from_proto(reply)

    async def document(self, document_id: str, version: str) -> JsonObject:
        """A document, whole; an empty `version` means the current one.

        Raises:
            UpstreamError: the call failed, or there is no such document or version.
        """
        request = pb_knowledge.GetDocumentRequest(id=document_id, version=version)
        with decoding():
            reply = await self._knowledge.GetDocument(request, timeout=UNARY_TIMEOUT_S, metadata=_metadata())
        return convert.document_from_proto(reply)

    async def health(self) -> dict[str, Health]:
        """How each part of the agent service is, by our names of them. Never raises; takes at most 2 s."""
        states = await asyncio.gather(*(self._check(service) for service in SERVICES.values()))
        return dict(zip(SERVICES, states, strict=True))

    async def _check(self, service: str) -> Health:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = await self._health.Check(request, timeout=HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as err:
            match err.code():
                case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.UNIMPLEMENTED:
                    return "not_serving"
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    return "timeout"
                case _:
                    return "unreachable"
        return "ok" if reply.status == health_pb2.HealthCheckResponse.SERVING else "not_serving"


@asynccontextmanager
async def connect(target: str, *, turn_timeout_s: float) -> AsyncIterator[AgentClient]:
    """A client on a channel of its own; an agent that is away is looked for again by itself."""
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        # Connect now; else the first question waits for it.
        channel.get_state(try_to_connect=True)
        yield AgentClient(channel, turn_timeout_s=turn_timeout_s)


def _metadata() -> tuple[tuple[str, str], ...]:
    request_id = request_id_var.get()
    return (("x-request-id", request_id),) if request_id else ()
