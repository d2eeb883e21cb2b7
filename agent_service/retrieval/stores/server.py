"""The shared store: a Qdrant server, used by any number of agent replicas."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from qdrant_client import AsyncQdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException

from agent_service.errors import RetrievalUnavailableError, StartupError
from agent_service.retrieval.stores import server_calls
from agent_service.retrieval.stores.payload import check_dense, check_put, in_order, passage_point
from agent_service.retrieval.stores.selection import (
    Selection,
    document_of_anybody,
    documents_for,
    page_start,
    passages_for,
)
from agent_service.retrieval.stores.server_models import points_of
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

log = logging.getLogger(__name__)

IN_MEMORY = ":memory:"
_COUNTS_AT_ONCE = 16


class ServerStore:
    """A `VectorStore` on a Qdrant server.

    A server does not apply an operation at one instant for all readers, and two replicas may replace a document at
    the same time. So passages are checked against the current version of their documents after they are read: one
    more request, and no mixture is ever shown. What the loser of such a race leaves behind stays unseen until the
    document's next `put` removes it.
    """

    def __init__(
        self, client: AsyncQdrantClient, *, dense_size: int | None, timeout_s: float, write_timeout_s: float
    ) -> None:
        self._client = client
        self._dense_size = dense_size
        self._timeout_s = timeout_s
        self._write_timeout_s = write_timeout_s
        self._closed = False
        # One writer a document in this process; a lock lives as long as somebody holds or awaits it.
        self._writing: WeakValueDictionary[DocumentId, asyncio.Lock] = WeakValueDictionary()
        self._counting = asyncio.Semaphore(_COUNTS_AT_ONCE)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 5.0,
        write_timeout_s: float = 60.0,
        dense_size: int | None = None,
    ) -> "ServerStore":
        """Connect, and create the collection with its indexes where they are missing.

        Args:
            url: the server's REST address, or ":memory:" for an in-process stand-in that keeps nothing.
            api_key: sent with every request.
            timeout_s: of each method that reads, over all of its requests.
            write_timeout_s: the same of `put` and `delete`.
            dense_size: dimension of dense vectors; None: the store has none.

        Raises:
            StartupError: the server does not answer, or its collection was made with another schema.
        """
        if url == IN_MEMORY:
            client = AsyncQdrantClient(location=IN_MEMORY)
        else:
            # The client's own timeout is in whole seconds: it only ends what ours has given up.
            patience = int(max(timeout_s, write_timeout_s)) + 1
            client = AsyncQdrantClient(url=url, api_key=api_key, timeout=patience, check_compatibility=False)
        store = cls(client, dense_size=dense_size, timeout_s=timeout_s, write_timeout_s=write_timeout_s)
        try:
            async with store._asking() as client:
                await server_calls.prepare(client, dense_size)
        except RetrievalUnavailableError as err:
            await store.close()
            raise StartupError(
                f"{err}: start the Qdrant server and check AGENT_QDRANT_URL, or unset it to keep documents in "
                "AGENT_DATA_DIR"
            ) from err
        except BaseException:
            await store.close()
            raise
        return store

    async def put(self, document: StoredDocument, passages: Sequence[IndexedPassage]) -> None:
        """See `VectorStore.put`. Puts of one document in this process happen one after the other."""
        check_put(document, passages, self._dense_size)
        async with self._asking(self._write_timeout_s) as client, self._lock(document.info.id):
            await server_calls.replace(client, document.info.id, points_of(document, passages))

    async def delete(self, document_id: DocumentId, caller: Caller) -> int | None:
        """See `VectorStore.delete`."""
        async with self._asking(self._write_timeout_s) as client, self._lock(document_id):
            found = await server_calls.infos(client, documents_for(caller, document_id=document_id), limit=1)
            if not found:
                return None
            await server_calls.replace(client, document_id, [])
            return found[0].passages

    async def info(self, document_id: DocumentId, caller: Caller) -> DocumentInfo | None:
        """See `VectorStore.info`."""
        async with self._asking() as client:
            found = await server_calls.infos(client, documents_for(caller, document_id=document_id), limit=1)
            return found[0] if found else None

    async def exists(self, document_id: DocumentId) -> bool:
        """See `VectorStore.exists`."""
        async with self._asking() as client:
            return bool(await server_calls.infos(client, document_of_anybody(document_id), limit=1))

    async def document(self, document_id: DocumentId, caller: Caller) -> StoredDocument | None:
        """See `VectorStore.document`."""
        async with self._asking() as client:
            return await server_calls.document(client, documents_for(caller, document_id=document_id))

    async def page(
        self,
        caller: Caller,
        *,
        collections: Sequence[CollectionName] = (),
        after: DocumentId | None = None,
        limit: int = 50,
    ) -> list[DocumentInfo]:
        """See `VectorStore.page`.

        Raises:
            InvalidRequestError: `after` is no id of a document.
        """
        start = page_start(after)
        async with self._asking() as client:
            return await server_calls.infos(client, documents_for(caller, collections), start=start, limit=limit)

    async def passages(self, ids: Sequence[PassageId], caller: Caller) -> list[Passage]:
        """See `VectorStore.passages`."""
        chosen = passages_for(caller, points=map(passage_point, ids))
        async with self._asking() as client:
            if not ids:
                return []
            found = {passage.id: passage for passage in await server_calls.current_passages(client, chosen)}
            return [found[passage_id] for passage_id in ids if passage_id in found]

    async def passages_of(self, document_id: DocumentId, caller: Caller) -> list[Passage]:
        """See `VectorStore.passages_of`."""
        async with self._asking() as client:
            return in_order(await server_calls.current_passages(client, passages_for(caller, document_id=document_id)))

    async def search(self, query: SearchQuery) -> list[ScoredPassage]:
        """See `VectorStore.search`."""
        check_dense(query.dense, self._dense_size, required=False)
        async with self._asking() as client:
            if not query.terms and query.dense is None:
                return []
            return await server_calls.search(client, query)

    async def term_statistics(
        self, terms: Sequence[TermId], caller: Caller, collections: Sequence[CollectionName] = ()
    ) -> TermStatistics:
        """See `VectorStore.term_statistics`. One request a term, 16 at a time."""
        scope = passages_for(caller, collections)
        async with self._asking() as client:
            scopes = [scope, *(scope.term(term) for term in terms)]
            passages, *counts = await asyncio.gather(*(self._count(client, chosen) for chosen in scopes))
            return TermStatistics(passages, dict(zip(terms, counts, strict=True)))

    async def collections(self) -> Mapping[CollectionName, int]:
        """See `VectorStore.collections`."""
        async with self._asking() as client:
            return await server_calls.collections(client)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._client.close()

    @asynccontextmanager
    async def _asking(self, limit_s: float | None = None) -> AsyncIterator[AsyncQdrantClient]:
        """Around all requests of a method: the time limit, and the translation of what goes wrong."""
        limit_s = limit_s or self._timeout_s
        if self._closed:
            raise RetrievalUnavailableError("the store of documents is closed")
        try:
            async with asyncio.timeout(limit_s):
                yield self._client
        except TimeoutError as err:
            raise RetrievalUnavailableError(f"the Qdrant server did not answer within {limit_s} s") from err
        except ResourceExhaustedResponse as err:
            raise RetrievalUnavailableError(
                "the Qdrant server is overloaded", retry_after_s=float(err.retry_after_s)
            ) from err
        except (ApiException, QdrantException) as err:
            # Never its text: that quotes the server's answer.
            status = getattr(err, "status_code", None)
            log.warning("the Qdrant server failed", extra={"error": type(err).__name__, "status": status})
            raise RetrievalUnavailableError("the Qdrant server could not be reached, or failed") from err

    def _lock(self, document_id: DocumentId) -> asyncio.Lock:
        return self._writing.setdefault(document_id, asyncio.Lock())

    async def _count(self, client: AsyncQdrantClient, chosen: Selection) -> int:
        async with self._counting:
            return await server_calls.count(client, chosen)
