"""What the embedded engine is asked, call by call. Blocking; runs on the worker of `EdgeStore`, never elsewhere."""

from collections.abc import Hashable, Iterator, Sequence
from typing import cast

import qdrant_edge as qdrant

from agent_service.errors import StartupError
from agent_service.retrieval.stores.directory import DataDirectory
from agent_service.retrieval.stores.payload import (
    DENSE,
    INTEGER_INDEXES,
    KEYWORD_INDEXES,
    REPLACED,
    SPARSE,
    document_from_payload,
    document_payload,
    in_order,
    info_from_payload,
    passage_from_payload,
    passage_payload,
    passage_point,
)
from agent_service.retrieval.stores.selection import (
    ALL_DOCUMENTS,
    LEFT_OVER,
    PAGE,
    PREFETCH,
    Selection,
    cut_through_tie,
    documents_for,
    everything_of,
    passages_for,
    ranked,
)
from agent_service.types import (
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

_SHARD = "shard"
_MAX_COLLECTIONS = 10_000
_WITHOUT_TERMS = qdrant.PayloadSelector.Exclude(["terms"])
_WITHOUT_TEXT = qdrant.PayloadSelector.Exclude(["text"])


def load(directory: DataDirectory, dense_size: int | None) -> qdrant.EdgeShard:
    """Open the shard of a data directory, after making one if there is none.

    Raises:
        StartupError: it cannot be made, is damaged, or was made with another schema.
    """
    if not directory.store.exists():
        try:
            _create(directory, dense_size)
        except Exception as err:
            raise StartupError(
                f"no store can be made in {directory.path} ({err}): make room there, or set AGENT_DATA_DIR"
            ) from err
    directory.check_schema(dense_size)
    try:
        shard = qdrant.EdgeShard.load(str(directory.store / _SHARD))
        # A crash between the two operations of `put` leaves these; nothing ever finds them.
        shard.update(qdrant.UpdateOperation.delete_points_by_filter(_filter(LEFT_OVER)))
    except BaseException as err:  # the engine's panics are not `Exception`s
        raise directory.damaged(str(err).partition("\n")[0]) from err
    return shard


def put(shard: qdrant.EdgeShard, document: StoredDocument, passages: Sequence[IndexedPassage]) -> None:
    """Store a version and drop the others: one operation shows the new and hides the old, the next removes the old."""
    points = [_passage_point(indexed, document) for indexed in passages]
    points.append(qdrant.Point(document.info.id, {}, document_payload(document)))
    _replace(shard, document.info.id, points)


def delete(shard: qdrant.EdgeShard, document_id: DocumentId, caller: Caller) -> int | None:
    """Delete a document with its passages."""
    found = infos(shard, documents_for(caller, document_id=document_id), start=None, limit=1)
    if not found:
        return None
    _replace(shard, document_id, [])
    return found[0].passages


def infos(shard: qdrant.EdgeShard, chosen: Selection, *, start: str | None, limit: int) -> list[DocumentInfo]:
    """Documents in ascending order of their ids."""
    request = qdrant.ScrollRequest(offset=start, limit=limit, filter=_filter(chosen), with_payload=_WITHOUT_TEXT)
    return [info_from_payload(record.payload or {}) for record in shard.scroll(request)[0]]


def document(shard: qdrant.EdgeShard, document_id: DocumentId, caller: Caller) -> StoredDocument | None:
    """A document with its text."""
    chosen = documents_for(caller, document_id=document_id)
    found = shard.scroll(qdrant.ScrollRequest(limit=1, filter=_filter(chosen), with_payload=True))[0]
    return document_from_payload(found[0].payload or {}) if found else None


def passages(shard: qdrant.EdgeShard, ids: Sequence[PassageId], caller: Caller) -> list[Passage]:
    """Passages in the order of `ids`."""
    if not ids:
        return []
    chosen = passages_for(caller, points=map(passage_point, ids))
    found = {passage.id: passage for passage in _passages(shard, chosen)}
    return [found[passage_id] for passage_id in ids if passage_id in found]


def passages_of(shard: qdrant.EdgeShard, document_id: DocumentId, caller: Caller) -> list[Passage]:
    """A document's passages in its order."""
    return in_order(_passages(shard, passages_for(caller, document_id=document_id)))


def search(shard: qdrant.EdgeShard, query: SearchQuery) -> list[ScoredPassage]:
    """Best first, ties by passage id."""
    if not query.terms and query.dense is None:
        return []
    fetched = query.limit + 1
    points = shard.query(_query(query, fetched))
    while cut_through_tie([point.score for point in points], query.limit, fetched):
        fetched *= 2
        points = shard.query(_query(query, fetched))
    hits = (ScoredPassage(passage_from_payload(point.payload or {}), max(point.score, 0.0)) for point in points)
    return ranked(hits, query.limit)


def term_statistics(
    shard: qdrant.EdgeShard,
    terms: Sequence[TermId],
    caller: Caller,
    collections: Sequence[CollectionName],
    known: dict[Hashable, int],
) -> TermStatistics:
    """Exact counts. `known`: counts that still hold; those that are made are added."""
    scope = passages_for(caller, collections)
    asker = (caller.tenant, caller.groups, tuple(collections))

    def count(term: TermId | None) -> int:
        key = (asker, term)
        if key not in known:
            known[key] = _count(shard, scope if term is None else scope.term(term))
        return known[key]

    return TermStatistics(count(None), {term: count(term) for term in terms})


def collections(shard: qdrant.EdgeShard) -> dict[CollectionName, int]:
    """Documents in each collection."""
    request = qdrant.FacetRequest("collection", limit=_MAX_COLLECTIONS, exact=True, filter=_filter(ALL_DOCUMENTS))
    return {CollectionName(str(hit.value)): hit.count for hit in shard.facet(request).hits}


def _create(directory: DataDirectory, dense_size: int | None) -> None:
    sparse = {SPARSE: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)}
    dense = {DENSE: qdrant.EdgeVectorParams(size=dense_size, distance=qdrant.Distance.Cosine)} if dense_size else None
    place = directory.begin(dense_size)
    shard = qdrant.EdgeShard.create(str(place / _SHARD), qdrant.EdgeConfig(vectors=dense, sparse_vectors=sparse))
    for field in KEYWORD_INDEXES:
        shard.update(qdrant.UpdateOperation.create_field_index(field, qdrant.PayloadSchemaType.Keyword))
    lookup = qdrant.IntegerIndexParams(lookup=True, range=False)
    for field in INTEGER_INDEXES:
        shard.update(qdrant.UpdateOperation.create_field_index(field, lookup))
    shard.close()
    directory.finish()


