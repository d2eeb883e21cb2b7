import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.errors import RetrievalUnavailableError
from agent_service.llm.extractive import compose
from agent_service.retrieval.citations import MOST_RESULT_CHARACTERS, StoredQuoteChecker
from agent_service.types import Caller, CheckedCitations, DocumentInfo, Source, SupportedSentence
from tests.support.shelf import ENCODER, LOCAL, Shelf

PLANS = """\
# Plans

The Pro plan costs EUR 29 per seat and month. The Team plan costs EUR 49 per seat and month.

## Enterprise

Enterprise customers get a dedicated manager \U0001f600 and an uptime promise of 99.95 %.

| Plan | Storage | Seats |
|------|---------|-------|
| Pro  | 50 GB   | 5     |
| Team | 500 GB  | 50    |
"""

REFUNDS = """\
# Refunds

Refunds are paid within **14 days** to the card that was charged. Partial months are not refunded.

```json
{
  "refund": {
    "amount_cents": 2900,
    "reason": "duplicate"
  }
}
```
"""


class Desk:
    """Documents, the sources made of them, and the checker."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.checker = StoredQuoteChecker(self.shelf.store, ENCODER)
        self.infos: list[DocumentInfo] = []
        self.sources: tuple[Source, ...] = ()

    async def open(self) -> "Desk":
        self.infos = [await self.shelf.put("plans.md", PLANS), await self.shelf.put("refunds.md", REFUNDS)]
        self.sources = await self.shelf.sources(*self.infos)
        return self

    def marker(self, words: str) -> int:
        """The number of the source that holds these words."""
        return next(source.marker for source in self.sources if words in source.passage.text)

    async def check(self, answer: str, caller: Caller = LOCAL) -> CheckedCitations:
        return await self.checker.check(answer, self.sources, caller)


@pytest.fixture
async def desk() -> Desk:
    return await Desk().open()


# --- statements and their markers ---


class Pair:
    """Two sources with the same two sentences, so that every marker finds its words."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.checker = StoredQuoteChecker(self.shelf.store, ENCODER)

    async def spans(self, answer: str) -> list[tuple[int, str]]:
        """Markers that earned a citation, each with the words of its answer span."""
        info = await self.shelf.put("a.md", "Pro costs 29 euros.\n\nTeam costs 49 euros.\n")
        (passage,) = await self.shelf.passages(info)
        sources = [Source(marker, passage) for marker in (1, 2, 34)]
        checked = await self.checker.check(answer, sources, LOCAL)
        return [(c.marker, answer[c.answer_span.start : c.answer_span.end]) for c in checked.citations]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Pro costs 29 [1].", [(1, "Pro costs 29 [1]")]),
        ("Pro costs 29. [1]", [(1, "Pro costs 29. [1]")]),
        ("Pro costs 29.[1]", [(1, "Pro costs 29.[1]")]),
        ("Pro costs 29[1].", [(1, "Pro costs 29[1]")]),
        ("Pro costs 29\n[1]", [(1, "Pro costs 29\n[1]")]),
        ("Pro costs 29 [1]", [(1, "Pro costs 29 [1]")]),
        ("Pro costs 29 [1][2].", [(1, "Pro costs 29 [1][2]"), (2, "Pro costs 29 [1][2]")]),
        ("Pro costs euros[1][2].", [(1, "Pro costs euros[1][2]"), (2, "Pro costs euros[1][2]")]),
        ("Pro costs 29 [1] [2].", [(1, "Pro costs 29 [1] [2]"), (2, "Pro costs 29 [1] [2]")]),
        ("Pro costs 29 [1][1].", [(1, "Pro costs 29 [1][1]")]),
        ("Pro costs 29 [34].", [(34, "Pro costs 29 [34]")]),
        ("Well. Pro costs 29 [1].", [(1, "Pro costs 29 [1]")]),
        ("Really? Yes! Pro costs 29 [1]", [(1, "Pro costs 29 [1]")]),
        ('He said "hello." Pro costs 29 [1]', [(1, "Pro costs 29 [1]")]),
        ("Pro costs 29.50 euros [1].", [(1, "Pro costs 29.50 euros [1]")]),
        ("Pro costs 29 [1]. Team costs 49 [2].", [(1, "Pro costs 29 [1]"), (2, "Team costs 49 [2]")]),
        ("Pro costs 29. [1] Team costs 49. [2]", [(1, "Pro costs 29. [1]"), (2, "Team costs 49. [2]")]),
        ("Plans:\nPro costs 29 [1]\nTeam costs 49 [2]\n", [(1, "Pro costs 29 [1]"), (2, "Team costs 49 [2]")]),
        ("Pro costs 29 [1]; Team costs 49 [2]", [(1, "Pro costs 29 [1]"), (2, "Team costs 49 [2]")]),
        ("Pro costs 29 [1] and Team costs 49 [2].", [(1, "Pro costs 29 [1]"), (2, "and Team costs 49 [2]")]),
        ("Pro costs 29 euros.", []),
        ("See [the list](url), [x], [], [1234], [-1].", []),
        ("", []),
    ],
)
async def test_a_citation_spans_the_sentence_before_its_markers_and_them(
    answer: str, expected: list[tuple[int, str]]
) -> None:
    assert await Pair().spans(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "Pro costs 29 euros in `prices[1]` [2].",
        "Pro costs 29 euros in prices[1].value [2].",
        "Pro costs 29 euros:\n\n```\nprices[1]\n```\n\nPro costs 29 euros [2].",
    ],
)
async def test_an_index_in_code_earns_no_citation_and_takes_none_away(answer: str) -> None:
    assert [marker for marker, _ in await Pair().spans(answer)] == [2]


