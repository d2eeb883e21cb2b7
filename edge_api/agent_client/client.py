"""The agent service as the edge sees it: one channel, typed answers, plain errors."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import knowledge_service_pb2 as pb_knowledge
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_knowledge_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_api.agent_client import convert
from edge_api.agent_client.answer import EventCall
from edge_api.agent_client.decode import decoding
from edge_api.agent_client.events import Health, JsonObject, NewDocument, Question, Stopped, TurnId
from edge_api.agent_client.signing import DEFAULT_TENANT, Caller, CallerSigner
from edge_api.agent_client.tls import Tls
from edge_api.errors import InvalidCursorError, UnvouchedCallerError, UpstreamError
from edge_api.telemetry import request_id_var

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 2**20
UNARY_TIMEOUT_S = 10.0
INGEST_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 2.0

SERVICES = {"agent": "answerdesk.v1.AgentService", "knowledge": "answerdesk.v1.KnowledgeService"}
"""The parts of the agent service that readiness asks for: our name, and its name in grpc.health.v1."""

PARTS = {"model": "answerdesk.model", "tools": "answerdesk.tools"}
"""What the agent service can do without for a while, likewise: its models' providers, its servers of tools."""

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

TURN_OPTIONS: Sequence[tuple[str, str | int]] = (
    *CHANNEL_OPTIONS,
    # An agent that drains says so in its health: new turns go to the others, running ones are still served.
    (
        "grpc.service_config",
        json.dumps(
            {
                "loadBalancingConfig": [{"round_robin": {}}],
                "healthCheckConfig": {"serviceName": SERVICES["agent"]},
            }
        ),
    ),
)


