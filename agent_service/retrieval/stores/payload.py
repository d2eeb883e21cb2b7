"""Documents and passages as the payloads of Qdrant points, and back. Shared by the adapters; knows no client.

One Qdrant collection holds three kinds of points:

- `passage`: the sparse vector "bm25" (and "dense" where asked for), every field of the passage, its term ids.
- `document`: no vector; what is known of the document and its whole text.
- `replaced`: no vector, nothing else. A passage of an older version becomes one in the same operation that stores
  the new version, so that no search ever sees both; a second operation then removes it.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentId,
    DocumentInfo,
    IndexedPassage,
    Passage,
    PassageId,
    Sentence,
    Span,
    StoredDocument,
)

Payload = dict[str, Any]

SPARSE: Final = "bm25"
DENSE: Final = "dense"
FORMAT: Final = 1
"""Of payloads, vectors and term weights. Raise it when an older directory or server cannot be read or searched."""
COLLECTION: Final = f"answerdesk_{FORMAT}"

PASSAGE: Final = "passage"
DOCUMENT: Final = "document"
REPLACED: Final = "replaced"

KEYWORD_INDEXES: Final = ("kind", "tenant", "readers", "collection", "document_id")
INTEGER_INDEXES: Final = ("terms",)

_PASSAGE_NAMESPACE = uuid.UUID("6f6b5f3e-52b8-5d0a-9a57-0d9b3a6d1c41")
_EVERYONE = "*"


def passage_point(passage_id: PassageId) -> str:
    """The point id of a passage. Passage ids are unique in the whole store."""
    return str(uuid.uuid5(_PASSAGE_NAMESPACE, passage_id))


def document_point(document_id: str) -> str | None:
    """The point id of a document: its own id, a UUID in canonical form; None for anything else."""
    try:
        canonical = str(uuid.UUID(document_id))
    except ValueError:
        return None
    return canonical if canonical == document_id else None


def readers_of(access: Access) -> list[str]:
    """Who in the tenant may read. Groups carry a prefix, so that one called "*" does not open a document to all."""
    return [f"group:{group}" for group in access.groups] or [_EVERYONE]


def readers_for(caller: Caller) -> list[str]:
    """What `readers_of` may hold for this caller to read: any one of these."""
    return [_EVERYONE, *(f"group:{group}" for group in caller.groups)]


def passage_payload(indexed: IndexedPassage, access: Access) -> Payload:
    """The payload of a passage's point."""
    passage = indexed.passage
    return {
        "kind": PASSAGE,
        "tenant": access.tenant,
        "readers": readers_of(access),
        "id": passage.id,
        "document_id": passage.document_id,
        "version": passage.version,
        "collection": passage.collection,
        "title": passage.title,
        "uri": passage.uri,
        "heading": passage.heading,
        "ordinal": passage.ordinal,
        "span": [passage.span.start, passage.span.end],
        "text": passage.text,
        "sentences": [_sentence_row(sentence, passage) for sentence in passage.sentences],
        # Counted by filter for exact document frequencies; sparse vectors cannot be filtered by.
        "terms": list(indexed.sparse.indices),
    }


def passage_from_payload(payload: Mapping[str, Any]) -> Passage:
    """A passage from its point's payload; `terms` may be left out of it."""
    start, end = payload["span"]
    text, heading = payload["text"], payload["heading"]
    return Passage(
        id=PassageId(payload["id"]),
        document_id=DocumentId(payload["document_id"]),
        version=payload["version"],
        collection=CollectionName(payload["collection"]),
        title=payload["title"],
        uri=payload["uri"],
        heading=heading,
        ordinal=payload["ordinal"],
        span=Span(start, end),
        text=text,
        sentences=tuple(
            Sentence(
                span=Span(first, last),
                text=text[first - start : last - start] if words is None else words,
                heading=heading if under is None else under,
            )
            for first, last, under, words in payload["sentences"]
        ),
    )


def document_payload(document: StoredDocument) -> Payload:
    """The payload of a document's point."""
    info = document.info
    return {
        "kind": DOCUMENT,
        "tenant": info.access.tenant,
        "readers": readers_of(info.access),
        "document_id": info.id,
        "version": info.version,
        "collection": info.collection,
        "title": info.title,
        "uri": info.uri,
        "groups": list(info.access.groups),
        "characters": info.characters,
        "passages": info.passages,
        "ingested_at": info.ingested_at.isoformat(),
        "text": document.text,
    }


def info_from_payload(payload: Mapping[str, Any]) -> DocumentInfo:
    """What is known of a document, from its point's payload; `text` may be left out of it."""
    return DocumentInfo(
        id=DocumentId(payload["document_id"]),
        version=payload["version"],
        title=payload["title"],
        uri=payload["uri"],
        collection=CollectionName(payload["collection"]),
        access=Access(payload["tenant"], tuple(payload["groups"])),
        characters=payload["characters"],
        passages=payload["passages"],
        ingested_at=datetime.fromisoformat(payload["ingested_at"]),
    )


def document_from_payload(payload: Mapping[str, Any]) -> StoredDocument:
    """A document with its text, from its point's payload."""
    return StoredDocument(info_from_payload(payload), payload["text"])


def in_order(passages: Iterable[Passage]) -> list[Passage]:
    """Passages of one document in the order of its text."""
    return sorted(passages, key=lambda passage: passage.ordinal)


def check_put(document: StoredDocument, passages: Sequence[IndexedPassage], dense_size: int | None) -> None:
    """Refuse what no reader could make sense of: the mistake is in the calling code.

    Raises:
        ValueError: the id is no UUID, a passage belongs elsewhere or appears twice, or a dense vector does not fit.
    """
    info = document.info
    if document_point(info.id) is None:
        raise ValueError(f"the document id {info.id!r} is not a UUID in canonical form")
    if info.passages != len(passages):
        raise ValueError(f"document {info.id} announces {info.passages} passages and has {len(passages)}")
    if len({indexed.passage.id for indexed in passages}) != len(passages):
        raise ValueError(f"passages of document {info.id} share an id")
    for indexed in passages:
        passage = indexed.passage
        if (passage.document_id, passage.version, passage.collection) != (info.id, info.version, info.collection):
            raise ValueError(f"passage {passage.id} is not of document {info.id}, version {info.version}")
        check_dense(indexed.dense, dense_size, required=dense_size is not None)


def check_dense(dense: Sequence[float] | None, size: int | None, *, required: bool) -> None:
    """Raises: ValueError: a dense vector that the store has no place for, or none where each passage has one."""
    if dense is None and not required:
        return
    if dense is None or len(dense) != size:
        raise ValueError(f"dense vector of size {None if dense is None else len(dense)}, the store has {size}")


def _sentence_row(sentence: Sentence, passage: Passage) -> list[Any]:
    """[start, end, heading, text]; None for a heading that is the passage's, or a text that is the words there."""
    start, end = sentence.span.start, sentence.span.end
    words = passage.text[start - passage.span.start : end - passage.span.start]
    heading = None if sentence.heading == passage.heading else sentence.heading
    return [start, end, heading, None if sentence.text == words else sentence.text]