@given(st.text(alphabet="ab .!?\n[]0123456789\U0001f600é`\"'", max_size=80).map("Pro costs 29 euros [1]. {}".format))
async def test_spans_of_an_answer_stand_in_order_and_end_with_markers(answer: str) -> None:
    floor = 0
    for marker, words in await Pair().spans(answer):
        place = answer.index(words, max(0, floor - len(words)))
        assert place >= 0
        assert re.search(rf"\[0*{marker}][^A-Za-z]*\Z", words)
        assert words == words.strip()
        floor = place + len(words)


# --- citations ---


async def test_a_quoted_sentence_is_cited_at_its_place_in_the_document(desk: Desk) -> None:
    answer = f"Sure. The Team plan costs EUR 49 per seat and month. [{desk.marker('Team plan')}]"

    checked = await desk.check(answer)

    (citation,) = checked.citations
    assert checked.dropped == 0
    assert citation.quote == "The Team plan costs EUR 49 per seat and month."
    assert PLANS[citation.source_span.start : citation.source_span.end] == citation.quote
    assert answer[citation.answer_span.start : citation.answer_span.end] == answer.removeprefix("Sure. ")
    assert citation.marker == desk.marker("Team plan")
    assert citation.passage.document_id == desk.infos[0].id


async def test_a_paraphrase_is_cited_with_the_sentence_it_says(desk: Desk) -> None:
    checked = await desk.check(f"You get your money back within 14 days to your card [{desk.marker('14 days')}].")

    assert [citation.quote for citation in checked.citations] == [
        "Refunds are paid within **14 days** to the card that was charged."
    ]


async def test_a_quote_is_verbatim_with_its_markup(desk: Desk) -> None:
    answer = f"Refunds are paid within 14 days to the card that was charged. [{desk.marker('14 days')}]"

    (citation,) = (await desk.check(answer)).citations

    assert citation.quote == "Refunds are paid within **14 days** to the card that was charged."
    assert REFUNDS[citation.source_span.start : citation.source_span.end] == citation.quote


async def test_spans_behind_astral_characters_count_code_points(desk: Desk) -> None:
    answer = f"\U0001f600 Hello. Pro has Storage: 50 GB; Seats: 5 [{desk.marker('50 GB')}]"

    (citation,) = (await desk.check(answer)).citations

    assert citation.quote == "| Pro  | 50 GB   | 5     |"
    assert PLANS[citation.source_span.start : citation.source_span.end] == citation.quote
    assert answer[citation.answer_span.start :].startswith("Pro has")


async def test_two_markers_of_one_statement_share_its_answer_span(desk: Desk) -> None:
    twin = desk.marker("Pro plan")
    desk.sources = (*desk.sources, Source(len(desk.sources) + 1, desk.sources[twin - 1].passage))
    answer = f"The Pro plan costs EUR 29 per seat and month. [{twin}][{len(desk.sources)}]"

    checked = await desk.check(answer)

    assert [citation.marker for citation in checked.citations] == [twin, len(desk.sources)]
    assert {answer[c.answer_span.start : c.answer_span.end] for c in checked.citations} == {answer}


