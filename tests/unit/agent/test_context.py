from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.retrieval.context import estimate_tokens, merge_neighbours, offer, whole
from agent_service.types import (
    CollectionName,
    DocumentId,
    Passage,
    PassageId,
    ScoredPassage,
    Sentence,
    Span,
)


def passage(ordinal: int, *, document: str = "d", version: str = "v", heading: str = "h", length: int = 10) -> Passage:
    """A passage of a document whose passages all have the same length."""
    start = ordinal * length
    letters = chr(ord("a") + ordinal % 26) * length
    sentence = Sentence(Span(start, start + length), letters, heading)
    return Passage(
        id=PassageId(f"{document}-{version}-{ordinal}"),
        document_id=DocumentId(document),
        version=version,
        collection=CollectionName("billing"),
        title="t",
        uri="u",
        heading=heading,
        ordinal=ordinal,
        span=Span(start, start + length),
        text=letters,
        sentences=(sentence,),
    )


def hit(passage: Passage, score: float = 1.0) -> ScoredPassage:
    return ScoredPassage(passage, score)


def test_passages_that_follow_each_other_under_one_heading_become_one() -> None:
    merged = merge_neighbours([hit(passage(1), 2.0), hit(passage(0), 5.0), hit(passage(2), 1.0)])

    assert len(merged) == 1
    joined = merged[0].passage
    assert joined.text == "a" * 10 + "b" * 10 + "c" * 10
    assert joined.span == Span(0, 30)
    assert [sentence.span.start for sentence in joined.sentences] == [0, 10, 20]
    assert merged[0].score == 5.0


@pytest.mark.parametrize(
    "other",
    [
        passage(1, document="e"),
        passage(1, version="w"),
        passage(1, heading="i"),
        passage(2),
    ],
    ids=["another document", "another version", "another heading", "not adjacent"],
)
def test_passages_that_do_not_belong_together_stay_apart(other: Passage) -> None:
    merged = merge_neighbours([hit(passage(0), 2.0), hit(other, 1.0)])

    assert [each.passage for each in merged] == [passage(0), other]


def test_merged_passages_come_in_the_order_of_their_best_hit() -> None:
    hits = [
        hit(passage(0, document="d"), 3.0),
        hit(passage(0, document="e"), 2.0),
        hit(passage(5, document="f"), 2.5),
        hit(passage(1, document="e"), 9.0),
    ]

    merged = merge_neighbours(hits)

    assert [(each.passage.document_id, each.score) for each in merged] == [("e", 9.0), ("d", 3.0), ("f", 2.5)]


def test_nothing_merges_into_nothing() -> None:
    assert merge_neighbours([]) == []


def test_a_gap_parts_two_runs_of_one_section() -> None:
    merged = merge_neighbours([hit(passage(ordinal)) for ordinal in (0, 1, 3, 4)])

    assert sorted(each.passage.span.start for each in merged) == [0, 30]
    assert {len(each.passage.text) for each in merged} == {20}


@given(st.lists(st.integers(0, 25), unique=True, max_size=12))
def test_merging_keeps_every_character_and_every_sentence_exactly_once(ordinals: list[int]) -> None:
    hits = [hit(passage(ordinal), float(rank)) for rank, ordinal in enumerate(ordinals)]

    merged = merge_neighbours(hits)

    spans = sorted((each.passage.span.start, each.passage.span.end) for each in merged)
    covered = [place for start, end in spans for place in range(start, end)]
    assert covered == sorted(place for ordinal in ordinals for place in range(ordinal * 10, ordinal * 10 + 10))
    for each in merged:
        assert len(each.passage.text) == each.passage.span.end - each.passage.span.start
        assert [s.span.start for s in each.passage.sentences] == list(
            range(each.passage.span.start, each.passage.span.end, 10)
        )


def test_sources_are_numbered_from_one_in_order() -> None:
    sources = offer([hit(passage(0), 3.0), hit(passage(2), 2.0)], budget_tokens=100)

    assert [(source.marker, source.passage.ordinal, source.score) for source in sources] == [(1, 0, 3.0), (2, 2, 2.0)]


def test_a_passage_over_the_budget_is_passed_over_for_a_smaller_one() -> None:
    large, small = passage(1, length=4000), passage(0, document="e", length=40)

    sources = offer([hit(passage(0, length=400)), hit(large), hit(small)], budget_tokens=120)

    assert [(source.marker, source.passage.document_id) for source in sources] == [(1, "d"), (2, "e")]


def test_the_first_passage_is_offered_even_over_the_budget() -> None:
    sources = offer([hit(passage(0, length=4000)), hit(passage(0, document="e"))], budget_tokens=10)

    assert [source.passage.document_id for source in sources] == ["d"]


def test_no_passages_give_no_sources() -> None:
    assert offer([], budget_tokens=10) == ()


@given(st.lists(st.integers(1, 3000), max_size=12), st.integers(1, 2000))
def test_numbers_have_no_gaps_and_all_but_a_large_first_fit_the_budget(lengths: list[int], budget: int) -> None:
    hits = [hit(passage(0, document=str(place), length=length)) for place, length in enumerate(lengths)]

    sources = offer(hits, budget_tokens=budget)

    assert [source.marker for source in sources] == list(range(1, len(sources) + 1))
    if len(sources) > 1:
        assert sum(estimate_tokens(len(source.passage.text)) for source in sources) <= budget


@pytest.mark.parametrize(("characters", "tokens"), [(0, 1), (3, 1), (4, 1), (8, 2), (4000, 1000)])
def test_tokens_are_about_a_quarter_of_the_characters_and_at_least_one(characters: int, tokens: int) -> None:
    assert estimate_tokens(characters) == tokens


def test_a_whole_document_has_all_its_text_and_the_sentences_under_their_headings() -> None:
    parts = [passage(0, heading="a"), passage(1, heading="b")]

    made = whole(parts, "a" * 10 + "b" * 10)

    assert made.text == "a" * 10 + "b" * 10
    assert made.span == Span(0, 20)
    assert made.heading == ""
    assert [sentence.heading for sentence in made.sentences] == ["a", "b"]
    assert (made.document_id, made.version, made.title, made.uri) == ("d", "v", "t", "u")


def test_a_whole_document_has_the_documents_own_id() -> None:
    # By it an event shows 500 characters of the document in place of all (convert.source_to_proto).
    made = whole([replace(passage(0), id=PassageId("p"))], "a" * 10)

    assert str(made.id) == str(made.document_id)
