"""Between the messages of KnowledgeService and our types. Pure; validation of requests is here, policy is not."""

from typing import Final

from answerdesk.v1 import conversation_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb
from google.protobuf.timestamp_pb2 import Timestamp

from agent_service.rpc.convert import MAX_MESSAGE, passage_to_proto
from agent_service.rpc.interceptors import LOCAL
from agent_service.rpc.rules import Rules
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentId,
    DocumentInfo,
    IngestStatus,
    Question,
    ScoredPassage,
    SourceDocument,
)

MAX_COLLECTIONS: Final = 16

INGEST_STATUSES: Final = {
    IngestStatus.CREATED: knowledge_pb.IngestDocumentsResponse.STATUS_CREATED,
    IngestStatus.REPLACED: knowledge_pb.IngestDocumentsResponse.STATUS_REPLACED,
    IngestStatus.UNCHANGED: knowledge_pb.IngestDocumentsResponse.STATUS_UNCHANGED,
}


def hit_to_proto(hit: ScoredPassage) -> pb.Passage:
    """A search hit."""
    return passage_to_proto(hit.passage, score=hit.score)


def search_from_proto(
    request: knowledge_pb.SearchRequest, caller: Caller
) -> tuple[Question, tuple[CollectionName, ...], int]:
    """A validated search: the question, the collections, the number of passages.

    Raises:
        InvalidRequestError: with every broken rule.
    """
    rules = Rules()
    rules.text(request.query, "query", MAX_MESSAGE)
    fits = len(request.previous_query) <= MAX_MESSAGE
    rules.hold(fits, "previous_query", f"must have at most {MAX_MESSAGE} characters")
    rules.hold(len(request.collections) <= MAX_COLLECTIONS, "collections", f"must be at most {MAX_COLLECTIONS}")
    rules.hold(request.top_k <= 50, "top_k", "must be 1 to 50")
    rules.check()
    collections = tuple(dict.fromkeys(CollectionName(name) for name in request.collections))
    return Question(request.query, request.previous_query, caller), collections, request.top_k or 8


def document_from_proto(document: knowledge_pb.Document, caller: Caller) -> SourceDocument:
    """A document as handed in; ingestion checks its fields.

    Raises:
        InvalidRequestError: it names another tenant than the caller's.
    """
    rules = Rules()
    own = document.access.tenant in {"", caller.tenant}
    rules.hold(own, "document.access.tenant", "must be the caller's own tenant, or empty")
    rules.check()
    return SourceDocument(
        uri=document.uri,
        collection=CollectionName(document.collection),
        title=document.title,
        text=document.text,
        access=Access(caller.tenant, tuple(document.access.groups)),
        # By identity: a token may say the same of somebody else.
        writer=None if caller is LOCAL else caller,
    )


def document_to_proto(document: SourceDocument) -> knowledge_pb.Document:
    """A document to send to a serving agent."""
    return knowledge_pb.Document(
        uri=document.uri,
        collection=document.collection,
        title=document.title,
        text=document.text,
        access=pb.Access(tenant=document.access.tenant, groups=document.access.groups),
    )


def info_to_proto(info: DocumentInfo) -> knowledge_pb.DocumentInfo:
    """What is known of a document."""
    ingested_at = Timestamp()
    ingested_at.FromDatetime(info.ingested_at)
    return knowledge_pb.DocumentInfo(
        id=info.id,
        version=info.version,
        title=info.title,
        uri=info.uri,
        collection=info.collection,
        access=pb.Access(tenant=info.access.tenant, groups=info.access.groups),
        characters=info.characters,
        passages=info.passages,
        ingested_at=ingested_at,
    )


def page_from_proto(
    request: knowledge_pb.ListDocumentsRequest,
) -> tuple[tuple[CollectionName, ...], DocumentId | None, int]:
    """A validated page request: collections, the id to go on after, the size.

    Raises:
        InvalidRequestError: the size is out of range.
    """
    rules = Rules()
    rules.hold(0 <= request.page_size <= 200, "page_size", "must be 1 to 200")
    rules.check()
    collections = (CollectionName(request.collection),) if request.collection else ()
    after = DocumentId(request.page_token) if request.page_token else None
    return collections, after, request.page_size or 50
