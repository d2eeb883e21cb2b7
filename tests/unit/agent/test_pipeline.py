"""Ingestion end to end over the in-memory store: identity, versions, refusals, and what the index is told."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent_service.errors import IngestConflictError, InvalidRequestError, RetrievalUnavailableError
from agent_service.ingestion.limits import MAX_LINES, MAX_TEXT_BYTES
from agent_service.ingestion.pipeline import MAX_PASSAGES, IngestPipeline, document_id_of
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    IndexedPassage,
    IngestStatus,
    SearchQuery,
    SourceDocument,
    SparseVector,
    StoredDocument,
    TermId,
)

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
TEXT = "# Plans\n\nWe sell plans.\n\n## Prices\n\nBasic costs EUR 9.\r\n"
DOCUMENT = SourceDocument("billing/plans.md", CollectionName("billing"), "", TEXT, Access("acme"))
READER = Caller("ada", "acme")


class LettersEncoder:
    """A `TermEncoder` whose terms are the letters of a text: anybody can check what was weighed."""

    def terms(self, text: str) -> tuple[TermId, ...]:
        return tuple(TermId(code) for code in sorted({ord(letter) for letter in text.lower() if letter.isalpha()}))

    def weigh(self, text: str) -> SparseVector:
        terms = self.terms(text)
        return SparseVector(terms, (1.0,) * len(terms))


class GatedStore(InMemoryStore):
    """A store whose `put` waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()

    async def put(self, document: StoredDocument, passages: Sequence[IndexedPassage]) -> None:
        self.arrived.set()
        await self.gate.wait()
        await super().put(document, passages)


@pytest.fixture
def store() -> InMemoryStore:
    return InMemoryStore()


@pytest.fixture
def pipeline(store: InMemoryStore) -> IngestPipeline:
    return IngestPipeline(store, LettersEncoder(), lambda: NOON)


async def test_ingest_stores_the_text_unchanged_in_passages_that_tile_it(
    store: InMemoryStore, pipeline: IngestPipeline
) -> None:
    done = await pipeline.ingest(DOCUMENT)

    assert done.status is IngestStatus.CREATED
    assert done.document == await store.info(done.document.id, READER)
    assert (done.document.title, done.document.uri, done.document.collection) == ("Plans", DOCUMENT.uri, "billing")
    assert (done.document.characters, done.document.passages, done.document.ingested_at) == (len(TEXT), 2, NOON)
    stored = await store.document(done.document.id, READER)
    assert stored is not None
    assert stored.text == TEXT
    passages = await store.passages_of(done.document.id, READER)
    assert "".join(passage.text for passage in passages) == TEXT
    assert [passage.ordinal for passage in passages] == [0, 1]
    assert [passage.heading for passage in passages] == ["Plans", "Prices"]
    assert {(passage.title, passage.uri, passage.version) for passage in passages} == {
        ("Plans", DOCUMENT.uri, done.document.version)
    }
    assert [sentence.text for sentence in passages[1].sentences] == ["Basic costs EUR 9."]


async def test_ingest_of_the_same_again_writes_nothing(store: InMemoryStore, pipeline: IngestPipeline) -> None:
    first = await pipeline.ingest(DOCUMENT)

    later = IngestPipeline(store, LettersEncoder())
    again = await later.ingest(replace(DOCUMENT, title="Plans"))

    assert again.status is IngestStatus.UNCHANGED
    assert again.document == first.document


