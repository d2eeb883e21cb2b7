"""The client side of ingestion against a serving agent."""

import asyncio
import socket
from collections.abc import Iterator, Sequence

import pytest
from answerdesk.v1.knowledge_service_pb2_grpc import add_KnowledgeServiceServicer_to_server

from agent_service.retrieval.search import Found
from agent_service.rpc import ingest_client
from agent_service.rpc.ingest_client import CallFailedError, IngestReport, ingest_remotely, search_remotely, serving
from agent_service.rpc.knowledge_servicer import KnowledgeServicer
from agent_service.types import Access, CollectionName, Ingested, Question, SourceDocument
from tests.support import served
from tests.support.shelf import BILLING, LOCAL, Shelf

pytestmark = served.on_one_loop


def document(uri: str, text: str, *, collection: str = "billing", groups: tuple[str, ...] = ()) -> SourceDocument:
    return SourceDocument(uri, CollectionName(collection), "", text, Access("default", groups))


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port at which somebody accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def test_a_serving_agent_is_seen() -> None:
    async with served.serving(Shelf()) as one:
        assert await serving(one.client.target)


async def test_an_agent_that_is_not_ready_yet_is_seen_too() -> None:
    # It holds the store already: a second process must not open it.
    async with served.serving(Shelf(), ready=False) as one:
        assert await serving(one.client.target)


async def test_nobody_is_not_seen(free_port: int) -> None:
    assert not await serving(f"127.0.0.1:{free_port}")


async def test_a_port_that_answers_nothing_is_no_agent(deaf_port: int) -> None:
    assert not await serving(f"127.0.0.1:{deaf_port}")


async def test_documents_are_reported_in_order_with_what_became_of_them() -> None:
    shelf = Shelf()
    reports: list[IngestReport] = []
    documents = [
        document("a.md", "# A\n\nZeppelins fly.\n"),
        document("empty.md", ""),
        document("a.md", "# A\n\nZeppelins fly.\n"),
        document("a.md", "# A\n\nZeppelins fly.\n\n## B\n\nThey land.\n"),
    ]

    async with served.serving(shelf) as one:
        await ingest_remotely(one.client.target, iter(documents), reports.append)

    assert [(report.uri, report.status, report.passages) for report in reports] == [
        ("a.md", "created", 1),
        ("empty.md", "rejected", 0),
        ("a.md", "unchanged", 1),
        ("a.md", "replaced", 2),
    ]
    assert "document.text" in reports[1].problem
    assert not any(report.problem for report in (reports[0], *reports[2:]))


async def test_what_is_sent_is_stored_with_its_access() -> None:
    shelf = Shelf()
    async with served.serving(shelf) as one:
        await ingest_remotely(
            one.client.target, [document("a.md", "Zeppelins.\n", groups=("staff",))], lambda report: None
        )

    assert await shelf.store.page(LOCAL) == []
    assert await shelf.store.collections() == {BILLING: 1}


async def test_a_document_is_read_only_when_the_one_before_is_answered() -> None:
    shelf = Shelf()
    reports: list[IngestReport] = []
    seen: list[int] = []

    def documents() -> Iterator[SourceDocument]:
        for number in range(3):
            seen.append(len(reports))
            yield document(f"{number}.md", f"Zeppelin {number}.\n")

    async with served.serving(shelf) as one:
        await ingest_remotely(one.client.target, documents(), reports.append)

    assert seen == [0, 1, 2]


async def test_no_documents_end_with_no_reports() -> None:
    reports: list[IngestReport] = []

    async with served.serving(Shelf()) as one:
        await ingest_remotely(one.client.target, [], reports.append)

    assert reports == []


async def test_an_agent_that_is_away_fails_the_ingestion_and_says_so(free_port: int) -> None:
    with pytest.raises(CallFailedError, match="UNAVAILABLE"):
        await ingest_remotely(f"127.0.0.1:{free_port}", [document("a.md", "x\n")], lambda report: None)


