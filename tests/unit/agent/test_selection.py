import pytest

from agent_service.errors import RetrievalUnavailableError
from agent_service.retrieval.selection import SentenceRanker
from agent_service.types import Question, Source, SupportedSentence
from tests.support.shelf import ENCODER, Shelf, ask

PLANS = """\
# Plans and prices

Every plan can be cancelled at the end of a month.

## Enterprise

The Enterprise plan costs EUR 1,200 a month. It includes a dedicated manager.

## Basic

The Basic plan costs EUR 9 a month. Support for it answers by e-mail on working days.
"""
INVOICES = """\
# Invoices

Invoices are sent by e-mail on the first day of each month. An invoice can be paid by bank transfer or by card.
Paid invoices are kept for ten years in the archive.
"""
UNRELATED = """\
# Office

The office is closed on public holidays. The canteen opens at noon.
"""


class Table:
    """Sources on the table and the ranker."""

    def __init__(self, shelf: Shelf, sources: tuple[Source, ...]) -> None:
        self.shelf = shelf
        self.sources = sources
        self.ranker = SentenceRanker(shelf.support, ENCODER)

    async def select(self, question: Question | str, *, limit: int = 3) -> list[SupportedSentence]:
        asked = ask(question) if isinstance(question, str) else question
        return list(await self.ranker.select(asked, self.sources, limit=limit))

    async def texts(self, question: Question | str, *, limit: int = 3) -> list[str]:
        return [each.sentence.text for each in await self.select(question, limit=limit)]


async def laid(*texts: str) -> Table:
    shelf = Shelf()
    infos = [await shelf.put(f"{number}.md", text) for number, text in enumerate(texts)]
    return Table(shelf, await shelf.sources(*infos))


@pytest.fixture
async def table() -> Table:
    return await laid(PLANS, INVOICES, UNRELATED)


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("What does the Enterprise plan cost?", "The Enterprise plan costs EUR 1,200 a month."),
        ("What does the Basic plan cost?", "The Basic plan costs EUR 9 a month."),
        ("When are invoices sent?", "Invoices are sent by e-mail on the first day of each month."),
        ("Can I pay an invoice by bank transfer?", "An invoice can be paid by bank transfer or by card."),
        ("When does the canteen open?", "The canteen opens at noon."),
    ],
)
async def test_the_best_sentence_comes_first(table: Table, question: str, best: str) -> None:
    assert (await table.texts(question))[0] == best


async def test_a_sentence_comes_with_its_source_and_its_place_in_the_document(table: Table) -> None:
    (chosen, *_) = await table.select("What does the Enterprise plan cost?")

    start, end = chosen.sentence.span.start, chosen.sentence.span.end
    assert PLANS[start:end] == "The Enterprise plan costs EUR 1,200 a month."
    assert chosen.source in table.sources
    assert chosen.sentence in chosen.source.passage.sentences


@pytest.mark.parametrize(
    "question",
    [
        "What does the Enterprise plan cost?",
        "Enterprise Enterprise plan costs EUR 1,200 a month",
        "When are invoices sent by e-mail on the first day of each month?",
        "Which plan costs how much a month?",
    ],
)
async def test_scores_are_between_zero_and_one(table: Table, question: str) -> None:
    scores = [each.score for each in await table.select(question)]

    assert scores
    assert all(0 < score <= 1 for score in scores)


@pytest.mark.parametrize("question", ["plan costs a month", "invoices paid by e-mail", "Which plan costs how much?"])
async def test_the_first_scores_best(table: Table, question: str) -> None:
    scores = [each.score for each in await table.select(question)]

    assert scores[0] == max(scores)


async def test_a_sentence_with_a_figure_is_preferred_where_one_is_asked_for() -> None:
    table = await laid(
        "# Storage\n\nThe storage limit of a workspace is set by its plan.\n\n"
        "The storage limit of a workspace is 500 by plan.\n"
    )

    assert (await table.texts("What is the storage limit of a workspace by plan?", limit=1)) == [
        "The storage limit of a workspace is 500 by plan."
    ]


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_no_more_sentences_than_the_limit_are_chosen(table: Table, limit: int) -> None:
    assert 1 <= len(await table.select("Which plan costs how much a month?", limit=limit)) <= limit


async def test_what_was_said_already_is_not_said_again() -> None:
    table = await laid(
        "# Refunds\n\nRefunds are paid within 14 days to your card.\n",
        "# Money back\n\nRefunds are paid within 14 days to your card.\n",
        "# Returns\n\nRefunds are always paid within 14 days to your card.\n",
    )

    assert len(await table.select("When are refunds paid to my card?")) == 1


async def test_further_sentences_add_something_and_stand_in_the_documents_order() -> None:
    table = await laid(
        "# Export\n\nThe export button writes a CSV file. An export of all projects runs at night. "
        "Large exports can be downloaded as an archive. Export links expire soon.\n"
    )

    chosen = await table.select("How does the export work?")

    others = [(each.source.marker, each.sentence.span.start) for each in chosen[1:]]
    assert others == sorted(others)
    assert len({each.sentence.span for each in chosen}) == len(chosen)


@pytest.mark.parametrize(
    "question", ["Who won the 1998 World Cup?", "zeppelin", "Which zeppelins flew over Lisbon in autumn?", "\U0001f600"]
)
async def test_nothing_is_chosen_where_support_is_weak(table: Table, question: str) -> None:
    assert await table.select(question) == []


@pytest.mark.parametrize("question", ["And?", "the of and", "?!"])
async def test_nothing_is_chosen_for_a_question_of_stop_words_only(table: Table, question: str) -> None:
    assert await table.select(question) == []


async def test_a_question_of_stop_words_only_asks_what_the_message_before_it_asked(table: Table) -> None:
    question = ask("And?", previous="What does the Enterprise plan cost?")

    assert (await table.texts(question))[0] == "The Enterprise plan costs EUR 1,200 a month."


async def test_nothing_is_chosen_without_sources(table: Table) -> None:
    table.sources = ()

    assert await table.select("What does the Enterprise plan cost?") == []


async def test_a_heading_speaks_for_the_sentences_under_it() -> None:
    table = await laid("# Support\n\n## Gold\n\nWe answer within one hour.\n\n## Silver\n\nWe answer within one day.\n")

    assert (await table.texts("How fast do you answer for Silver support?"))[0] == "We answer within one day."


async def test_a_document_that_the_caller_may_not_read_does_not_change_the_choice(table: Table) -> None:
    question = "What does the Enterprise plan cost?"
    before = await table.select(question)

    await table.shelf.put("x.md", "Enterprise plan costs. " * 30, tenant="umbrella")

    assert await table.select(question) == before


async def test_the_choice_is_the_same_every_time(table: Table) -> None:
    question = "Which plan costs how much a month?"

    assert [await table.select(question) for _ in range(3)] == [await table.select(question)] * 3


async def test_a_store_that_is_away_fails_the_choice(table: Table) -> None:
    table.shelf.store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await table.select("What does the Enterprise plan cost?")