def _replace(shard: qdrant.EdgeShard, document_id: DocumentId, points: list[qdrant.Point]) -> None:
    """Make these all the points of a document.

    Points are not deleted as they are: the engine goes on counting the terms of a deleted vector, and IDF would drift
    (measured: to 0 where most of a term's passages were deleted). Overwritten without a vector they are forgotten.
    """
    before = {str(record.id) for record in _scroll(shard, everything_of(document_id), payload=False)}
    gone = before.difference(str(point.id) for point in points)
    points.extend(qdrant.Point(point_id, {}, {"kind": REPLACED}) for point_id in gone)
    shard.update(qdrant.UpdateOperation.upsert_points(points))
    if gone:
        shard.update(qdrant.UpdateOperation.delete_points_by_filter(_filter(LEFT_OVER)))


def _passage_point(indexed: IndexedPassage, document: StoredDocument) -> qdrant.Point:
    vector: dict[str, qdrant.NamedVector] = {}
    # One without terms would not be counted for IDF now, but wrongly once it is overwritten.
    if indexed.sparse.indices:
        vector[SPARSE] = qdrant.SparseVector(list(indexed.sparse.indices), list(indexed.sparse.values))
    if indexed.dense is not None:
        vector[DENSE] = list(indexed.dense)
    payload = passage_payload(indexed, document.info.access)
    return qdrant.Point(passage_point(indexed.passage.id), vector, payload)


def _query(query: SearchQuery, limit: int) -> qdrant.QueryRequest:
    allowed = _filter(passages_for(query.caller, query.collections))
    ones = [1.0] * len(query.terms)
    sparse = qdrant.Query.Nearest(qdrant.SparseVector(list(query.terms), ones), using=SPARSE)
    if query.dense is None:
        return qdrant.QueryRequest(limit=limit, query=sparse, filter=allowed, with_payload=_WITHOUT_TERMS)
    dense = qdrant.Query.Nearest(list(query.dense), using=DENSE)
    kinds = [sparse, dense] if query.terms else [dense]
    return qdrant.QueryRequest(
        limit=limit,
        query=cast("qdrant.Fusion", qdrant.Fusion.Dbsf()),  # the stubs do not show that it is one
        prefetches=[qdrant.Prefetch(limit=PREFETCH, query=kind, filter=allowed) for kind in kinds],
        with_payload=_WITHOUT_TERMS,
    )


def _passages(shard: qdrant.EdgeShard, chosen: Selection) -> Iterator[Passage]:
    return (passage_from_payload(record.payload or {}) for record in _scroll(shard, chosen, payload=_WITHOUT_TERMS))


def _scroll(
    shard: qdrant.EdgeShard, chosen: Selection, *, payload: bool | qdrant.PayloadSelector
) -> Iterator[qdrant.Record]:
    offset: qdrant.PointId | None = None
    while True:
        records, offset = shard.scroll(
            qdrant.ScrollRequest(offset=offset, limit=PAGE, filter=_filter(chosen), with_payload=payload)
        )
        yield from records
        if offset is None:
            return


def _count(shard: qdrant.EdgeShard, chosen: Selection) -> int:
    return shard.count(qdrant.CountRequest(exact=True, filter=_filter(chosen)))


def _filter(chosen: Selection) -> qdrant.Filter:
    must: list[qdrant.ConditionType] = [
        qdrant.FieldCondition(key, match=qdrant.MatchValue(value)) for key, value in chosen.equal.items()
    ]
    must += [qdrant.FieldCondition(key, match=qdrant.MatchAny(list(values))) for key, values in chosen.among.items()]
    if chosen.points is not None:
        must.append(qdrant.HasIdCondition(set(chosen.points)))
    return qdrant.Filter(must=must)
