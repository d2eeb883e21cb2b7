"""What a Qdrant server is sent: points, filters, queries and the schema of the collection. Pure; awaits nothing."""

from collections.abc import Iterable, Sequence

from qdrant_client import models

from agent_service.errors import StartupError
from agent_service.retrieval.stores.payload import (
    COLLECTION,
    DENSE,
    REPLACED,
    SPARSE,
    document_payload,
    passage_payload,
    passage_point,
)
from agent_service.retrieval.stores.selection import PREFETCH, Selection
from agent_service.types import IndexedPassage, SearchQuery, StoredDocument

WITHOUT_TERMS = models.PayloadSelectorExclude(exclude=["terms"])
WITHOUT_TEXT = models.PayloadSelectorExclude(exclude=["text"])
LOOKUP_INDEX = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True, range=False)
# Keeps the points of a tenant together on disk: every query names one.
TENANT_INDEX = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)


def dense_params(dense_size: int | None) -> dict[str, models.VectorParams]:
    """The dense vectors of the collection."""
    if dense_size is None:
        return {}
    return {DENSE: models.VectorParams(size=dense_size, distance=models.Distance.COSINE)}


def sparse_params() -> dict[str, models.SparseVectorParams]:
    """The sparse vectors of the collection."""
    return {SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)}


def check_schema(found: models.CollectionParams, dense_size: int | None) -> None:
    """Does the server's collection hold what is asked for?

    Raises:
        StartupError: it does not.
    """
    vectors = found.vectors if isinstance(found.vectors, dict) else {}
    sizes = {name: params.size for name, params in vectors.items()}
    wanted = {name: params.size for name, params in dense_params(dense_size).items()}
    sparse = (found.sparse_vectors or {}).get(SPARSE)
    if sizes != wanted or sparse is None or sparse.modifier != models.Modifier.IDF:
        raise StartupError(
            f"the collection {COLLECTION!r} of the Qdrant server has dense vectors {sizes or 'none'}, this "
            f"configuration needs {wanted or 'none'} and sparse ones with IDF: set AGENT_QDRANT_URL to another server "
            "or delete the collection there, and ingest the documents again"
        )


def points_of(document: StoredDocument, passages: Iterable[IndexedPassage]) -> list[models.PointStruct]:
    """A version of a document as points."""
    points = [_passage_struct(indexed, document) for indexed in passages]
    points.append(models.PointStruct(id=document.info.id, vector={}, payload=document_payload(document)))
    return points


def left_over(before: Iterable[str], points: Iterable[models.PointStruct]) -> list[models.PointStruct]:
    """What overwrites those points of `before` that `points` do not: nothing finds them.

    They lose their vectors before they are deleted, because the sparse index goes on counting the terms of a deleted
    point for IDF until it is rebuilt.
    """
    gone = set(before).difference(str(point.id) for point in points)
    return [models.PointStruct(id=point_id, vector={}, payload={"kind": REPLACED}) for point_id in gone]


def filter_of(chosen: Selection) -> models.Filter:
    """A selection in the server's words."""
    must: list[models.Condition] = [
        models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in chosen.equal.items()
    ]
    must += [
        models.FieldCondition(key=key, match=models.MatchAny(any=list(values))) for key, values in chosen.among.items()
    ]
    if chosen.points is not None:
        must.append(models.HasIdCondition(has_id=list(chosen.points)))
    return models.Filter(must=must)


def prefetches_of(query: SearchQuery, dense: Sequence[float], allowed: models.Filter) -> list[models.Prefetch]:
    """One per kind of vector; a query without terms has dense ones only."""
    found = [models.Prefetch(query=list(dense), using=DENSE, filter=allowed, limit=PREFETCH)]
    if query.terms:
        found.append(models.Prefetch(query=sparse_of(query), using=SPARSE, filter=allowed, limit=PREFETCH))
    return found


def sparse_of(query: SearchQuery) -> models.SparseVector:
    """The query's terms, each with weight 1: the server multiplies by IDF."""
    return models.SparseVector(indices=list(query.terms), values=[1.0] * len(query.terms))


def _passage_struct(indexed: IndexedPassage, document: StoredDocument) -> models.PointStruct:
    vector: dict[str, models.Vector] = {}
    # One without terms is no part of what IDF counts: the embedded engine leaves it out, this one would not.
    if (sparse := indexed.sparse).indices:
        vector[SPARSE] = models.SparseVector(indices=list(sparse.indices), values=list(sparse.values))
    if indexed.dense is not None:
        vector[DENSE] = list(indexed.dense)
    return models.PointStruct(
        id=passage_point(indexed.passage.id), vector=vector, payload=passage_payload(indexed, document.info.access)
    )