@pytest.mark.parametrize("between", ["", " ", ", ", ",", "  "])
async def test_every_marker_of_a_list_of_markers_is_cited(desk: Desk, between: str) -> None:
    twin = desk.marker("Pro plan")
    desk.sources = (*desk.sources, Source(len(desk.sources) + 1, desk.sources[twin - 1].passage))

    checked = await desk.check(f"The Pro plan costs EUR 29 per seat and month [{twin}]{between}[{len(desk.sources)}].")

    assert [citation.marker for citation in checked.citations] == [twin, len(desk.sources)]


async def test_a_marker_used_for_two_statements_is_cited_for_each(desk: Desk) -> None:
    marker = desk.marker("Pro plan")
    answer = (
        f"The Pro plan costs EUR 29 per seat and month. [{marker}] "
        f"The Team plan costs EUR 49 per seat and month. [{marker}]"
    )

    checked = await desk.check(answer)

    assert [citation.quote for citation in checked.citations] == [
        "The Pro plan costs EUR 29 per seat and month.",
        "The Team plan costs EUR 49 per seat and month.",
    ]


@pytest.mark.parametrize("marker", ["[0]", "[999]", "[99]"])
async def test_a_marker_that_no_source_has_is_dropped_and_counted(desk: Desk, marker: str) -> None:
    good = desk.marker("Pro plan")

    checked = await desk.check(f"The Pro plan costs EUR 29 per seat and month. {marker}[{good}]")

    assert [citation.marker for citation in checked.citations] == [good]
    assert checked.dropped == 1


async def test_each_unknown_marker_counts(desk: Desk) -> None:
    assert (await desk.check("One thing [97]. Another [98][99].")).dropped == 3


async def test_a_marker_whose_source_says_something_else_is_dropped(desk: Desk) -> None:
    checked = await desk.check(f"Bananas grow in Ecuador under warm rain [{desk.marker('14 days')}].")

    assert checked == CheckedCitations((), 1)


async def test_a_marker_without_a_statement_is_dropped(desk: Desk) -> None:
    assert await desk.check("[1]") == CheckedCitations((), 1)


async def test_an_answer_without_markers_has_no_citations(desk: Desk) -> None:
    assert await desk.check("The Pro plan costs EUR 29 per seat and month.") == CheckedCitations((), 0)


async def test_an_empty_answer_has_no_citations(desk: Desk) -> None:
    assert await desk.check("") == CheckedCitations((), 0)


async def test_an_index_in_code_is_no_marker_of_the_statement(desk: Desk) -> None:
    marker = desk.marker("14 days")
    answer = f"Read `refunds[0].card`: refunds are paid within 14 days to the card [{marker}]."

    checked = await desk.check(answer)

    (citation,) = checked.citations
    assert answer[citation.answer_span.start : citation.answer_span.end] == answer.removesuffix(".")
    assert checked.dropped == 0


async def test_every_sentence_that_the_offline_model_quotes_is_cited_with_that_sentence(desk: Desk) -> None:
    for source in desk.sources:
        for sentence in source.passage.sentences:
            answer = compose([SupportedSentence(source, sentence, 1.0)])

            checked = await desk.check(answer)

            assert [c.source_span for c in checked.citations] == [sentence.span], sentence.text
            (citation,) = checked.citations
            assert citation.answer_span.start == 0, sentence.text
            assert citation.answer_span.end == len(answer)


async def test_answers_of_several_sentences_cite_each_of_them(desk: Desk) -> None:
    quoted = [SupportedSentence(s, sentence, 1.0) for s in desk.sources for sentence in s.passage.sentences]

    checked = await desk.check(compose(quoted))

    assert checked.dropped == 0
    assert [c.source_span for c in checked.citations] == [each.sentence.span for each in quoted]


async def test_a_citation_names_the_heading_of_its_sentence(desk: Desk) -> None:
    marker = desk.marker("dedicated manager")

    (citation,) = (await desk.check(f"Enterprise customers get a dedicated manager [{marker}].")).citations

    assert citation.heading.endswith("Enterprise")


