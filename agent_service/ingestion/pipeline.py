"""Takes documents in: checks, names, cuts, weighs and stores them. The text is never changed: offsets count in it."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import unquote
from uuid import UUID, uuid5

from agent_service.errors import FieldViolation, IngestConflictError, InvalidRequestError
from agent_service.ingestion.chunk import CHUNKER_VERSION, Chunk, chunks
from agent_service.ingestion.limits import MAX_TITLE, check
from agent_service.ingestion.outline import Outline
from agent_service.ports import TermEncoder, VectorStore
from agent_service.types import (
    Access,
    Caller,
    DocumentId,
    DocumentInfo,
    IndexedPassage,
    Ingested,
    IngestStatus,
    Passage,
    PassageId,
    SourceDocument,
    StoredDocument,
)

MAX_PASSAGES = 20_000

# Names this project's documents among all UUIDs; another value would rename every document.
_NAMESPACE = UUID("6f1c1c5e-3a0b-5d7e-9a53-0d2f3c9b7a41")
# Shorter texts are cut at once, in a few milliseconds; longer ones in a thread, while the event loop goes on.
_CUT_AT_ONCE = 4_000
# Passages weighed between two looks at the event loop.
_WEIGHED_AT_ONCE = 16

_A = TypeVar("_A")
_T = TypeVar("_T")


def _now() -> datetime:
    return datetime.now(UTC)


class IngestPipeline:
    """Puts documents into a store.

    Whether a document is new is asked with the rights of those who may read the new version. A document whose groups
    all change is therefore reported as created, though it takes the place of an older version that others could see.
    """

    def __init__(self, store: VectorStore, encoder: TermEncoder, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._encoder = encoder
        self._clock = clock
        self._writing: set[DocumentId] = set()

    async def ingest(self, document: SourceDocument) -> Ingested:
        """Store a document; when this returns, it is durable and searchable as a whole.

        Tenant, collection and URI name the document: the same three again are a new version of it. Where title, text
        and access are those of the stored version, nothing is written. A document that is not stored in the end is
        left as it was before.

        Raises:
            InvalidRequestError: a field breaks a rule; all such fields are named ("document.uri"). Or its writer may
                not write it: it is for a group that they are not in, or takes the place of what they cannot read.
            IngestConflictError: the same document is being written by another call.
            RetrievalUnavailableError: the store failed.
        """
        check(document)
        _check_groups(document)
        document_id = document_id_of(document)
        if document_id in self._writing:
            raise IngestConflictError(f"document {document.uri!r} is being written by another request")
        self._writing.add(document_id)
        try:
            await self._check_replaceable(document_id, document)
            return await self._write(document_id, document)
        finally:
            self._writing.discard(document_id)

    async def _check_replaceable(self, document_id: DocumentId, document: SourceDocument) -> None:
        """Keep what the writer cannot read from being overwritten.

        Two replicas that write one document at the same time may each miss the other's; then the later one stays.
        """
        if document.writer is None or await self._store.info(document_id, document.writer):
            return
        if await self._store.exists(document_id):
            rule = "is taken in this collection; choose another"
            raise InvalidRequestError(FieldViolation("document.uri", rule))

    async def _write(self, document_id: DocumentId, document: SourceDocument) -> Ingested:
        access = Access(document.access.tenant, tuple(sorted(set(document.access.groups))))
        outline, title, version = await _aside(_read, document, access)
        stored = await self._store.info(document_id, Caller("ingestion", access.tenant, access.groups))
        if stored is not None and stored.version == version:
            return Ingested(IngestStatus.UNCHANGED, stored)
        cut = await _aside(_cut, document, outline)
        if len(cut) > MAX_PASSAGES:
            rule = f"must have at most {MAX_PASSAGES:,} passages, has {len(cut):,}"
            raise InvalidRequestError(FieldViolation("document.text", rule))
        info = DocumentInfo(
            id=document_id,
            version=version,
            title=title,
            uri=document.uri,
            collection=document.collection,
            access=access,
            characters=len(document.text),
            passages=len(cut),
            ingested_at=self._clock(),
        )
        await self._store.put(StoredDocument(info, document.text), await self._indexed(info, cut))
        return Ingested(IngestStatus.REPLACED if stored else IngestStatus.CREATED, info)

    async def _indexed(self, info: DocumentInfo, cut: Sequence[Chunk]) -> list[IndexedPassage]:
        indexed = []
        for ordinal, piece in enumerate(cut):
            if ordinal % _WEIGHED_AT_ONCE == 0:
                await asyncio.sleep(0)
            # A passage is found by the words above it, too: title, headings, the names of its table's columns.
            words = "\n".join(filter(None, (info.title, piece.heading, piece.context, piece.text)))
            indexed.append(IndexedPassage(_passage(info, ordinal, piece), self._encoder.weigh(words)))
        return indexed


def document_id_of(document: SourceDocument) -> DocumentId:
    """The id of a document: a UUID (version 5) of its tenant, collection and URI, the same for all its versions."""
    # Neither tenant nor collection can hold a slash.
    return DocumentId(str(uuid5(_NAMESPACE, f"{document.access.tenant}/{document.collection}/{document.uri}")))


def _check_groups(document: SourceDocument) -> None:
    """Nobody puts a document before people whose documents they cannot read, nor take back."""
    if document.writer is not None and not set(document.access.groups) <= set(document.writer.groups):
        raise InvalidRequestError(FieldViolation("document.access.groups", "must be groups that the caller is in"))


async def _aside(function: Callable[[SourceDocument, _A], _T], document: SourceDocument, argument: _A) -> _T:
    """Call a function, in a thread where the document is long."""
    if len(document.text) <= _CUT_AT_ONCE:
        return function(document, argument)
    return await asyncio.to_thread(function, document, argument)


def _read(document: SourceDocument, access: Access) -> tuple[Outline, str, str]:
    """The parsed document, its title and its version."""
    outline = Outline(document.text)
    title = _title(document, outline)
    return outline, title, _version(title, access, document.text)


def _cut(_document: SourceDocument, outline: Outline) -> list[Chunk]:
    return chunks(outline)


def _title(document: SourceDocument, outline: Outline) -> str:
    return document.title.strip() or (outline.title or _file_name(document.uri))[:MAX_TITLE]


def _file_name(uri: str) -> str:
    path = unquote(uri.partition("#")[0].partition("?")[0]).replace("\0", "") if "://" in uri else uri
    return PurePosixPath(path).name or uri


def _version(title: str, access: Access, text: str) -> str:
    # As JSON, so that no two different headers are written alike.
    header = json.dumps([CHUNKER_VERSION, title, access.tenant, access.groups])
    return hashlib.sha256(f"{header}\n{text}".encode()).hexdigest()[:16]


def _passage(info: DocumentInfo, ordinal: int, piece: Chunk) -> Passage:
    name = f"{info.version}:{piece.span.start}-{piece.span.end}"
    return Passage(
        id=PassageId(str(uuid5(UUID(info.id), name))),
        document_id=info.id,
        version=info.version,
        collection=info.collection,
        title=info.title,
        uri=info.uri,
        heading=piece.heading,
        ordinal=ordinal,
        span=piece.span,
        text=piece.text,
        sentences=piece.sentences,
    )
