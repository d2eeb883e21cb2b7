"""The fake for tests: dictionaries, and the sums that Qdrant computes. Answers to the stores' contract suite."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import mul
from statistics import stdev

from agent_service.errors import RetrievalUnavailableError
from agent_service.retrieval.stores.payload import check_dense, check_put, in_order
from agent_service.retrieval.stores.selection import PREFETCH, page_start, ranked
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentId,
    DocumentInfo,
    IndexedPassage,
    Passage,
    PassageId,
    ScoredPassage,
    SearchQuery,
    StoredDocument,
    TermId,
    TermStatistics,
)


class InMemoryStore:
    """A `VectorStore` that keeps nothing. `unavailable`: set it to make every call fail as a lost server does."""

    def __init__(self, *, dense_size: int | None = None) -> None:
        self.unavailable = False
        self._dense_size = dense_size
        self._closed = False
        self._documents: dict[DocumentId, StoredDocument] = {}
        self._indexed: dict[DocumentId, tuple[IndexedPassage, ...]] = {}

    async def put(self, document: StoredDocument, passages: Sequence[IndexedPassage]) -> None:
        """See `VectorStore.put`."""
        self._check()
        check_put(document, passages, self._dense_size)
        self._documents[document.info.id] = document
        self._indexed[document.info.id] = tuple(passages)

    async def delete(self, document_id: DocumentId, caller: Caller) -> int | None:
        """See `VectorStore.delete`."""
        if await self.document(document_id, caller) is None:
            return None
        del self._documents[document_id]
        return len(self._indexed.pop(document_id))

    async def info(self, document_id: DocumentId, caller: Caller) -> DocumentInfo | None:
        """See `VectorStore.info`."""
        found = await self.document(document_id, caller)
        return found.info if found else None

    async def exists(self, document_id: DocumentId) -> bool:
        """See `VectorStore.exists`."""
        self._check()
        return document_id in self._documents

    async def document(self, document_id: DocumentId, caller: Caller) -> StoredDocument | None:
        """See `VectorStore.document`."""
        self._check()
        return next((each for each in self._readable(caller) if each.info.id == document_id), None)

    async def page(
        self,
        caller: Caller,
        *,
        collections: Sequence[CollectionName] = (),
        after: DocumentId | None = None,
        limit: int = 50,
    ) -> list[DocumentInfo]:
        """See `VectorStore.page`."""
        self._check()
        start = page_start(after) or ""
        infos = (each.info for each in self._readable(caller, collections))
        return sorted((info for info in infos if info.id >= start), key=lambda info: info.id)[:limit]

    async def passages(self, ids: Sequence[PassageId], caller: Caller) -> list[Passage]:
        """See `VectorStore.passages`."""
        self._check()
        found = {each.passage.id: each.passage for each in self._scope(caller)}
        return [found[passage_id] for passage_id in ids if passage_id in found]

    async def passages_of(self, document_id: DocumentId, caller: Caller) -> list[Passage]:
        """See `VectorStore.passages_of`."""
        self._check()
        return in_order(each.passage for each in self._scope(caller) if each.passage.document_id == document_id)

    async def search(self, query: SearchQuery) -> list[ScoredPassage]:
        """See `VectorStore.search`."""
        self._check()
        check_dense(query.dense, self._dense_size, required=False)
        scope = list(self._scope(query.caller, query.collections))
        sparse = self._bm25(query.terms, scope)
        if query.dense is None:
            return ranked(sparse, query.limit)
        direction = query.dense
        dense = [ScoredPassage(each.passage, _cosine(direction, each.dense or ())) for each in scope]
        return ranked(_dbsf([ranked(sparse, PREFETCH), ranked(dense, PREFETCH)]), query.limit)

    async def term_statistics(
        self, terms: Sequence[TermId], caller: Caller, collections: Sequence[CollectionName] = ()
    ) -> TermStatistics:
        """See `VectorStore.term_statistics`."""
        self._check()
        scope = list(self._scope(caller, collections))
        return TermStatistics(len(scope), {term: _frequency(term, scope) for term in terms})

    async def collections(self) -> Mapping[CollectionName, int]:
        """See `VectorStore.collections`."""
        self._check()
        return Counter(document.info.collection for document in self._documents.values())

    async def close(self) -> None:
        """See `VectorStore.close`."""
        self._closed = True

    def _check(self) -> None:
        if self._closed or self.unavailable:
            raise RetrievalUnavailableError("the store of documents is closed")

    def _readable(self, caller: Caller, collections: Sequence[CollectionName] = ()) -> Iterator[StoredDocument]:
        for document in self._documents.values():
            if _may_read(caller, document.info.access) and document.info.collection in (
                collections or [document.info.collection]
            ):
                yield document

    def _scope(self, caller: Caller, collections: Sequence[CollectionName] = ()) -> Iterator[IndexedPassage]:
        for document in self._readable(caller, collections):
            yield from self._indexed[document.info.id]

    def _bm25(self, terms: Sequence[TermId], scope: Iterable[IndexedPassage]) -> list[ScoredPassage]:
        everything = [each for indexed in self._indexed.values() for each in indexed if each.sparse.indices]
        idf = {term: _idf(_frequency(term, everything), len(everything)) for term in terms}
        hits = []
        for each in scope:
            weights = dict(zip(each.sparse.indices, each.sparse.values, strict=True))
            if common := idf.keys() & weights.keys():
                hits.append(ScoredPassage(each.passage, math.fsum(idf[term] * weights[term] for term in common)))
        return hits


def _may_read(caller: Caller, access: Access) -> bool:
    return caller.tenant == access.tenant and (not access.groups or not set(caller.groups).isdisjoint(access.groups))


def _frequency(term: TermId, passages: Iterable[IndexedPassage]) -> int:
    return sum(term in each.sparse.indices for each in passages)


def _idf(frequency: int, passages: int) -> float:
    """As Qdrant has it (lib/segment, `idf` of sparse vectors)."""
    return math.log1p((passages - frequency + 0.5) / (frequency + 0.5))


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(map(mul, one, other)) / (math.hypot(*one) * math.hypot(*other))


def _dbsf(rankings: Iterable[Sequence[ScoredPassage]]) -> list[ScoredPassage]:
    """Distribution-based score fusion: each ranking's scores go to 0..1 by mean and three standard deviations."""
    fused: dict[PassageId, ScoredPassage] = {}
    for ranking in rankings:
        scores = [hit.score for hit in ranking]
        mean = math.fsum(scores) / max(len(scores), 1)
        spread = 6 * stdev(scores) if len(scores) > 1 else 0.0
        for hit in ranking:
            score = (hit.score - mean) / spread + 0.5 if spread else 0.5
            before = fused[hit.passage.id].score if hit.passage.id in fused else 0.0
            fused[hit.passage.id] = ScoredPassage(hit.passage, before + score)
    return [ScoredPassage(hit.passage, max(hit.score, 0.0)) for hit in fused.values()]
