"""The embedded store: Qdrant's engine inside this process, under a directory that it owns alone."""

import asyncio
import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qdrant_edge import EdgeShard

from agent_service.errors import RetrievalUnavailableError
from agent_service.retrieval.stores import edge_shard
from agent_service.retrieval.stores.directory import DataDirectory
from agent_service.retrieval.stores.payload import check_dense, check_put
from agent_service.retrieval.stores.selection import document_of_anybody, documents_for, page_start
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
T = TypeVar("T")

MAX_WAITING = 256
"""Calls that may wait for the worker. At 2 ms a search the last of them waits half a second."""

SYNC_AFTER_S = 5.0
"""How long after a write the disk is forced (7 to 20 ms). Source: Qdrant's own `flush_interval_sec`."""

CLOSE_TIMEOUT_S = 30.0
"""After it the process goes on without a closed store: the write-ahead log has what was written."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store was opened with; see `EdgeStore.open`."""

    timeout_s: float
    write_timeout_s: float
    dense_size: int | None
    max_waiting: int


MOST_FREQUENCIES = 50_000
"""Counts of terms that are kept until a document changes, some 10 MiB; beyond, all are made anew."""


class EdgeStore:
    """A `VectorStore` for exactly one process; every call runs on one worker thread, in the order of arrival.

    A killed process loses nothing that `put` or `delete` returned for: the write-ahead log is in the page cache by
    then. A power cut may lose the last `SYNC_AFTER_S` seconds, but never half a document.

    The engine never releases the interpreter's lock: the worker spares the event loop the waiting, not the work. A
    search (1.4 ms at 10,000 passages) or a document of 20 passages (6 ms) go unnoticed, one of 3,000 halts the loop
    for 0.3 s. Whoever ingests such while people wait uses a Qdrant server.
    """

    def __init__(self, shard: EdgeShard, directory: DataDirectory, worker: ThreadPoolExecutor, limits: Limits) -> None:
        self._shard = shard
        self._directory = directory
        self._worker = worker
        self._limits = limits
        self._room = threading.BoundedSemaphore(limits.max_waiting)
        self._closed = False
        self._sync_timer: asyncio.TimerHandle | None = None
        # Touched on the worker only. Every search asks for it, and counting takes longer than the search.
        self._counts: dict[CollectionName, int] | None = None
        self._frequencies: dict[Hashable, int] = {}

    def _forget_counts(self) -> None:
        self._counts = None
        self._frequencies.clear()

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        timeout_s: float = 5.0,
        write_timeout_s: float = 60.0,
        dense_size: int | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> "EdgeStore":
        """Create the store, or load what is there: 0.2 s for 10,000 passages.

        Args:
            directory: created if missing.
            timeout_s: after this long a read fails.
            write_timeout_s: after this long a write fails; if it has begun by then, it goes on.
            dense_size: dimension of dense vectors; None: the store has none.
            max_waiting: calls that may wait for the worker; the next one fails at once.

        Raises:
            StartupError: the directory is in use, damaged, or was made with another schema.
        """
        limits = Limits(timeout_s, write_timeout_s, dense_size, max_waiting)
        worker = ThreadPoolExecutor(1, thread_name_prefix="edge-store")
        try:
            shard, owned = await asyncio.wrap_future(worker.submit(_open, directory, dense_size))
        except BaseException:
            worker.shutdown(wait=False)
            raise
        return cls(shard, owned, worker, limits)

    async def put(self, document: StoredDocument, passages: Sequence[IndexedPassage]) -> None:
        """See `VectorStore.put`. Puts of one document happen one after the other: there is one worker."""
        check_put(document, passages, self._limits.dense_size)

        def work(shard: EdgeShard) -> None:
            self._forget_counts()
            edge_shard.put(shard, document, passages)

        await self._run(work, self._limits.write_timeout_s)
        self._sync_later()

    async def delete(self, document_id: DocumentId, caller: Caller) -> int | None:
        """See `VectorStore.delete`."""

        def work(shard: EdgeShard) -> int | None:
            self._forget_counts()
            return edge_shard.delete(shard, document_id, caller)

        deleted = await self._run(work, self._limits.write_timeout_s)
        self._sync_later()
        return deleted

    async def info(self, document_id: DocumentId, caller: Caller) -> DocumentInfo | None:
        """See `VectorStore.info`."""
        chosen = documents_for(caller, document_id=document_id)
        found = await self._call(lambda shard: edge_shard.infos(shard, chosen, start=None, limit=1))
        return found[0] if found else None

    async def exists(self, document_id: DocumentId) -> bool:
        """See `VectorStore.exists`."""
        chosen = document_of_anybody(document_id)
        return bool(await self._call(lambda shard: edge_shard.infos(shard, chosen, start=None, limit=1)))

    async def document(self, document_id: DocumentId, caller: Caller) -> StoredDocument | None:
        """See `VectorStore.document`."""
        return await self._call(lambda shard: edge_shard.document(shard, document_id, caller))

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
        chosen, start = documents_for(caller, collections), page_start(after)
        return await self._call(lambda shard: edge_shard.infos(shard, chosen, start=start, limit=limit))

    async def passages(self, ids: Sequence[PassageId], caller: Caller) -> list[Passage]:
        """See `VectorStore.passages`."""
        return await self._call(lambda shard: edge_shard.passages(shard, ids, caller))

    async def passages_of(self, document_id: DocumentId, caller: Caller) -> list[Passage]:
        """See `VectorStore.passages_of`."""
        return await self._call(lambda shard: edge_shard.passages_of(shard, document_id, caller))

    async def search(self, query: SearchQuery) -> list[ScoredPassage]:
        """See `VectorStore.search`."""
        check_dense(query.dense, self._limits.dense_size, required=False)
        return await self._call(lambda shard: edge_shard.search(shard, query))

    async def term_statistics(
        self, terms: Sequence[TermId], caller: Caller, collections: Sequence[CollectionName] = ()
    ) -> TermStatistics:
        """See `VectorStore.term_statistics`. 3 ms for 9 terms at 10,000 passages, 20 ms at 100,000; once."""

        def work(shard: EdgeShard) -> TermStatistics:
            if len(self._frequencies) > MOST_FREQUENCIES:
                self._frequencies.clear()
            return edge_shard.term_statistics(shard, terms, caller, collections, self._frequencies)

        return await self._call(work)

    async def collections(self) -> Mapping[CollectionName, int]:
        """See `VectorStore.collections`."""

        def work(shard: EdgeShard) -> dict[CollectionName, int]:
            if self._counts is None:
                self._counts = edge_shard.collections(shard)
            return dict(self._counts)

        return await self._call(work)

    async def optimize(self) -> bool:
        """Build the dense index and drop deleted vectors; True where there was anything to do.

        For the end of a bulk ingestion in a process that serves nobody: the whole process stands still meanwhile
        (8 s for 20,000 passages with 64 dimensions, 12 s for 100,000 without). It pays for dense vectors only:
        without, 100,000 passages are searched in 1.3 ms before and in 2.5 ms after, and IDF goes on counting what is
        deleted later.
        """
        return await self._run(lambda shard: shard.optimize(), None)

    async def close(self) -> None:
        """Finish what was begun, force it to disk, give the directory up. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        closing = asyncio.wrap_future(self._worker.submit(self._shard.close))
        done, _ = await asyncio.wait([closing], timeout=CLOSE_TIMEOUT_S)
        self._worker.shutdown(wait=False)
        if not done:
            # The lock stays with the process: the engine is still writing.
            log.error("the embedded store did not close within %s s", CLOSE_TIMEOUT_S)
            return
        self._directory.release()
        if (failure := closing.exception()) is not None:
            log.error("the embedded store did not close cleanly", exc_info=failure)

    async def _call(self, work: Callable[[EdgeShard], T]) -> T:
        return await self._run(work, self._limits.timeout_s)

    async def _run(self, work: Callable[[EdgeShard], T], limit_s: float | None) -> T:
        if self._closed:
            raise RetrievalUnavailableError("the store of documents is closed")
        if not self._room.acquire(blocking=False):
            raise RetrievalUnavailableError("too many calls are waiting for the store of documents")
        job = self._worker.submit(_contained, work, self._shard)
        job.add_done_callback(lambda _: self._room.release())
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(job)
        except TimeoutError as err:
            raise RetrievalUnavailableError(f"the store of documents did not answer within {limit_s} s") from err

    def _sync_later(self) -> None:
        if self._sync_timer is None and not self._closed:
            self._sync_timer = asyncio.get_running_loop().call_later(SYNC_AFTER_S, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._worker.submit(_contained, EdgeShard.flush, self._shard)


def _open(path: Path, dense_size: int | None) -> tuple[EdgeShard, DataDirectory]:
    directory = DataDirectory.acquire(path)
    try:
        return edge_shard.load(directory, dense_size), directory
    except BaseException:
        directory.release()
        raise


def _contained(work: Callable[[EdgeShard], T], shard: EdgeShard) -> T:
    """The engine's failures carry no type of their own, and its panics are not even `Exception`s."""
    try:
        return work(shard)
    except BaseException as err:
        log.exception("the embedded store failed")
        raise RetrievalUnavailableError("the store of documents failed") from err