class AgentClient:
    """Calls of the agent service. Every one has a time limit; failures are `UpstreamError`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        signer: CallerSigner | None,
        grace_s: float,
        turns: grpc.aio.Channel | None = None,
    ) -> None:
        """Make it over a channel.

        Args:
            channel: to every agent.
            signer: None: the agent on this machine serves every call as the same local caller.
            grace_s: how long an answer is made on when nobody follows it; 0: not at all. Seconds.
            turns: for new turns: to agents that take some. Default: `channel`.
        """
        self._agent = pb_grpc.AgentServiceStub(channel)
        self._turn_channel = channel if turns is None else turns
        self._turns = pb_grpc.AgentServiceStub(self._turn_channel)
        self._knowledge = pb_knowledge_grpc.KnowledgeServiceStub(channel)
        # One request, though the method takes many: where an agent refuses a call before it has read a request,
        # grpc's writer of requests fails, too, and its INTERNAL may take the place of the status that was sent.
        self._ingest_one = channel.unary_stream(
            f"/{SERVICES['knowledge']}/IngestDocuments",
            request_serializer=pb_knowledge.IngestDocumentsRequest.SerializeToString,
            response_deserializer=pb_knowledge.IngestDocumentsResponse.FromString,
        )
        # Its stubs describe no methods.
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._signer = signer
        self._grace_s = grace_s

    def ask(self, question: Question, caller: Caller, *, timeout_s: float) -> EventCall:
        """Start a turn, or attach to the one that this question's request has started, and follow it.

        Args:
            question: what is asked.
            caller: on whose behalf.
            timeout_s: the whole time that the answer may take.

        Raises:
            UnvouchedCallerError: this edge cannot vouch for the caller.
        """
        request = convert.question_to_proto(question, grace_s=self._grace_s)
        # Each channel waits its own time between attempts to connect: where this one waits yet, or knows of drained
        # agents alone, the other may have an agent by now; one that takes no turns says why.
        away = self._turn_channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        stub = self._agent if away else self._turns
        return EventCall(stub.Chat(request, timeout=timeout_s, metadata=self._metadata(caller)))

    def watch(
        self, turn_id: TurnId, caller: Caller, *, after: int = 0, observer: bool = False, timeout_s: float
    ) -> EventCall:
        """Follow a turn after a place in its log. `observer`: it does not run on for our sake.

        Raises:
            UnvouchedCallerError: this edge cannot vouch for the caller.
        """
        request = pb.WatchTurnRequest(turn_id=turn_id, after_sequence=after, observer=observer)
        return EventCall(self._agent.WatchTurn(request, timeout=timeout_s, metadata=self._metadata(caller)))

    async def stop(self, turn_id: TurnId, caller: Caller) -> Stopped:
        """Abort a turn, wherever it runs, and wait for its end.

        Raises:
            UpstreamError: the call failed, or there is no such turn.
        """
        metadata = self._metadata(caller)
        request = pb.StopTurnRequest(turn_id=turn_id)
        with decoding():
            reply = await self._agent.StopTurn(request, timeout=STOP_TIMEOUT_S, metadata=metadata)
        return convert.stopped_from_proto(reply)

    async def agents(self, caller: Caller) -> list[JsonObject]:
        """The team, the entry first.

        Raises:
            UpstreamError: the call failed.
        """
        metadata = self._metadata(caller)
        with decoding():
            reply = await self._agent.ListAgents(pb.ListAgentsRequest(), timeout=UNARY_TIMEOUT_S, metadata=metadata)
        return [convert.agent_from_proto(each) for each in reply.agents]

    async def search(self, query: str, caller: Caller, *, collections: Sequence[str], top_k: int) -> JsonObject:
        """Passages for a question, without generation.

        Args:
            query: 1 to 8,000 characters.
            caller: finds what they may read.
            collections: search only these; empty: all.
            top_k: most passages to return, 1 to 50.

        Raises:
            UpstreamError: the call failed, or a collection is unknown.
        """
        request = pb_knowledge.SearchRequest(query=query, collections=collections, top_k=top_k)
        metadata = self._metadata(caller)
        with decoding():
            reply = await self._knowledge.Search(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)
        return convert.search_from_proto(reply)

    async def documents(self, caller: Caller, *, collection: str, cursor: str, limit: int) -> JsonObject:
        """A page of documents that the caller may read, ordered by id; empty `collection`: all of them.

        Raises:
            InvalidCursorError: no page of this list gave it.
            UpstreamError: the call failed.
        """
        request = pb_knowledge.ListDocumentsRequest(collection=collection, page_size=limit, page_token=cursor)
        metadata = self._metadata(caller)
        try:
            with decoding():
                reply = await self._knowledge.ListDocuments(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)
        except UpstreamError as err:
            # Our callers know it by another name.
            if any(field == "page_token" for field, _ in err.field_violations):
                raise InvalidCursorError("is no cursor of this list") from None
            raise
        return convert.documents_from_proto(reply)

    async def document(self, document_id: str, version: str, caller: Caller) -> JsonObject:
        """A document, whole; an empty `version` means the current one.

        Raises:
            UpstreamError: the call failed, or there is no such document or version that the caller may read.
        """
        request = pb_knowledge.GetDocumentRequest(id=document_id, version=version)
        metadata = self._metadata(caller)
        with decoding():
            reply = await self._knowledge.GetDocument(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)
        return convert.document_from_proto(reply)

    async def ingest(self, document: NewDocument, caller: Caller) -> JsonObject:
        """Store a document in the caller's tenant. Returns what is known of it, and what was done: `status`.

        Raises:
            DocumentRejectedError: it breaks a rule.
            UnvouchedCallerError: it is for groups, and the agent service would take the caller for its operator.
            UpstreamError: the call failed.
        """
        if self._signer is None and document.groups:
            raise _unvouched()
        request = convert.document_to_proto(document)
        metadata = self._metadata(caller)
        with decoding():
            async for answer in self._ingest_one(request, timeout=INGEST_TIMEOUT_S, metadata=metadata):
                return convert.ingested_from_proto(answer)
        raise UpstreamError("INTERNAL", message="a document was not answered")

    async def delete_document(self, document_id: str, caller: Caller) -> None:
        """Delete a document.

        Raises:
            UpstreamError: the call failed, or there is no such document that the caller may read.
        """
        request = pb_knowledge.DeleteDocumentRequest(id=document_id)
        metadata = self._metadata(caller)
        with decoding():
            await self._knowledge.DeleteDocument(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)

    async def health(self) -> dict[str, Health]:
        """How each service of the agent service is, by our names of them. Never raises; takes at most 2 s."""
        return {name: state or "not_serving" for name, state in (await self._checks(SERVICES)).items()}

    async def parts(self) -> dict[str, Health]:
        """How that is which it can do without, as `health`. An agent of before says nothing of it."""
        return {name: state for name, state in (await self._checks(PARTS)).items() if state is not None}

    async def _checks(self, services: Mapping[str, str]) -> dict[str, Health | None]:
        states = await asyncio.gather(*(self._check(service) for service in services.values()))
        return dict(zip(services, states, strict=True))

    async def _check(self, service: str) -> Health | None:
        """None: the agent knows no such service."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = await self._health.Check(request, timeout=HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as err:
            match err.code():
                case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.UNIMPLEMENTED:
                    return None
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    return "timeout"
                case _:
                    return "unreachable"
        return "ok" if reply.status == health_pb2.HealthCheckResponse.SERVING else "not_serving"

    def _metadata(self, caller: Caller) -> tuple[tuple[str, str], ...]:
        """Who calls, as a token that the agent service verifies, and the id of the request that is being served."""
        request_id = request_id_var.get()
        named = (("x-request-id", request_id),) if request_id else ()
        if self._signer is not None:
            return (*named, ("authorization", f"Bearer {self._signer.sign(caller)}"))
        if caller.tenant != DEFAULT_TENANT or caller.groups:
            raise _unvouched()
        return named


@asynccontextmanager
async def connect(
    target: str, *, signer: CallerSigner | None, grace_s: float, tls: Tls | None = None
) -> AsyncIterator[AgentClient]:
    """A client on channels of its own, in clear without `tls`; an agent that is away is looked for again by itself."""
    async with _channel(target, tls, CHANNEL_OPTIONS) as channel, _channel(target, tls, TURN_OPTIONS) as turns:
        # Connect now; else the first question waits for it.
        channel.get_state(try_to_connect=True)
        turns.get_state(try_to_connect=True)
        yield AgentClient(channel, signer=signer, grace_s=grace_s, turns=turns)


def _channel(target: str, tls: Tls | None, options: Sequence[tuple[str, str | int]]) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    # Of a list of addresses grpc takes the text for the name to look for.
    named = (("grpc.ssl_target_name_override", tls.name),) if tls.name else ()
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
    return grpc.aio.secure_channel(target, credentials, options=(*options, *named))


def _unvouched() -> UnvouchedCallerError:
    log.error("EDGE_AGENT_SIGNING_KEY is needed to vouch for callers with a tenant or groups")
    return UnvouchedCallerError("this edge has no key to vouch for tenants and groups")