async def test_the_shortest_of_equally_good_sentences_is_quoted() -> None:
    shelf = Shelf()
    info = await shelf.put(
        "a.md", "Backups run nightly, and much else is also done then.\n\nBackups run nightly here.\n"
    )
    checker = StoredQuoteChecker(shelf.store, ENCODER)

    (citation,) = (await checker.check("Backups run nightly [1].", await shelf.sources(info), LOCAL)).citations

    assert citation.quote == "Backups run nightly here."


# --- what stands in the store decides ---


async def test_a_deleted_document_is_cited_no_more_and_counts(desk: Desk) -> None:
    answer = f"The Pro plan costs EUR 29 per seat and month. [{desk.marker('Pro plan')}]"
    await desk.shelf.remove(desk.infos[0])

    assert await desk.check(answer) == CheckedCitations((), 1)


async def test_a_replaced_document_is_cited_no_more_and_counts(desk: Desk) -> None:
    answer = f"The Pro plan costs EUR 29 per seat and month. [{desk.marker('Pro plan')}]"
    # The old words still stand at the old place: the version decides.
    await desk.shelf.put("plans.md", PLANS + "\nMore.\n")

    assert await desk.check(answer) == CheckedCitations((), 1)


@pytest.mark.parametrize("caller", [Caller("eve", "umbrella"), Caller("eve", "default")], ids=["tenant", "group"])
async def test_a_document_that_the_caller_may_not_read_is_not_cited(caller: Caller) -> None:
    shelf = Shelf()
    info = await shelf.put("secret.md", "The vault code is 4711 today.\n", groups=("staff",))
    checker = StoredQuoteChecker(shelf.store, ENCODER)
    sources = await shelf.sources(info)

    assert await checker.check("The vault code is 4711 today. [1]", sources, caller) == CheckedCitations((), 1)


async def test_a_source_with_words_that_its_document_never_had_is_not_cited(desk: Desk) -> None:
    marker = desk.marker("Pro plan")
    passage = desk.sources[marker - 1].passage
    forged = replace(passage, text=passage.text.replace("EUR 29", "EUR 92"))
    desk.sources = (Source(1, forged),)

    assert await desk.check("The Pro plan costs EUR 29 per seat and month. [1]") == CheckedCitations((), 1)


async def test_a_store_that_is_away_fails_the_check(desk: Desk) -> None:
    desk.shelf.store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await desk.check(f"The Pro plan costs EUR 29 per seat and month. [{desk.marker('Pro plan')}]")


SAID = "Pro Team Enterprise plan costs EUR 29 49 per seat month refunds paid within 14 days card"
MARKS = ("[1]", "[2]", "[3]", "[4]", "[5]", "[0]", "[999]", ".", "!", "\n", "\U0001f600", "`x[1]`", "**14 days**")
WORDS = st.sampled_from([*SAID.split(), *MARKS])


@given(st.lists(WORDS, max_size=40).map(" ".join))
async def test_whatever_the_answer_every_quote_stands_in_its_document(answer: str) -> None:
    desk = await Desk().open()
    texts = {info.id: text for info, text in zip(desk.infos, (PLANS, REFUNDS), strict=True)}

    checked = await desk.check(answer)

    for citation in checked.citations:
        text = texts[citation.passage.document_id]
        assert citation.quote
        assert text[citation.source_span.start : citation.source_span.end] == citation.quote
        assert f"[{citation.marker}]" in answer[citation.answer_span.start : citation.answer_span.end]
    starts = [citation.answer_span.start for citation in checked.citations]
    assert starts == sorted(starts)


# --- what tools have returned ---

RESULT = "Order 4711 was shipped on 3 March with the carrier Northwind and arrives on Friday."


@pytest.mark.parametrize(
    ("answer", "rests"),
    [
        ("Order 4711 was shipped on 3 March.", True),
        ("Hello! Your order 4711 arrives on Friday with Northwind.", True),
        ("Hello! It rains in Lisbon today.", False),
        ("Order.", False),
        ("I am sorry, the vault code of the bank is unknown to everybody here, whatever order you have made.", False),
        ("", False),
    ],
)
async def test_an_answer_rests_on_a_result_that_says_one_of_its_sentences(desk: Desk, answer: str, rests: bool) -> None:
    checked = await desk.checker.check(answer, desk.sources, LOCAL, ["Nothing of it.", RESULT])

    assert checked == CheckedCitations((), 0, rests_on_results=rests)


