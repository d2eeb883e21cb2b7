"""Builders of documents as ingestion hands them to a store: whole, in passages, weighed."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from agent_service.ports import VectorStore
from agent_service.retrieval.sparse import Bm25Encoder
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

ENCODER = Bm25Encoder()
TENANT = "acme"
CALLER = Caller("ada", TENANT)
COLLECTION = CollectionName("guides")
NAMESPACE = uuid.UUID(int=7)


def document_id(name: str) -> DocumentId:
    """The id of the test document of that name."""
    return DocumentId(str(uuid.uuid5(NAMESPACE, name)))


@dataclass(frozen=True, slots=True)
class Sample:
    """A document ready to be put."""

    document: StoredDocument
    passages: tuple[IndexedPassage, ...]

    @property
    def id(self) -> DocumentId:
        """The document's id."""
        return self.document.info.id

    @property
    def info(self) -> DocumentInfo:
        """What a store should tell of it."""
        return self.document.info

    @property
    def bare(self) -> list[Passage]:
        """Its passages as a store should return them."""
        return [indexed.passage for indexed in self.passages]

    async def put(self, store: VectorStore) -> "Sample":
        """Put it into a store."""
        await store.put(self.document, self.passages)
        return self


def sample(
    name: str,
    *texts: str,
    version: str = "1",
    collection: CollectionName = COLLECTION,
    access: Access | None = None,
    dense: Sequence[tuple[float, ...]] = (),
) -> Sample:
    """A document whose passages are `texts`: joined, they are its text. Passage ids hold name, version and ordinal."""
    found: list[IndexedPassage] = []
    start = 0
    for ordinal, text in enumerate(texts):
        span = Span(start, start + len(text))
        heading = f"Part {ordinal // 2}"
        passage = Passage(
            id=PassageId(f"{document_id(name)}/{version}/{ordinal}"),
            document_id=document_id(name),
            version=version,
            collection=collection,
            title=f"About {name}",
            uri=f"{name}.md",
            heading=heading,
            ordinal=ordinal,
            span=span,
            text=text,
            # The words there under the passage's heading, and a row made readable under another one.
            sentences=(Sentence(span, text, heading), Sentence(Span(start, start + 1), "Column: value", "")),
        )
        found.append(IndexedPassage(passage, ENCODER.weigh(text), dense[ordinal] if dense else None))
        start = span.end
    info = DocumentInfo(
        id=document_id(name),
        version=version,
        title=f"About {name}",
        uri=f"{name}.md",
        collection=collection,
        access=access or Access(TENANT),
        characters=start,
        passages=len(texts),
        ingested_at=datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC),
    )
    return Sample(StoredDocument(info, "".join(texts)), tuple(found))
