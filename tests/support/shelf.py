"""A store with documents in it: the fake store, filled by the real pipeline with the real encoder."""

from agent_service.ingestion.pipeline import IngestPipeline
from agent_service.retrieval.search import Searcher
from agent_service.retrieval.sparse import Bm25Encoder
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.retrieval.support import SupportCheck
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentInfo,
    IngestStatus,
    Passage,
    Question,
    Source,
    SourceDocument,
)

LOCAL = Caller("local", "default")
BILLING = CollectionName("billing")
POLICY = CollectionName("policy")
TECHNICAL = CollectionName("technical")

ENCODER = Bm25Encoder()
"""Immutable, so all tests may share it."""


class Shelf:
    """A store, what fills it, and what reads it."""

    def __init__(self, *known: CollectionName, store: InMemoryStore | None = None) -> None:
        """`known`: collections that exist by configuration. `store`: where a test brings its own."""
        self.store = store or InMemoryStore()
        self.pipeline = IngestPipeline(self.store, ENCODER)
        self.support = SupportCheck(self.store, ENCODER)
        self.searcher = Searcher(self.store, ENCODER, self.support, known)

    async def put(
        self,
        uri: str,
        text: str,
        *,
        collection: str = "billing",
        title: str = "",
        tenant: str = "default",
        groups: tuple[str, ...] = (),
    ) -> DocumentInfo:
        """Ingest a document; it is current and new when this returns."""
        source = SourceDocument(uri, CollectionName(collection), title, text, Access(tenant, groups))
        done = await self.pipeline.ingest(source)
        assert done.status is not IngestStatus.UNCHANGED
        return done.document

    async def remove(self, info: DocumentInfo) -> None:
        """Delete a document."""
        reader = Caller("remover", info.access.tenant, info.access.groups)
        assert await self.store.delete(info.id, reader) is not None

    async def passages(self, info: DocumentInfo, caller: Caller | None = None) -> list[Passage]:
        """A document's passages, in its order."""
        reader = caller or Caller("reader", info.access.tenant, info.access.groups)
        return await self.store.passages_of(info.id, reader)

    async def sources(self, *infos: DocumentInfo) -> tuple[Source, ...]:
        """All passages of these documents, numbered from 1."""
        found = [passage for info in infos for passage in await self.passages(info)]
        return tuple(Source(marker, passage) for marker, passage in enumerate(found, start=1))


def ask(text: str, *, previous: str = "", caller: Caller = LOCAL) -> Question:
    """A question."""
    return Question(text, previous, caller)
