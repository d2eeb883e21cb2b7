"""What only the embedded store does: it owns a directory, queues its calls, and contains its engine's failures."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from qdrant_edge import EdgeShard, Point, UpdateOperation

from agent_service.errors import RetrievalUnavailableError, StartupError
from agent_service.retrieval.stores import edge
from agent_service.retrieval.stores.directory import DataDirectory
from agent_service.retrieval.stores.edge import EdgeStore
from agent_service.retrieval.stores.payload import passage_point
from agent_service.types import PassageId, SearchQuery
from tests.support.documents import CALLER, COLLECTION, ENCODER, document_id, sample
from tests.support.folders import quick_folder

DENSE = [(1.0, 0.0), (0.0, 1.0)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as place:
        yield place


@pytest.fixture
async def store(folder: Path) -> AsyncIterator[EdgeStore]:
    store = await EdgeStore.open(folder, timeout_s=30)
    yield store
    await store.close()


@pytest.mark.parametrize("dense_size", [None, 2])
async def test_reopened_store_holds_what_was_put(folder: Path, dense_size: int | None) -> None:
    guide = sample("guide", "alpha", "beta", dense=DENSE if dense_size else ())
    store = await EdgeStore.open(folder / "new" / "place", dense_size=dense_size)
    await guide.put(store)
    await store.close()

    store = await EdgeStore.open(folder / "new" / "place", dense_size=dense_size)

    assert await store.document(guide.id, CALLER) == guide.document
    assert await store.passages_of(guide.id, CALLER) == guide.bare
    assert await store.collections() == {COLLECTION: 1}
    await store.close()


async def test_leftovers_of_a_crash_are_removed_on_opening(folder: Path) -> None:
    store = await EdgeStore.open(folder)
    await sample("guide", "alpha").put(store)
    left = UpdateOperation.upsert_points([Point(passage_point(PassageId("x")), {}, {"kind": "replaced"})])
    await store._call(lambda shard: shard.update(left))
    await store.close()

    store = await EdgeStore.open(folder)

    assert await store._call(lambda shard: shard.info().points_count) == 2
    await store.close()


# --- time limits and the queue ---


async def test_call_that_takes_too_long_is_given_up(folder: Path) -> None:
    store = await EdgeStore.open(folder, timeout_s=0.05, write_timeout_s=30)
    go_on = threading.Event()
    stuck = asyncio.ensure_future(store._run(lambda _: go_on.wait(30), None))
    await asyncio.sleep(0)

    with pytest.raises(RetrievalUnavailableError, match=r"did not answer within 0\.05 s"):
        await store.collections()

    go_on.set()
    assert await stuck
    await store.close()


async def test_call_beyond_the_queue_fails_at_once(folder: Path) -> None:
    store = await EdgeStore.open(folder, max_waiting=2)
    go_on = threading.Event()
    stuck = [asyncio.ensure_future(store._call(lambda _: go_on.wait(30))) for _ in range(2)]
    await asyncio.sleep(0)

    with pytest.raises(RetrievalUnavailableError, match="too many calls are waiting"):
        await store.collections()

    go_on.set()
    assert await asyncio.gather(*stuck) == [True, True]
    assert await store.collections() == {}
    await store.close()


async def test_cancelled_call_that_waits_is_never_run(store: EdgeStore) -> None:
    go_on = threading.Event()
    stuck = asyncio.ensure_future(store._call(lambda _: go_on.wait(30)))
    waiting = asyncio.ensure_future(sample("guide", "alpha").put(store))
    await asyncio.sleep(0)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await stuck

    assert await store.page(CALLER) == []


async def test_close_lets_waiting_writes_finish(folder: Path) -> None:
    store = await EdgeStore.open(folder)
    go_on = threading.Event()
    stuck = asyncio.ensure_future(store._call(lambda _: go_on.wait(30)))
    guide = sample("guide", "alpha")
    writing = asyncio.ensure_future(guide.put(store))
    await asyncio.sleep(0)

    go_on.set()
    await asyncio.gather(store.close(), stuck, writing)

    store = await EdgeStore.open(folder)
    assert await store.passages_of(guide.id, CALLER) == guide.bare
    await store.close()


async def test_close_that_takes_too_long_keeps_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "CLOSE_TIMEOUT_S", 0.05)
    store = await EdgeStore.open(folder)
    go_on = threading.Event()
    stuck = asyncio.ensure_future(store._call(lambda _: go_on.wait(30)))
    await asyncio.sleep(0)

    await store.close()

    with pytest.raises(StartupError, match="is in use"):
        await EdgeStore.open(folder)
    go_on.set()
    assert await stuck
    await asyncio.to_thread(store._worker.shutdown)
    store._directory.release()


async def test_writes_are_forced_to_disk_a_while_later(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "SYNC_AFTER_S", 0.0)
    waiting = []
    for version in "12":
        await sample("guide", "alpha", version=version).put(store)
        waiting.append(store._sync_timer)
    # Timers that are due run before one that is due later.
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, done.set)
    await done.wait()
    waiting.append(store._sync_timer)

    assert [timer is None for timer in waiting] == [False, False, True]
    assert await store.delete(document_id("guide"), CALLER) == 1


async def test_writes_soon_after_each_other_are_forced_to_disk_once(store: EdgeStore) -> None:
    await sample("guide", "alpha").put(store)
    timer = store._sync_timer
    await sample("guide", "beta", version="2").put(store)

    assert store._sync_timer is timer is not None


async def test_optimize_changes_no_answer(folder: Path) -> None:
    store = await EdgeStore.open(folder, dense_size=2)
    guide = await sample("guide", "alpha", "beta", dense=DENSE).put(store)
    query = SearchQuery(ENCODER.terms("alpha"), CALLER, dense=DENSE[0])
    before = await store.search(query)

    await store.optimize()

    assert await store.search(query) == before
    assert await store.passages_of(guide.id, CALLER) == guide.bare
    await store.close()


# --- failures ---


async def test_failing_engine_is_unavailable_and_logged(store: EdgeStore, caplog: pytest.LogCaptureFixture) -> None:
    bad = UpdateOperation.upsert_points([Point(passage_point(PassageId("x")), {"dense": [1.0]}, {})])

    with pytest.raises(RetrievalUnavailableError, match=r"^the store of documents failed$"):
        await store._call(lambda shard: shard.update(bad))

    assert "Vector" in caplog.text or "vector" in caplog.text


async def test_panicking_engine_is_unavailable(store: EdgeStore) -> None:
    class Panic(BaseException):
        """As the engine's `PanicException`, which is no `Exception` either."""

    def panic(_shard: EdgeShard) -> None:
        raise Panic

    with pytest.raises(RetrievalUnavailableError):
        await store._call(panic)
    assert await store.collections() == {}


