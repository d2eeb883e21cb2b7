"""Streams documents to a serving agent: the client side of IngestDocuments and Search for the command line."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from answerdesk.v1 import knowledge_service_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.rpc.convert_knowledge import document_to_proto
from agent_service.rpc.tls import ClientTls
from agent_service.types import SourceDocument

CONNECT_S = 2.0
DOCUMENT_S = 60.0
"""Longest wait for the answer to one document."""

SEARCH_S = 15.0

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

STATUS_WORDS = {
    pb.IngestDocumentsResponse.STATUS_CREATED: "created",
    pb.IngestDocumentsResponse.STATUS_REPLACED: "replaced",
    pb.IngestDocumentsResponse.STATUS_UNCHANGED: "unchanged",
    pb.IngestDocumentsResponse.STATUS_REJECTED: "rejected",
}


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of one document. `status`: created, replaced, unchanged or rejected; `problem`: why rejected."""

    uri: str
    status: str
    passages: int = 0
    problem: str = ""


class CallFailedError(Exception):
    """The serving agent ended the call. The message names its reason; documents reported before are durable."""


async def serving(target: str, tls: ClientTls | None = None) -> bool:
    """Whether an agent answers at `target` within two seconds, and over TLS where that is asked for."""
    async with _channel(target, tls) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=CONNECT_S)
        except grpc.aio.AioRpcError:
            return False
    return True


async def ingest_remotely(
    target: str,
    documents: Iterable[SourceDocument],
    report: Callable[[IngestReport], None],
    token: str | None = None,
    tls: ClientTls | None = None,
) -> None:
    """Send documents to the agent at `target`, one after the answer to the other.

    Args:
        target: HOST:PORT.
        documents: read lazily, so that memory holds one at a time.
        report: called for each, in order, when it is durable or rejected.
        token: says who calls; None: the agent's own machine.
        tls: None: in clear.

    Raises:
        CallFailedError: the agent ended the call, or did not answer in time.
    """
    async with _channel(target, tls) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        metadata = _metadata(token)
        try:
            for document in documents:
                # A call per document: each has its own deadline, and a call that the agent ends early keeps its
                # reason, which on one long call a write of ours could overtake.
                request = pb.IngestDocumentsRequest(document=document_to_proto(document))
                async for answer in stub.IngestDocuments(iter((request,)), metadata=metadata, timeout=DOCUMENT_S):
                    report(_report(answer))
        except grpc.aio.AioRpcError as err:
            raise CallFailedError(f"{err.code().name}: {err.details()}") from err


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A passage found. `score`: larger is better."""

    uri: str
    title: str
    heading: str
    score: float
    text: str


async def search_remotely(
    target: str, query: str, top_k: int, token: str | None = None, tls: ClientTls | None = None
) -> list[SearchHit]:
    """The best passages for a query, best first, from the agent at `target`.

    Raises:
        CallFailedError: the agent refused the search, or did not answer in time.
    """
    async with _channel(target, tls) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        try:
            request = pb.SearchRequest(query=query, top_k=top_k)
            reply = await stub.Search(request, metadata=_metadata(token), timeout=SEARCH_S)
        except grpc.aio.AioRpcError as err:
            raise CallFailedError(f"{err.code().name}: {err.details()}") from err
    return [SearchHit(p.uri, p.title, p.heading, p.score, p.text) for p in reply.passages]


def _channel(target: str, tls: ClientTls | None) -> grpc.aio.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    return tls.channel(target, options) if tls else grpc.aio.insecure_channel(target, options=options)


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _report(answer: pb.IngestDocumentsResponse) -> IngestReport:
    return IngestReport(answer.uri, STATUS_WORDS[answer.status], answer.document.passages, answer.problem)
