"""Streams documents to a serving agent: the client side of IngestDocuments and Search for the command line."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from answerdesk.v1 import knowledge_service_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.rpc.convert_knowledge import document_to_proto
from agent_service.types import SourceDocument

CONNECT_S = 2.0
DOCUMENT_S = 60.0
"""Longest wait for the answer to one document."""

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


class IngestFailedError(Exception):
    """The serving agent ended the ingestion. The message names its reason; what was reported before is durable."""


async def serving(target: str) -> bool:
    """Whether an agent answers at `target` within two seconds."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=CONNECT_S)
        except grpc.aio.AioRpcError:
            return False
    return True


async def ingest_remotely(
    target: str, documents: Iterable[SourceDocument], report: Callable[[IngestReport], None]
) -> None:
    """Send documents to the agent at `target`, one after the answer to the other.

    Args:
        target: HOST:PORT.
        documents: read lazily, so that memory holds one at a time.
        report: called for each, in order, when it is durable or rejected.

    Raises:
        IngestFailedError: the agent ended the call, or did not answer in time.
    """
    options = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        try:
            for document in documents:
                # A call per document costs a millisecond and gives each its own time limit.
                request = pb.IngestDocumentsRequest(document=document_to_proto(document))
                async for answer in stub.IngestDocuments(_once(request), timeout=DOCUMENT_S):
                    report(_report(answer))
        except grpc.aio.AioRpcError as err:
            raise IngestFailedError(f"{err.code().name}: {err.details()}") from err


async def _once(request: pb.IngestDocumentsRequest) -> AsyncIterator[pb.IngestDocumentsRequest]:
    yield request


def _report(answer: pb.IngestDocumentsResponse) -> IngestReport:
    return IngestReport(answer.uri, STATUS_WORDS[answer.status], answer.document.passages, answer.problem)
