"""Documents and passages as payloads, and back; and which points a caller's reads may touch."""

import json
from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.retrieval.stores.payload import (
    document_from_payload,
    document_payload,
    document_point,
    info_from_payload,
    passage_from_payload,
    passage_payload,
    passage_point,
    readers_for,
    readers_of,
)
from agent_service.retrieval.stores.selection import MAX_TIED, cut_through_tie, page_start, passages_for
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentId,
    DocumentInfo,
    IndexedPassage,
    Passage,
    PassageId,
    Sentence,
    Span,
    SparseVector,
    StoredDocument,
    TermId,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
groups = st.lists(text, max_size=3).map(tuple)
access = st.builds(Access, text, groups)


@st.composite
def passages(draw: st.DrawFn) -> Passage:
    words = draw(text)
    start = draw(st.integers(0, 10_000))
    cuts = st.tuples(st.integers(0, len(words)), st.integers(0, len(words))).map(sorted)
    heading = draw(text)
    sentences = []
    for first, last in draw(st.lists(cuts, max_size=4)):
        plain = words[first:last]
        span = Span(start + first, start + last)
        sentences.append(Sentence(span, draw(st.just(plain) | text), draw(st.just(heading) | text)))
    return Passage(
        id=PassageId(draw(text)),
        document_id=DocumentId(draw(text)),
        version=draw(text),
        collection=CollectionName(draw(text)),
        title=draw(text),
        uri=draw(text),
        heading=heading,
        ordinal=draw(st.integers(0, 100)),
        span=Span(start, start + len(words)),
        text=words,
        sentences=tuple(sentences),
    )


infos = st.builds(
    DocumentInfo,
    id=text,
    version=text,
    title=text,
    uri=text,
    collection=text,
    access=access,
    characters=st.integers(0),
    passages=st.integers(0),
    ingested_at=st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])),
)


@given(passages(), access)
def test_passage_survives_the_round_trip(passage: Passage, readable_by: Access) -> None:
    payload = passage_payload(IndexedPassage(passage, SparseVector((TermId(3), TermId(9)), (1.0, 2.0))), readable_by)

    assert payload["terms"] == [3, 9]
    assert passage_from_payload(json.loads(json.dumps(payload))) == passage
    del payload["terms"]
    assert passage_from_payload(payload) == passage


@given(infos, text)
def test_document_survives_the_round_trip(info: DocumentInfo, words: str) -> None:
    payload = json.loads(json.dumps(document_payload(StoredDocument(info, words))))

    assert document_from_payload(payload) == StoredDocument(info, words)
    del payload["text"]
    assert info_from_payload(payload) == info


def test_sentence_that_is_the_words_there_takes_no_text() -> None:
    span = Span(100, 111)
    passage = Passage(
        id=PassageId("p"),
        document_id=DocumentId("d"),
        version="1",
        collection=CollectionName("c"),
        title="",
        uri="",
        heading="Dogs",
        ordinal=0,
        span=span,
        text="They bark. ",
        sentences=(Sentence(Span(100, 110), "They bark.", "Dogs"), Sentence(Span(100, 104), "Dogs", "Cats")),
    )

    payload = passage_payload(IndexedPassage(passage, SparseVector((), ())), Access("t"))

    assert payload["sentences"] == [[100, 110, None, None], [100, 104, "Cats", "Dogs"]]


@given(access, st.builds(Caller, text, text, groups))
def test_readers_meet_exactly_where_the_caller_may_read(readable_by: Access, caller: Caller) -> None:
    allowed = not readable_by.groups or bool(set(readable_by.groups) & set(caller.groups))

    assert bool(set(readers_of(readable_by)) & set(readers_for(caller))) is allowed


def test_every_selection_names_tenant_and_readers() -> None:
    chosen = passages_for(Caller("ada", "acme", ("staff",)), [CollectionName("guides")], points=["a"])

    assert chosen.equal == {"kind": "passage", "tenant": "acme"}
    assert chosen.among == {"readers": ["*", "group:staff"], "collection": ["guides"]}
    assert chosen.term(TermId(7)).equal == {"kind": "passage", "tenant": "acme", "terms": 7}
    assert chosen.term(TermId(7)).among == chosen.among
    assert chosen.term(TermId(7)).points == ("a",)


@given(text, text)
def test_passage_points_are_unique_and_lasting(one: str, other: str) -> None:
    assert (passage_point(PassageId(one)) == passage_point(PassageId(other))) is (one == other)


def test_passage_point_of_an_id_never_changes() -> None:
    assert passage_point(PassageId("p")) == "2edaa762-4803-5f37-b839-359f8503c584"


@pytest.mark.parametrize(
    "name", ["", "x", "00000000-0000-0000-0000-00000000000A", "{00000000-0000-0000-0000-000000000000}"]
)
def test_document_point_is_a_canonical_uuid_or_none(name: str) -> None:
    assert document_point(name) is None


def test_page_starts_behind_an_id_and_never_wraps() -> None:
    assert page_start(None) is None
    assert page_start(DocumentId("00000000-0000-0000-0000-0000000000ff")) == "00000000-0000-0000-0000-000000000100"
    last = "f" * 8 + "-ffff" * 3 + "-" + "f" * 12  # no UUID of ours: their version is 5
    assert page_start(DocumentId(last)) == last


@pytest.mark.parametrize(
    ("scores", "limit", "fetched", "cut"),
    [
        ([3.0, 2.0, 2.0], 2, 3, True),
        ([3.0, 2.0, 1.0], 2, 3, False),
        ([3.0, 2.0], 2, 3, False),
        ([], 2, 3, False),
        ([2.0] * MAX_TIED, 2, MAX_TIED, False),
    ],
)
def test_cut_through_tie(scores: list[float], limit: int, fetched: int, cut: bool) -> None:
    assert cut_through_tie(scores, limit, fetched) is cut
