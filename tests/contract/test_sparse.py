"""`Bm25Encoder`: what counts as a term, what it weighs, and that its ids are those of Qdrant's servers."""

import time

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.retrieval.sparse import AVERAGE_TOKENS, K1, B, Bm25Encoder
from agent_service.types import TermId

ENCODER = Bm25Encoder()


def ids(*stems: str) -> tuple[TermId, ...]:
    """As fastembed and Qdrant's server make ids of stems."""
    return tuple(sorted(TermId(abs(mmh3.hash(stem))) for stem in stems))


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("passwords", ["password"]),
        ("running runs run", ["run"]),
        ("Café CAFE", ["cafe"]),
        ("naïve Straße", ["naiv", "strass"]),
        ("time-outs", ["time", "out", "timeout"]),
        ("user_id", ["user", "id"]),
        ("HTTP 429, v2.10", ["http", "429", "v2", "10"]),
        ("C++", ["c"]),
        ("東京", ["東京"]),
        ("reset\tyour\r\npassword\x00!", ["reset", "password"]),
    ],
)
def test_terms_are_stems_with_the_ids_of_qdrant(text: str, stems: list[str]) -> None:
    assert ENCODER.terms(text) == ids(*stems)


@pytest.mark.parametrize("text", ["", " \n", "the of and to", "?!…", "\U0001f600"])
def test_text_without_words_has_no_terms(text: str) -> None:
    assert ENCODER.terms(text) == ()
    assert ENCODER.weigh(text).indices == ENCODER.weigh(text).values == ()


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("cafe", "café"),
        ("timing out", "time-outs"),
        ("user id", "user_id"),
        ("refunds", "A refund."),
        ("Ärger", "arger"),
    ],
)
def test_question_and_document_meet(asked: str, written: str) -> None:
    assert set(ENCODER.terms(asked)) & set(ENCODER.terms(written))


def test_a_hyphenated_word_and_its_joined_form_meet() -> None:
    # Whoever writes it in one word is found by the hyphenated one, and the other way round.
    assert set(ENCODER.terms("timeouts")) <= set(ENCODER.terms("time-outs"))
    assert set(ENCODER.terms("email subprocessors")) <= set(ENCODER.terms("E-mail the sub-processors"))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_terms_and_weights_of_any_text_are_well_formed(text: str) -> None:
    terms, vector = ENCODER.terms(text), ENCODER.weigh(text)

    assert vector.indices == terms
    assert list(terms) == sorted(set(terms))
    assert all(0 <= term < 2**32 for term in terms)
    assert len(vector.values) == len(terms)
    assert all(0 < value < K1 + 1 for value in vector.values)


@pytest.mark.parametrize(("count", "others"), [(1, 0), (1, 79), (2, 78), (5, 200)])
def test_weight_is_bm25(count: int, others: int) -> None:
    text = " ".join(["password"] * count + [f"word{n}" for n in range(others)])
    weights = dict(zip(ENCODER.weigh(text).indices, ENCODER.weigh(text).values, strict=True))

    norm = K1 * (1 - B + B * (count + others) / AVERAGE_TOKENS)
    assert weights[ids("password")[0]] == pytest.approx(count * (K1 + 1) / (count + norm), rel=1e-5)


@pytest.mark.parametrize("length", [300, 5_000, 2 * 1024 * 1024])
def test_very_long_token_is_one_term(length: int) -> None:
    assert len(ENCODER.terms("x" * length)) == 1


def test_two_mebibytes_are_encoded_whole() -> None:
    words = [f"word{n:07}" for n in range(2 * 1024 * 1024 // 12)]
    started = time.perf_counter()

    vector = ENCODER.weigh(" ".join(words))

    assert len(vector.indices) >= len(words) - 20  # ids of 32 bits may meet
    assert time.perf_counter() - started < 10