async def test_without_results_nothing_rests_on_them(desk: Desk) -> None:
    assert not (await desk.checker.check(RESULT, desk.sources, LOCAL)).rests_on_results


async def test_terms_of_several_results_do_not_add_up(desk: Desk) -> None:
    results = ["Order 4711 exists.", "Carrier Northwind exists.", "Friday exists."]

    checked = await desk.checker.check("Order 4711 carrier Northwind Friday Lisbon rain.", desk.sources, LOCAL, results)

    assert not checked.rests_on_results


async def test_a_long_result_is_read_up_to_its_bound(desk: Desk) -> None:
    late = "filler " * MOST_RESULT_CHARACTERS + RESULT

    checked = await desk.checker.check(RESULT, desk.sources, LOCAL, [late])

    assert not checked.rests_on_results


# --- answers that rest on a tool's result ---

ORDER = '{"order": 1007, "status": "shipped", "carrier": "Nordpost", "expected": "3 May", "weight_kg": 12}'
PLAIN = "Order 1007 was shipped with Nordpost and is expected on 3 May."


@pytest.mark.parametrize(
    ("answer", "rests"),
    [
        (PLAIN, True),
        ("Your order 1007 has been shipped with Nordpost.", True),
        ("ORDER 1007: SHIPPED, NORDPOST", True),
        ("Of course. Let me see. Order 1007 was shipped with Nordpost! Anything else?", True),
        ("Yes:\n- order 1007\n- shipped by Nordpost, expected 3 May\n", True),
        # Too little of it.
        ("Order 1007.", False),
        ("It was shipped.", False),
        ("Order 1007 is none of ours.", False),
        ("Order 1007 was cancelled yesterday because the card of your company was declined by the bank.", False),
        # Spread over sentences that say it each by chance.
        ("Ask about your order. Nordpost delivers. May comes after April.", False),
        ("The Pro plan costs EUR 29 per seat and month.", False),
        ("I do not know.", False),
        ("It is.", False),
        ("...", False),
        ("", False),
    ],
)
async def test_an_answer_rests_on_a_result_where_a_sentence_says_what_it_says(
    desk: Desk, answer: str, rests: bool
) -> None:
    checked = await desk.checker.check(answer, desk.sources, LOCAL, [ORDER])

    assert checked == CheckedCitations((), 0, rests)


@pytest.mark.parametrize(
    ("results", "rests"),
    [
        ([], False),
        ([""], False),
        (["No such order."], False),
        (["No such order.", ORDER], True),
        ([ORDER, "No such order."], True),
        # Half of a sentence from each is nobody's result.
        (["Order 1007 was shipped", "Nordpost, 3 May"], False),
    ],
)
async def test_one_result_must_hold_what_the_sentence_says(desk: Desk, results: list[str], rests: bool) -> None:
    answer = "Order 1007 and Nordpost and parcel and 3 May and shipped and delivery and van and driver."

    assert (await desk.checker.check(answer, (), LOCAL, results)).rests_on_results is rests


async def test_of_a_long_result_the_beginning_counts(desk: Desk) -> None:
    filler = "filler " * (MOST_RESULT_CHARACTERS // 7)

    async def rests(result: str) -> bool:
        return (await desk.checker.check(PLAIN, (), LOCAL, [result])).rests_on_results

    assert await rests(ORDER + filler)
    assert await rests(filler[: -len(ORDER)] + ORDER)
    assert not await rests(filler + " " + ORDER)


async def test_an_answer_may_have_a_citation_and_rest_on_a_result(desk: Desk) -> None:
    answer = f"{PLAIN} The Pro plan costs EUR 29 per seat and month. [{desk.marker('Pro plan')}]"

    checked = await desk.checker.check(answer, desk.sources, LOCAL, [ORDER])

    assert len(checked.citations) == 1
    assert checked.rests_on_results


async def test_a_result_is_no_source_of_a_marker(desk: Desk) -> None:
    checked = await desk.checker.check(f"{PLAIN} [99]", desk.sources, LOCAL, [ORDER])

    assert checked == CheckedCitations((), 1, rests_on_results=True)


@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=3))
async def test_whatever_the_answer_and_the_results_it_is_judged(answer: str, results: list[str]) -> None:
    checked = await StoredQuoteChecker(Shelf().store, ENCODER).check(answer, (), LOCAL, results)

    assert checked.rests_on_results in {True, False}
    assert results or not checked.rests_on_results
