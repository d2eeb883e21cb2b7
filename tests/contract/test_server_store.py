"""What only the server's client does: it prepares the collection, checks versions, and translates failures."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from qdrant_client import models

from agent_service.errors import RetrievalUnavailableError, StartupError
from agent_service.retrieval.stores.payload import COLLECTION
from agent_service.retrieval.stores.server import IN_MEMORY, ServerStore
from agent_service.retrieval.stores.server_models import check_schema, points_of
from agent_service.types import SearchQuery
from tests.support.documents import CALLER, ENCODER, document_id, sample

Answer = tuple[int, dict[str, str], Any]


@dataclass
class ScriptedServer:
    """Answers HTTP on a loopback port by a script: (method, path) to status, headers and result."""

    answer: Callable[[str, str], Answer | None]
    url: str = ""
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            method, path, _ = head[0].split(" ", 2)
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((method, path, headers, json.loads(body) if body else None))
            answer = self.answer(method, path.partition("?")[0])
            if answer is None:  # stalls: until the client goes
                await reader.read()
                return
            status, extra, result = answer
            content = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
            lines = [f"HTTP/1.1 {status} X", f"content-length: {len(content)}", "connection: close"]
            lines += [f"{name}: {value}" for name, value in extra.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Callable[[str, str], Answer | None]) -> AsyncIterator[ScriptedServer]:
    script = ScriptedServer(answer)
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield script


def healthy(method: str, path: str) -> Answer:
    """A server whose collection is there, and empty."""
    if path.endswith("/exists"):
        return 200, {}, {"exists": True}
    if path.endswith("/points/scroll"):
        return 200, {}, {"points": [], "next_page_offset": None}
    if method == "GET":
        params = {"vectors": {}, "sparse_vectors": {"bm25": {"modifier": "idf"}}}
        config = {
            "params": params,
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
        }
        return (
            200,
            {},
            {"status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config, "payload_schema": {}},
        )
    return 200, {}, {"operation_id": 1, "status": "completed"}


# --- connecting ---


async def test_connect_prepares_a_new_collection_and_sends_the_key() -> None:
    def fresh(method: str, path: str) -> Answer:
        if path.endswith("/exists"):
            return 200, {}, {"exists": False}
        return (200, {}, True) if (method, path) == ("PUT", f"/collections/{COLLECTION}") else healthy(method, path)

    async with serving(fresh) as server:
        with pytest.warns(UserWarning, match="insecure connection"):
            store = await ServerStore.connect(server.url, api_key="sesame")
        await store.close()

    assert {headers["api-key"] for _, _, headers, _ in server.requests} == {"sesame"}
    created = [
        body for method, path, _, body in server.requests if (method, path) == ("PUT", f"/collections/{COLLECTION}")
    ]
    assert created == [{"vectors": {}, "sparse_vectors": {"bm25": {"modifier": "idf"}}}]
    indexes = {body["field_name"]: body["field_schema"] for _, path, _, body in server.requests if "/index" in path}
    assert indexes.keys() == {"kind", "tenant", "readers", "collection", "document_id", "terms"}
    assert indexes["tenant"] == {"type": "keyword", "is_tenant": True}
    assert indexes["terms"] == {"type": "integer", "lookup": True, "range": False}


@pytest.mark.parametrize(("status", "fails"), [(409, False), (403, True)])
async def test_connect_while_another_replica_creates_the_collection(status: int, fails: bool) -> None:
    def racing(method: str, path: str) -> Answer:
        if path.endswith("/exists"):
            return 200, {}, {"exists": False}
        return (status, {}, None) if (method, path) == ("PUT", f"/collections/{COLLECTION}") else healthy(method, path)

    async with serving(racing) as server:
        if fails:
            with pytest.raises(StartupError, match="check AGENT_QDRANT_URL"):
                await ServerStore.connect(server.url)
        else:
            await (await ServerStore.connect(server.url)).close()


async def test_connect_to_nobody_names_the_setting(unused_tcp_port: int) -> None:
    with pytest.raises(
        StartupError, match="could not be reached, or failed: start the Qdrant server and check AGENT_Q"
    ):
        await ServerStore.connect(f"http://127.0.0.1:{unused_tcp_port}")


async def test_connect_to_a_server_that_stalls_names_the_setting() -> None:
    async with serving(lambda _method, _path: None) as server:
        with pytest.raises(StartupError, match=r"did not answer within 0\.1 s: start the Qdrant server"):
            await ServerStore.connect(server.url, timeout_s=0.1)


@pytest.mark.parametrize(
    ("vectors", "sparse", "dense_size"),
    [
        ({}, {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)}, 4),
        ({}, {"bm25": models.SparseVectorParams()}, None),
        (None, None, None),
        (
            {"dense": models.VectorParams(size=4, distance=models.Distance.COSINE)},
            {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            None,
        ),
    ],
)
def test_collection_of_another_schema_is_refused(vectors: Any, sparse: Any, dense_size: int | None) -> None:
    with pytest.raises(StartupError, match="delete the collection there, and ingest the documents again"):
        check_schema(models.CollectionParams(vectors=vectors, sparse_vectors=sparse), dense_size)


async def test_connect_to_a_collection_of_another_schema_is_refused() -> None:
    async with serving(healthy) as server:
        with pytest.raises(StartupError, match=r"has dense vectors none, this configuration needs \{'dense': 4\}"):
            await ServerStore.connect(server.url, dense_size=4)


# --- failures later ---


async def test_server_that_overloads_says_when_to_come_again() -> None:
    def busy(method: str, path: str) -> Answer:
        return (429, {"retry-after": "7"}, None) if path.endswith("/facet") else healthy(method, path)

    async with serving(busy) as server:
        store = await ServerStore.connect(server.url)
        with pytest.raises(RetrievalUnavailableError, match="overloaded") as refused:
            await store.collections()
        await store.close()

    assert refused.value.retry_after_s == 7.0


async def test_server_that_fails_later_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    def broken(method: str, path: str) -> Answer | None:
        return (
            (500, {}, None) if path.endswith("/count") else None if path.endswith("/facet") else healthy(method, path)
        )

    async with serving(broken) as server:
        store = await ServerStore.connect(server.url, timeout_s=5, write_timeout_s=0.2)
        with pytest.raises(RetrievalUnavailableError, match="could not be reached, or failed"):
            await store.term_statistics(ENCODER.terms("alpha beta"), CALLER)
    with pytest.raises(RetrievalUnavailableError, match="could not be reached, or failed"):
        await store.collections()
    with pytest.raises(RetrievalUnavailableError):
        await sample("guide", "alpha").put(store)
    await store.close()
    assert "the Qdrant server failed" in caplog.text


async def test_put_is_one_operation_and_waits_for_it() -> None:
    guide = sample("guide", "alpha beta", "gamma")

    async with serving(healthy) as server:
        store = await ServerStore.connect(server.url)
        before = len(server.requests)
        await guide.put(store)
        await store.close()

    (_, scroll, _, _), (method, path, _, body) = server.requests[before:]
    assert scroll == f"/collections/{COLLECTION}/points/scroll"
    assert (method, path) == ("PUT", f"/collections/{COLLECTION}/points?wait=true")
    assert [point["payload"]["kind"] for point in body["points"]] == ["passage", "passage", "document"]
    assert body["points"][2]["id"] == guide.id


# --- races between replicas ---


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
async def test_passages_of_a_version_that_is_not_current_are_not_shown() -> None:
    store = await ServerStore.connect(IN_MEMORY)
    stale = sample("guide", "alpha", "alpha beta")
    current = await sample("guide", "alpha gamma", version="2").put(store)
    # What the loser of a race between two replicas leaves: its passages, under the winner's document.
    await store._client.upsert(COLLECTION, points_of(stale.document, stale.passages)[:2])

    hits = await store.search(SearchQuery(ENCODER.terms("alpha"), CALLER))
    assert [hit.passage for hit in hits] == current.bare
    assert await store.passages_of(document_id("guide"), CALLER) == current.bare
    assert await store.passages([stale.bare[0].id, current.bare[0].id], CALLER) == current.bare

    await sample("guide", "delta", version="3").put(store)
    assert (await store.term_statistics((), CALLER)).passages == 1
    await store.close()
