"""`answerdesk.v1.KnowledgeService` over search, store and ingestion. No policy lives here."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Protocol, cast

from answerdesk.v1 import knowledge_service_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_grpc

from agent_service.errors import DeadlineError, DrainingError, FieldViolation, InvalidRequestError, UnknownDocumentError
from agent_service.ports import VectorStore, WriteGuard
from agent_service.rpc.convert_knowledge import (
    INGEST_STATUSES,
    document_from_proto,
    hit_to_proto,
    info_to_proto,
    page_from_proto,
    search_from_proto,
)
from agent_service.rpc.interceptors import Context, caller_var
from agent_service.types import (
    CollectionName,
    DocumentId,
    Ingested,
    Question,
    ScoredPassage,
    SourceDocument,
)

INGEST_IDLE_S = 120.0
"""An ingestion whose caller sends nothing for so long is ended."""


class Hits(Protocol):
    """What a search returns."""

    @property
    def hits(self) -> Sequence[ScoredPassage]:
        """Best first."""
        ...

    @property
    def support(self) -> float:
        """0 to 1, larger is better."""
        ...


class Search(Protocol):
    """What the servicer needs of retrieval."""

    async def search(self, question: Question, collections: Sequence[CollectionName], limit: int) -> Hits:
        """Find passages."""
        ...


class Ingest(Protocol):
    """What the servicer needs of ingestion."""

    async def ingest(self, document: SourceDocument) -> Ingested:
        """Store a document."""
        ...


class KnowledgeServicer(pb_grpc.KnowledgeServiceServicer):
    """Translates calls to search, store and pipeline."""

    def __init__(self, search: Search, store: VectorStore, pipeline: Ingest, guard: WriteGuard | None = None) -> None:
        """`guard` None: the store is this replica's to change."""
        self._search = search
        self._store = store
        self._pipeline = pipeline
        self._guard = guard
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Let ingestions end after the document in hand."""
        self._draining.set()

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:  # noqa: ARG002
        """Search passages."""
        started = time.perf_counter()
        question, collections, top_k = search_from_proto(request, caller_var.get())
        found = await self._search.search(question, collections, top_k)
        duration_ms = (time.perf_counter() - started) * 1000
        return pb.SearchResponse(passages=map(hit_to_proto, found.hits), support=found.support, duration_ms=duration_ms)

    async def IngestDocuments(
        self,
        request_iterator: AsyncIterator[pb.IngestDocumentsRequest],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        """Store documents as they arrive; one at a time, so that a fast sender waits."""
        position = 0
        # grpc's iterator is an async generator; left unread it must be closed.
        async with aclosing(cast("AsyncGenerator[pb.IngestDocumentsRequest]", aiter(request_iterator))) as requests:
            while (request := await self._next(requests)) is not None:
                position += 1
                yield await self._ingest(position, request.document)

    async def _next(self, requests: AsyncIterator[pb.IngestDocumentsRequest]) -> pb.IngestDocumentsRequest | None:
        """The next document; None at the end.

        Raises:
            DeadlineError: the caller sent nothing for too long.
            DrainingError: the service is shutting down.
        """
        if self._draining.is_set():
            raise DrainingError("this replica is shutting down")
        try:
            async with asyncio.timeout(INGEST_IDLE_S):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineError(f"no document came for {INGEST_IDLE_S:.0f} s") from None

    async def _ingest(self, position: int, document: pb.Document) -> pb.IngestDocumentsResponse:
        await self._require_shared_or_sole()
        started = time.perf_counter()
        response = pb.IngestDocumentsResponse(position=position, uri=document.uri)
        try:
            done = await self._pipeline.ingest(document_from_proto(document, caller_var.get()))
        except InvalidRequestError as err:
            response.status = pb.IngestDocumentsResponse.STATUS_REJECTED
            response.problem = str(err)
        else:
            response.status = INGEST_STATUSES[done.status]
            response.document.CopyFrom(info_to_proto(done.document))
        response.duration_ms = (time.perf_counter() - started) * 1000
        return response

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Context) -> pb.ListDocumentsResponse:  # noqa: ARG002
        """List documents."""
        collections, after, size = page_from_proto(request)
        # One more than asked for tells whether there is a next page.
        infos = await self._store.page(caller_var.get(), collections=collections, after=after, limit=size + 1)
        more = infos[size - 1].id if len(infos) > size else ""
        return pb.ListDocumentsResponse(documents=map(info_to_proto, infos[:size]), next_page_token=more)

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:  # noqa: ARG002
        """Read a document."""
        document = await self._store.document(_document_id(request.id), caller_var.get())
        if document is None or request.version not in {"", document.info.version}:
            raise UnknownDocumentError(request.id)
        return pb.GetDocumentResponse(document=info_to_proto(document.info), text=document.text)

    async def DeleteDocument(self, request: pb.DeleteDocumentRequest, context: Context) -> pb.DeleteDocumentResponse:  # noqa: ARG002
        """Delete a document."""
        await self._require_shared_or_sole()
        passages = await self._store.delete(_document_id(request.id), caller_var.get())
        if passages is None:
            raise UnknownDocumentError(request.id)
        return pb.DeleteDocumentResponse(passages=passages)

    async def _require_shared_or_sole(self) -> None:
        if self._guard is not None:
            await self._guard.require_shared_or_sole()


def _document_id(given: str) -> DocumentId:
    """A document's id.

    Raises:
        InvalidRequestError: it is missing.
        UnknownDocumentError: it is no UUID, so there is no such document.
    """
    if not given:
        raise InvalidRequestError(FieldViolation("id", "must not be empty"))
    try:
        return DocumentId(str(uuid.UUID(given)))
    except ValueError:
        raise UnknownDocumentError(given[:100]) from None
