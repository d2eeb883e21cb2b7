import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.errors import RetrievalUnavailableError
from agent_service.retrieval.support import (
    ANSWERABLE,
    FEWEST_PASSAGES,
    MOST_WEIGHED_TERMS,
    STILL_SUPPORTED,
    TermWeights,
    inverse_document_frequency,
)
from agent_service.types import Caller, TermId
from tests.support.shelf import BILLING, ENCODER, LOCAL, POLICY, Shelf, ask

counts = st.integers(0, 100_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(counts)
def test_idf_is_above_zero(count: tuple[int, int]) -> None:
    assert inverse_document_frequency(*count) > 0


@given(st.integers(1, 10_000), st.data())
def test_idf_is_larger_for_rarer_terms(passages: int, data: st.DataObject) -> None:
    rare = data.draw(st.integers(0, passages - 1))
    common = data.draw(st.integers(rare + 1, passages))

    assert inverse_document_frequency(rare, passages) > inverse_document_frequency(common, passages)


def test_idf_is_that_of_the_source_with_one_under_the_logarithm() -> None:
    assert inverse_document_frequency(3, 10) == pytest.approx(math.log(1 + (10 - 3 + 0.5) / (3 + 0.5)))


TERMS = st.dictionaries(st.integers(0, 30).map(TermId), st.floats(0.001, 20), max_size=12)


@given(TERMS, st.sets(st.integers(0, 30).map(TermId)))
def test_support_is_between_zero_and_one(weights: dict[TermId, float], held: set[TermId]) -> None:
    support = TermWeights(weights, math.fsum(weights.values())).support(held)

    assert 0 <= support <= 1


@given(TERMS.filter(bool))
def test_a_text_with_all_terms_supports_a_question_wholly(weights: dict[TermId, float]) -> None:
    assert TermWeights(weights, math.fsum(weights.values())).support(weights) == 1


@given(TERMS, st.sets(st.integers(0, 30).map(TermId)), st.sets(st.integers(0, 30).map(TermId)))
def test_more_terms_never_support_less(weights: dict[TermId, float], one: set[TermId], other: set[TermId]) -> None:
    made = TermWeights(weights, math.fsum(weights.values()))

    assert made.support(one | other) >= made.support(one)


def test_support_takes_any_iterable_of_terms() -> None:
    weights = TermWeights({TermId(1): 3.0, TermId(2): 1.0}, 4.0)

    assert weights.support([TermId(1), TermId(1)]) == 0.75
    assert weights.support(iter((TermId(2),))) == 0.25
    assert weights.support(frozenset((TermId(1), TermId(2)))) == 1.0


def test_nothing_supports_a_question_of_stop_words_only() -> None:
    assert TermWeights({}, 0.0).support({TermId(1)}) == 0


def test_keeping_passages_is_stricter_than_answering() -> None:
    assert 0 < ANSWERABLE < STILL_SUPPORTED <= 1


@pytest.fixture
async def shelf() -> Shelf:
    shelf = Shelf()
    await shelf.put("a.md", "Invoices are sent monthly.\n")
    await shelf.put("b.md", "Invoices are archived.\n")
    await shelf.put("c.md", "Refunds take two weeks.\n")
    return shelf


async def test_a_rare_word_of_a_question_weighs_more_than_a_common_one(shelf: Shelf) -> None:
    weights = await shelf.support.weigh(ask("invoices archived"), [BILLING])
    (invoices,), (archived,) = ENCODER.terms("invoices"), ENCODER.terms("archived")

    assert weights.weights[archived] > weights.weights[invoices]
    assert weights.weights[invoices] == inverse_document_frequency(2, FEWEST_PASSAGES)
    assert weights.total == pytest.approx(sum(weights.weights.values()))


async def test_a_word_that_no_document_has_weighs_most(shelf: Shelf) -> None:
    weights = await shelf.support.weigh(ask("invoices zeppelin"), [BILLING])

    assert max(weights.weights, key=lambda term: weights.weights[term]) == ENCODER.terms("zeppelin")[0]


async def test_a_question_is_weighed_by_its_own_words_where_it_has_any(shelf: Shelf) -> None:
    weights = await shelf.support.weigh(ask("Refunds in weeks?", previous="invoices archived"), [BILLING])

    assert set(weights.weights) == set(ENCODER.terms("refunds weeks"))


async def test_words_of_the_message_before_weigh_less_in_a_question_that_leans_on_it(shelf: Shelf) -> None:
    (refunds,), (archived,) = ENCODER.terms("refunds"), ENCODER.terms("archived")

    weights = await shelf.support.weigh(ask("And refunds?", previous="archived"), [BILLING])

    assert 0 < weights.weights[archived] < weights.weights[refunds]


async def test_a_question_of_stop_words_only_is_weighed_by_the_message_before_it(shelf: Shelf) -> None:
    weights = await shelf.support.weigh(ask("And why?", previous="invoices archived"), [BILLING])

    assert set(weights.weights) == set(ENCODER.terms("invoices archived"))


async def test_stop_words_without_a_message_before_them_weigh_nothing(shelf: Shelf) -> None:
    weights = await shelf.support.weigh(ask("And why?"), [BILLING])

    assert weights == TermWeights({}, 0.0)


async def test_weights_count_only_what_the_caller_may_read(shelf: Shelf) -> None:
    question = ask("archived")
    before = await shelf.support.weigh(question, [BILLING])

    await shelf.put("x.md", "Archived archived.\n", tenant="umbrella")
    await shelf.put("y.md", "Archived archived.\n", groups=("staff",))

    assert await shelf.support.weigh(question, [BILLING]) == before
    member = ask("archived", caller=Caller("ada", "default", ("staff",)))
    (weight,) = (await shelf.support.weigh(member, [BILLING])).weights.values()
    assert weight == inverse_document_frequency(2, FEWEST_PASSAGES)


async def test_weights_count_only_the_collections_asked_for(shelf: Shelf) -> None:
    await shelf.put("p.md", "Archived for ten years.\n", collection="policy")
    question = ask("archived")
    (archived,) = ENCODER.terms("archived")

    in_policy = await shelf.support.weigh(question, [POLICY])
    in_both = await shelf.support.weigh(question, [POLICY, BILLING])
    in_all = await shelf.support.weigh(question, [])

    assert in_policy.weights == {archived: inverse_document_frequency(1, FEWEST_PASSAGES)}
    assert in_both.weights == {archived: inverse_document_frequency(2, FEWEST_PASSAGES)}
    assert in_all == in_both


async def test_the_first_document_of_a_tenant_answers_a_question_with_one_word_more_than_it_says(shelf: Shelf) -> None:
    info = await shelf.put("d.md", "# Discounts\n\nThe Zebra discount is 17 percent.\n", tenant="umbrella")
    caller = Caller("ada", "umbrella")

    weights = await shelf.support.weigh(ask("How big is the Zebra discount?", caller=caller), [BILLING])
    other = await shelf.support.weigh(ask("How tall is the Eiffel tower?", caller=caller), [BILLING])

    (passage,) = await shelf.store.passages_of(info.id, caller)
    assert shelf.support.best_statement(weights, passage) >= ANSWERABLE
    assert shelf.support.best_statement(other, passage) == 0


async def test_a_passage_says_what_its_title_and_headings_say_too(shelf: Shelf) -> None:
    info = await shelf.put("t.md", "# Zeppelin\n\nIntro.\n\n## Airship fares\n\nThey cost EUR 9.\n")
    passages = await shelf.passages(info)
    terms = shelf.support.passage_terms(passages[-1])

    assert terms >= set(ENCODER.terms("zeppelin airship fares cost 9"))


async def test_a_store_that_is_away_fails_the_check(shelf: Shelf) -> None:
    shelf.store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await shelf.support.weigh(ask("invoices", caller=LOCAL), [BILLING])


async def test_a_pasted_page_is_weighed_by_a_bounded_sample_of_its_terms(shelf: Shelf) -> None:
    page = " ".join(f"word{number}" for number in range(500))

    weights = await shelf.support.weigh(ask(page), [])

    assert len(weights.weights) == MOST_WEIGHED_TERMS
