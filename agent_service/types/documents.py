"""Documents, their passages and sentences, and what ingestion makes of them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from agent_service.types.basics import Access, Caller, CollectionName, DocumentId, PassageId, Span, TermId


@dataclass(frozen=True, slots=True)
class Sentence:
    """The smallest piece of a document that is quoted: a sentence, a list item, a table row or a code block.

    `span` counts in the document's text; the words there are the quote. `text` is the same made readable on its
    own: without markup, and a table row with its column names.
    """

    span: Span
    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document under one heading; `text` is exactly the document's text at `span`.

    The passages of a document tile it: each begins where the one before ends.
    """

    id: PassageId
    document_id: DocumentId
    version: str
    collection: CollectionName
    title: str
    uri: str
    heading: str
    ordinal: int
    span: Span
    text: str
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Term weights: parallel sequences, ids ascending and unique, weights above 0."""

    indices: tuple[TermId, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IndexedPassage:
    """A passage with what it is found by. `dense`: (d,) float32, L2-normalised, where the store has dense vectors."""

    passage: Passage
    sparse: SparseVector
    dense: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What is known of a stored document, without its text."""

    id: DocumentId
    version: str
    title: str
    uri: str
    collection: CollectionName
    access: Access
    characters: int
    passages: int
    ingested_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document with its text, in which all its spans count."""

    info: DocumentInfo
    text: str


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document as handed in for ingestion. Empty `title`: taken from the text or the URI.

    `writer`: whose rights the writing needs; None: the operator's, who may write everything.
    """

    uri: str
    collection: CollectionName
    title: str
    text: str
    access: Access
    writer: Caller | None = None


class IngestStatus(StrEnum):
    """What became of a document handed in."""

    CREATED = "created"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Ingested:
    """A document that is durable and searchable as a whole."""

    status: IngestStatus
    document: DocumentInfo