async def test_a_store_that_fails_ends_the_ingestion_after_what_was_reported() -> None:
    shelf = Shelf()
    reports: list[IngestReport] = []

    def documents() -> Iterator[SourceDocument]:
        yield document("a.md", "Zeppelins.\n")
        shelf.store.unavailable = True
        yield document("b.md", "Zeppelins.\n")

    async with served.serving(shelf) as one:
        with pytest.raises(CallFailedError, match="UNAVAILABLE"):
            await ingest_remotely(one.client.target, documents(), reports.append)
        shelf.store.unavailable = False

    assert [report.uri for report in reports] == ["a.md"]
    assert [info.uri for info in await shelf.store.page(LOCAL)] == ["a.md"]


async def test_a_document_larger_than_a_message_fails_the_ingestion() -> None:
    async with served.serving(Shelf()) as one:
        with pytest.raises(CallFailedError):
            await ingest_remotely(
                one.client.target, [document("a.md", "x" * (4 * 1024 * 1024 + 1))], lambda report: None
            )


class SilentParts:
    """A pipeline that never comes to an end, and a search that is not asked."""

    async def ingest(self, document: SourceDocument) -> Ingested:
        await asyncio.Event().wait()
        raise AssertionError(document)

    async def search(self, question: Question, collections: Sequence[CollectionName], limit: int) -> Found:
        raise AssertionError(question)


# The agent's status and the client's next document cross each other in every sixth case or so.
@pytest.mark.parametrize("attempt", range(20))
async def test_an_agent_that_stops_in_between_fails_the_ingestion_and_says_so(attempt: int) -> None:
    shelf = Shelf()
    parts = served.parts_over(shelf)
    servicer = KnowledgeServicer(parts.searcher, parts.store, parts.pipeline)
    reports: list[IngestReport] = []

    def drain_after_the_first(report: IngestReport) -> None:
        reports.append(report)
        servicer.drain()

    documents = [document(f"{number}.md", f"Zeppelin {number}.\n") for number in range(5)]
    async with served.servicers(lambda server: add_KnowledgeServiceServicer_to_server(servicer, server)) as client:
        with pytest.raises(CallFailedError) as raised:
            await ingest_remotely(client.target, documents, drain_after_the_first)
    await served.settled()

    assert 1 <= len(reports) < 5
    assert {info.uri for info in await shelf.store.page(LOCAL)} >= {report.uri for report in reports}
    assert "UNAVAILABLE: this replica is shutting down" in str(raised.value)


async def test_an_agent_that_does_not_answer_in_time_fails_the_ingestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_client, "DOCUMENT_S", 0.2)
    servicer = KnowledgeServicer(SilentParts(), Shelf().store, SilentParts())

    async with served.servicers(lambda server: add_KnowledgeServiceServicer_to_server(servicer, server)) as client:
        with pytest.raises(CallFailedError, match="DEADLINE_EXCEEDED"):
            await ingest_remotely(client.target, [document("a.md", "x\n")], lambda report: None)


async def test_a_search_returns_the_best_passages_first() -> None:
    shelf = Shelf()
    await shelf.put("a.md", "# Fleet\n\nZeppelins fly over Lisbon.\n")
    await shelf.put("b.md", "# Docks\n\nZeppelins land.\n")

    async with served.serving(shelf) as one:
        hits = await search_remotely(one.client.target, "zeppelins over Lisbon", 5)
        (best,) = await search_remotely(one.client.target, "zeppelins over Lisbon", 1)

    assert [hit.uri for hit in hits] == ["a.md", "b.md"]
    assert hits[0].score > hits[1].score > 0
    assert best == hits[0]
    assert (best.title, best.text) == ("Fleet", "# Fleet\n\nZeppelins fly over Lisbon.\n")


async def test_a_search_that_is_refused_says_why(free_port: int) -> None:
    async with served.serving(Shelf()) as one:
        with pytest.raises(CallFailedError, match=r"INVALID_ARGUMENT.*query"):
            await search_remotely(one.client.target, " ", 5)
        with pytest.raises(CallFailedError, match="FAILED_PRECONDITION"):
            await search_remotely(one.client.target, "zeppelins", 5)
    with pytest.raises(CallFailedError, match="UNAVAILABLE"):
        await search_remotely(f"127.0.0.1:{free_port}", "zeppelins", 5)