@pytest.mark.parametrize(
    "change",
    [
        {"text": TEXT + "\n"},
        {"title": "Other"},
        {"access": Access("acme", ("staff",))},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_ingest_of_a_change_takes_the_place_of_the_old_version(
    store: InMemoryStore, pipeline: IngestPipeline, change: dict[str, object]
) -> None:
    first = await pipeline.ingest(DOCUMENT)
    old = await store.passages_of(first.document.id, READER)

    second = await pipeline.ingest(replace(DOCUMENT, **change))  # type: ignore[arg-type]

    assert second.status is IngestStatus.REPLACED
    assert second.document.id == first.document.id
    assert second.document.version != first.document.version
    assert await store.passages([passage.id for passage in old], Caller("bob", "acme", ("staff",))) == []


async def test_ingest_says_created_where_the_new_readers_could_not_see_the_old_version(
    store: InMemoryStore, pipeline: IngestPipeline
) -> None:
    await pipeline.ingest(replace(DOCUMENT, access=Access("acme", ("finance",))))

    moved = await pipeline.ingest(replace(DOCUMENT, access=Access("acme", ("staff",))))

    assert moved.status is IngestStatus.CREATED
    assert await store.info(moved.document.id, Caller("ada", "acme", ("finance",))) is None
    assert await store.collections() == {"billing": 1}


WRITER = Caller("ada", "acme", ("staff", "board"))
STAFF_ONLY, OPEN = Access("acme", ("staff",)), Access("acme")


@pytest.mark.parametrize(
    ("before", "writer", "after"),
    [
        (None, WRITER, OPEN),
        (None, WRITER, STAFF_ONLY),
        (OPEN, WRITER, STAFF_ONLY),
        (STAFF_ONLY, WRITER, OPEN),
        (STAFF_ONLY, WRITER, Access("acme", ("board",))),
        (Access("acme", ("legal", "staff")), WRITER, STAFF_ONLY),
        (STAFF_ONLY, None, OPEN),
        (STAFF_ONLY, None, Access("acme", ("legal",))),
    ],
)
async def test_who_may_read_a_document_may_replace_it_and_the_operator_may_replace_any(
    store: InMemoryStore, pipeline: IngestPipeline, before: Access | None, writer: Caller | None, after: Access
) -> None:
    if before:
        await pipeline.ingest(replace(DOCUMENT, access=before))

    done = await pipeline.ingest(replace(DOCUMENT, text="New.\n", access=after, writer=writer))

    assert done.document.access == after
    assert await store.collections() == {"billing": 1}


@pytest.mark.parametrize("after", [OPEN, Access("acme", ("sales",))])
@pytest.mark.parametrize("text", [TEXT, "Forged.\n"])
async def test_what_a_writer_cannot_read_they_cannot_replace(
    store: InMemoryStore, pipeline: IngestPipeline, after: Access, text: str
) -> None:
    kept = (await pipeline.ingest(replace(DOCUMENT, access=STAFF_ONLY))).document

    with pytest.raises(InvalidRequestError) as refused:
        await pipeline.ingest(replace(DOCUMENT, text=text, access=after, writer=Caller("eve", "acme", ("sales",))))

    assert str(refused.value) == "document.uri: is taken in this collection; choose another"
    stored = await store.document(kept.id, WRITER)
    assert stored is not None
    assert (stored.info, stored.text) == (kept, TEXT)


@pytest.mark.parametrize("groups", [("legal",), ("legal", "staff")])
async def test_a_writer_gives_documents_to_their_own_groups_only(
    store: InMemoryStore, pipeline: IngestPipeline, groups: tuple[str, ...]
) -> None:
    document = replace(DOCUMENT, access=Access("acme", groups))

    with pytest.raises(InvalidRequestError) as refused:
        await pipeline.ingest(replace(document, writer=WRITER))
    assert [violation.field for violation in refused.value.violations] == ["document.access.groups"]
    assert await store.collections() == {}

    # Nor do they learn whether it is there already.
    await pipeline.ingest(document)
    with pytest.raises(InvalidRequestError) as again:
        await pipeline.ingest(replace(document, writer=WRITER))
    assert str(again.value) == str(refused.value)


async def test_order_and_repetition_of_groups_mean_nothing(pipeline: IngestPipeline) -> None:
    first = await pipeline.ingest(replace(DOCUMENT, access=Access("acme", ("b", "a", "b"))))

    assert first.document.access.groups == ("a", "b")
    assert (
        await pipeline.ingest(replace(DOCUMENT, access=Access("acme", ("a", "b"))))
    ).status is IngestStatus.UNCHANGED


async def test_ids_derive_from_names_and_content_alone(pipeline: IngestPipeline) -> None:
    """The ids are part of what is stored: a change here renames every document."""
    done = await pipeline.ingest(DOCUMENT)

    assert done.document.id == document_id_of(DOCUMENT) == "c812d23c-f50d-5675-b57b-26221c252dd8"
    assert done.document.version == "1f33233d0a8591c8"


@pytest.mark.parametrize(
    "other", [{"uri": "x"}, {"collection": CollectionName("x")}, {"access": Access("x")}], ids=lambda o: next(iter(o))
)
def test_tenant_collection_and_uri_name_a_document(other: dict[str, object]) -> None:
    assert document_id_of(replace(DOCUMENT, **other)) != document_id_of(DOCUMENT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uri", "title", "text", "expected"),
    [
        ("a/b.md", " Given ", "# Heading", "Given"),
        ("a/b.md", "", "## Second\n\n# First *one*", "First one"),
        ("a/b.md", " ", "no heading", "b.md"),
        ("a/b.md", "", "# " + "x" * 400, "x" * 300),
        ("https://x.y/docs/My%20File.html?v=1#top", "", "text", "My File.html"),
        ("https://x.y/docs/", "", "text", "docs"),
        ("c/C#.md", "", "text", "C#.md"),
        ("/", "", "text", "/"),
    ],
)
async def test_title_is_given_or_found(
    pipeline: IngestPipeline, uri: str, title: str, text: str, expected: str
) -> None:
    done = await pipeline.ingest(replace(DOCUMENT, uri=uri, title=title, text=text))

    assert done.document.title == expected


async def test_passages_are_found_by_title_headings_and_column_names(
    store: InMemoryStore, pipeline: IngestPipeline
) -> None:
    rows = "".join(f"| {'i' * 40} | {number} |\n" for number in range(60))
    done = await pipeline.ingest(replace(DOCUMENT, title="qq", text=f"## zz\n\n| kk | o |\n|---|---|\n{rows}"))
    passages = await store.passages_of(done.document.id, READER)
    assert len(passages) > 1

    for letter in "qzk":
        hits = await store.search(SearchQuery((TermId(ord(letter)),), READER, limit=50))
        assert {hit.passage.id for hit in hits} == {passage.id for passage in passages}


VIOLATIONS = [
    ({"uri": ""}, "document.uri"),
    ({"uri": "x" * 1_025}, "document.uri"),
    ({"uri": "a\0b"}, "document.uri"),
    ({"uri": "a\ud800b"}, "document.uri"),
    ({"collection": ""}, "document.collection"),
    ({"collection": "Billing"}, "document.collection"),
    ({"collection": "billing\n"}, "document.collection"),
    ({"collection": "x" * 65}, "document.collection"),
    ({"title": "x" * 301}, "document.title"),
    ({"title": "\0"}, "document.title"),
    ({"text": ""}, "document.text"),
    ({"text": "é" * (MAX_TEXT_BYTES // 2 + 1)}, "document.text"),
    ({"text": "x" * (MAX_TEXT_BYTES + 1)}, "document.text"),
    ({"text": "a\0"}, "document.text"),
    ({"text": "\udfff"}, "document.text"),
    ({"text": "\n" * (MAX_LINES + 1)}, "document.text"),
    ({"text": "\r" * (MAX_LINES + 1)}, "document.text"),
    ({"access": Access("")}, "document.access.tenant"),
    ({"access": Access("a/b")}, "document.access.tenant"),
    ({"access": Access("acme", tuple(f"g{n}" for n in range(33)))}, "document.access.groups"),
    ({"access": Access("acme", ("a b",))}, "document.access.groups"),
    ({"access": Access("acme", ("",))}, "document.access.groups"),
]


@pytest.mark.parametrize(
    ("change", "field"), VIOLATIONS, ids=[f"{field}-{n}" for n, (_, field) in enumerate(VIOLATIONS)]
)
async def test_ingest_refuses_what_breaks_a_rule_and_stores_nothing(
    store: InMemoryStore, pipeline: IngestPipeline, change: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await pipeline.ingest(replace(DOCUMENT, **change))  # type: ignore[arg-type]

    assert [violation.field for violation in refused.value.violations] == [field]
    assert await store.collections() == {}


async def test_ingest_names_all_broken_rules_at_once(pipeline: IngestPipeline) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await pipeline.ingest(SourceDocument("", CollectionName("?"), "", "", Access("")))

    assert [violation.field for violation in refused.value.violations] == [
        "document.uri",
        "document.collection",
        "document.text",
        "document.access.tenant",
    ]


async def test_ingest_takes_what_just_keeps_the_rules(pipeline: IngestPipeline) -> None:
    groups = tuple("g" * 62 + f"{n:02}" for n in range(32))
    document = SourceDocument("u" * 1_024, CollectionName("c" * 64), "t" * 300, "\n", Access("t" * 64, groups))

    assert (await pipeline.ingest(document)).status is IngestStatus.CREATED


async def test_ingest_takes_2_mib_of_text(store: InMemoryStore, pipeline: IngestPipeline) -> None:
    paragraph = "é" * 49 + " is a sentence.\n\n"
    text = (
        (paragraph * (MAX_TEXT_BYTES // len(paragraph.encode()) + 1)).encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    )

    done = await pipeline.ingest(replace(DOCUMENT, text=text))

    passages = await store.passages_of(done.document.id, READER)
    assert "".join(passage.text for passage in passages) == text


async def test_ingest_refuses_more_passages_than_allowed(store: InMemoryStore, pipeline: IngestPipeline) -> None:
    with pytest.raises(InvalidRequestError, match="at most 20,000 passages, has 20,001"):
        await pipeline.ingest(replace(DOCUMENT, text="# a\nb\n" * (MAX_PASSAGES + 1)))

    assert await store.collections() == {}


async def test_ingest_of_a_long_document_lets_the_event_loop_run(pipeline: IngestPipeline) -> None:
    """Counts what else the loop did meanwhile: were it blocked, the other task would run once or twice."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    await pipeline.ingest(replace(DOCUMENT, text="A sentence of a long document.\n\n" * 10_000))
    other.cancel()

    assert turns > 100


async def test_two_writers_of_one_document_are_told_apart_from_one() -> None:
    store = GatedStore()
    pipeline = IngestPipeline(store, LettersEncoder())
    first = asyncio.create_task(pipeline.ingest(DOCUMENT))
    await store.arrived.wait()

    with pytest.raises(IngestConflictError):
        await pipeline.ingest(DOCUMENT)
    other = asyncio.create_task(pipeline.ingest(replace(DOCUMENT, uri="other.md")))
    store.gate.set()

    assert (await first).status is (await other).status is IngestStatus.CREATED
    assert (await pipeline.ingest(DOCUMENT)).status is IngestStatus.UNCHANGED


async def test_a_cancelled_writer_leaves_the_document_to_the_next() -> None:
    store = GatedStore()
    pipeline = IngestPipeline(store, LettersEncoder())
    first = asyncio.create_task(pipeline.ingest(DOCUMENT))
    await store.arrived.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    store.gate.set()

    assert (await pipeline.ingest(DOCUMENT)).status is IngestStatus.CREATED


async def test_ingest_passes_on_that_the_store_failed(store: InMemoryStore, pipeline: IngestPipeline) -> None:
    store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await pipeline.ingest(DOCUMENT)
