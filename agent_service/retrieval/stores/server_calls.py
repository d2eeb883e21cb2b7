"""What a Qdrant server is asked, call by call. Time limits and the translation of failures are `ServerStore`'s."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions import common_types
from qdrant_client.http.exceptions import UnexpectedResponse

from agent_service.retrieval.stores.payload import (
    COLLECTION,
    INTEGER_INDEXES,
    KEYWORD_INDEXES,
    SPARSE,
    document_from_payload,
    info_from_payload,
    passage_from_payload,
)
from agent_service.retrieval.stores.selection import (
    ALL_DOCUMENTS,
    LEFT_OVER,
    PAGE,
    Selection,
    cut_through_tie,
    everything_of,
    passages_for,
    ranked,
)
from agent_service.retrieval.stores.server_models import (
    LOOKUP_INDEX,
    TENANT_INDEX,
    WITHOUT_TERMS,
    WITHOUT_TEXT,
    check_schema,
    dense_params,
    filter_of,
    left_over,
    prefetches_of,
    sparse_of,
    sparse_params,
)
from agent_service.types import (
    CollectionName,
    DocumentId,
    DocumentInfo,
    Passage,
    ScoredPassage,
    SearchQuery,
    StoredDocument,
)

_MAX_COLLECTIONS = 10_000


async def prepare(client: AsyncQdrantClient, dense_size: int | None) -> None:
    """Create the collection and its indexes where they are missing.

    Raises:
        StartupError: the collection was made with another schema.
    """
    if not await client.collection_exists(COLLECTION):
        try:
            await client.create_collection(COLLECTION, dense_params(dense_size), sparse_params())
        except UnexpectedResponse as err:
            if err.status_code != 409:  # another replica was faster
                raise
    check_schema((await client.get_collection(COLLECTION)).config.params, dense_size)
    for field in KEYWORD_INDEXES:
        schema = TENANT_INDEX if field == "tenant" else models.PayloadSchemaType.KEYWORD
        await client.create_payload_index(COLLECTION, field, schema, wait=True)
    for field in INTEGER_INDEXES:
        await client.create_payload_index(COLLECTION, field, LOOKUP_INDEX, wait=True)


async def replace(client: AsyncQdrantClient, document_id: DocumentId, points: Sequence[models.PointStruct]) -> None:
    """Make these all the points of a document: the first operation hides the others, the second removes them."""
    before = [str(point.id) async for point in _scroll(client, everything_of(document_id), payload=False)]
    await client.upsert(COLLECTION, [*points, *left_over(before, points)], wait=True)
    if before:
        await client.delete(COLLECTION, filter_of(LEFT_OVER), wait=True)


async def infos(
    client: AsyncQdrantClient, chosen: Selection, *, limit: int, start: str | None = None
) -> list[DocumentInfo]:
    """Documents in ascending order of their ids."""
    records, _ = await client.scroll(
        COLLECTION, filter_of(chosen), limit=limit, offset=start, with_payload=WITHOUT_TEXT
    )
    return [info_from_payload(record.payload or {}) for record in records]


async def document(client: AsyncQdrantClient, chosen: Selection) -> StoredDocument | None:
    """A document with its text."""
    found, _ = await client.scroll(COLLECTION, filter_of(chosen), limit=1, with_payload=True)
    return document_from_payload(found[0].payload or {}) if found else None


async def current_passages(client: AsyncQdrantClient, chosen: Selection) -> list[Passage]:
    """Passages, without those of a version that is not current."""
    points = _scroll(client, chosen, payload=WITHOUT_TERMS)
    found = [passage_from_payload(point.payload or {}) async for point in points]
    versions = await _versions(client, found)
    return [passage for passage in found if _is_current(passage, versions)]


async def search(client: AsyncQdrantClient, query: SearchQuery) -> list[ScoredPassage]:
    """Best first, ties by passage id, without passages of a version that is not current."""
    fetched = query.limit + 1
    points = await _query(client, query, fetched)
    while cut_through_tie([point.score for point in points], query.limit, fetched):
        fetched *= 2
        points = await _query(client, query, fetched)
    hits = [ScoredPassage(passage_from_payload(point.payload or {}), max(point.score, 0.0)) for point in points]
    versions = await _versions(client, (hit.passage for hit in hits))
    return ranked((hit for hit in hits if _is_current(hit.passage, versions)), query.limit)


async def count(client: AsyncQdrantClient, chosen: Selection) -> int:
    """The exact number of points."""
    return (await client.count(COLLECTION, filter_of(chosen), exact=True)).count


async def collections(client: AsyncQdrantClient) -> dict[CollectionName, int]:
    """Documents in each collection."""
    found = await client.facet(COLLECTION, "collection", filter_of(ALL_DOCUMENTS), limit=_MAX_COLLECTIONS, exact=True)
    return {CollectionName(str(hit.value)): hit.count for hit in found.hits}


async def _query(client: AsyncQdrantClient, query: SearchQuery, limit: int) -> list[models.ScoredPoint]:
    allowed = filter_of(passages_for(query.caller, query.collections))
    if query.dense is None:
        found = await client.query_points(
            COLLECTION, sparse_of(query), SPARSE, query_filter=allowed, limit=limit, with_payload=WITHOUT_TERMS
        )
    else:
        found = await client.query_points(
            COLLECTION,
            models.FusionQuery(fusion=models.Fusion.DBSF),
            prefetch=prefetches_of(query, query.dense, allowed),
            limit=limit,
            with_payload=WITHOUT_TERMS,
        )
    return found.points


async def _versions(client: AsyncQdrantClient, passages: Iterable[Passage]) -> dict[str, str]:
    ids = sorted({passage.document_id for passage in passages})
    if not ids:
        return {}
    records = await client.retrieve(COLLECTION, ids, with_payload=["version"])
    return {str(record.id): (record.payload or {})["version"] for record in records}


async def _scroll(
    client: AsyncQdrantClient, chosen: Selection, *, payload: bool | models.PayloadSelectorExclude
) -> AsyncIterator[models.Record]:
    offset: common_types.PointId | None = None
    while True:
        records, offset = await client.scroll(
            COLLECTION, filter_of(chosen), limit=PAGE, offset=offset, with_payload=payload
        )
        for record in records:
            yield record
        if offset is None:
            return


def _is_current(passage: Passage, versions: Mapping[str, str]) -> bool:
    return versions.get(passage.document_id) == passage.version