async def test_engine_that_cannot_close_is_logged_and_the_directory_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk:
        """In the place of a shard: a disk cannot be filled here."""

        def close(self) -> None:
            raise OSError("no space left on device")

    store = await EdgeStore.open(folder)
    shard = store._shard
    monkeypatch.setattr(store, "_shard", FullDisk())

    await store.close()

    assert caplog.messages == ["the embedded store did not close cleanly"]
    shard.close()
    await (await EdgeStore.open(folder)).close()


# --- directories that do not fit ---


@pytest.mark.parametrize(("made_with", "asked_for"), [(None, 2), (2, None), (2, 3)])
async def test_directory_of_another_schema_is_refused(
    folder: Path, made_with: int | None, asked_for: int | None
) -> None:
    await (await EdgeStore.open(folder, dense_size=made_with)).close()

    with pytest.raises(StartupError, match="set AGENT_DATA_DIR to a new directory and ingest the documents again"):
        await EdgeStore.open(folder, dense_size=asked_for)

    await (await EdgeStore.open(folder, dense_size=made_with)).close()


async def test_directory_of_another_format_is_refused(folder: Path) -> None:
    await (await EdgeStore.open(folder)).close()
    (folder / "index" / "schema.json").write_text(json.dumps({"format": 0, "dense_size": None}), encoding="utf-8")

    with pytest.raises(StartupError, match="this configuration needs"):
        await EdgeStore.open(folder)


def _no_schema(index: Path) -> None:
    (index / "schema.json").unlink()


def _schema_of_rubbish(index: Path) -> None:
    (index / "schema.json").write_bytes(b"\xff{")


def _no_shard(index: Path) -> None:
    shutil.rmtree(index / "shard")


def _config_of_rubbish(index: Path) -> None:
    (index / "shard" / "edge_config.json").write_text("{", encoding="utf-8")


def _no_segment_data(index: Path) -> None:
    for state in index.glob("shard/segments/*/segment.json"):
        state.write_text("rubbish", encoding="utf-8")


def _wal_of_rubbish(index: Path) -> None:
    for part in index.glob("shard/wal/open-*"):
        part.write_bytes(b"rubbish")


@pytest.mark.parametrize(
    "damage", [_no_schema, _schema_of_rubbish, _no_shard, _config_of_rubbish, _no_segment_data, _wal_of_rubbish]
)
async def test_damaged_directory_is_refused_with_the_remedy(folder: Path, damage: object) -> None:
    store = await EdgeStore.open(folder)
    await sample("guide", "alpha").put(store)
    await store.close()
    assert callable(damage)
    damage(folder / "index")

    with pytest.raises(StartupError, match=r"is damaged .*: restore it from a backup, or move .* away and ingest"):
        await EdgeStore.open(folder)

    shutil.rmtree(folder / "index")
    await (await EdgeStore.open(folder)).close()


async def test_directory_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "file").write_text("x", encoding="utf-8")

    with pytest.raises(StartupError, match=r"cannot be used .*: make it writable, or set AGENT_DATA_DIR"):
        await EdgeStore.open(folder / "file")


async def test_directory_where_nothing_can_be_made_is_refused(folder: Path) -> None:
    (folder / "index.new").write_text("in the way", encoding="utf-8")

    with pytest.raises(StartupError, match=r"no store can be made in .*: make room there, or set AGENT_DATA_DIR"):
        await EdgeStore.open(folder)


async def test_what_an_interrupted_start_left_is_made_anew(folder: Path) -> None:
    rubbish = folder / "index.new" / "shard"
    rubbish.mkdir(parents=True)
    (rubbish / "x").write_text("x", encoding="utf-8")

    store = await EdgeStore.open(folder)

    assert not (folder / "index.new").exists()
    await store.close()


def test_release_twice_is_harmless(folder: Path) -> None:
    directory = DataDirectory.acquire(folder)
    directory.release()
    directory.release()
    DataDirectory.acquire(folder).release()
