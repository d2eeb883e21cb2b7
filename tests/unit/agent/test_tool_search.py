"""Search as a tool: the agent's collections, the caller's documents, the desk's numbers."""

import pytest

from agent_service.errors import RetrievalUnavailableError
from agent_service.team.prompt import fence
from agent_service.team.toolbox import Toolbox
from agent_service.types import Question, ScoredPassage, Sources
from tests.support.answerers import CALLER
from tests.support.briefings import passage
from tests.support.mcp_rosters import CONTEXT, FixedSearch, Table, offered, roster

KNOWN = ScoredPassage(CONTEXT.sources[0].passage, 2.0)
NEW = ScoredPassage(passage("Ten seats.", title="Seats", heading="Limits", name="seats"), 1.0)


async def search(with_: FixedSearch, table: Table, arguments: str = '{"query": "seats"}', **limits: int) -> str:
    of = roster({"name": "find", "builtin": "search", **limits})
    return await table.call(offered(Toolbox(of, with_), of)["find"], arguments)


async def test_the_agents_collections_are_searched_as_the_turns_caller() -> None:
    finding = FixedSearch(NEW)

    await search(finding, Table(), '{"query": "  how many seats "}')

    assert finding.asked == [(Question("how many seats", "", CALLER), ("billing", "shared"), 5)]


async def test_what_is_found_is_numbered_on_the_desk_and_read_as_the_prompt_has_it() -> None:
    table = Table()

    text = await search(FixedSearch(NEW, KNOWN), table)

    known, new = table.desk.sources
    assert (known.marker, new.marker, new.passage) == (1, 2, NEW.passage)
    assert text == fence((new, known))
    assert [len(event.sources) for event in table.events.events if isinstance(event, Sources)] == [1, 2]
    assert [phase for *_, phase in table.phases] == ["started", "completed"]


async def test_what_is_found_is_cited_and_not_kept_as_a_result() -> None:
    table = Table()

    await search(FixedSearch(NEW), table)

    assert table.desk.results == []


async def test_nothing_found_is_said() -> None:
    assert "no source was found" in await search(FixedSearch(), Table())


async def test_passages_are_left_out_whole_where_they_are_too_many() -> None:
    table = Table()
    second = ScoredPassage(passage("Twenty seats.", name="more"), 0.5)

    text = await search(FixedSearch(NEW, second), table, max_characters=100)

    assert "Ten seats." in text
    assert "Twenty" not in text
    assert len(table.desk.sources) == 2


async def test_one_passage_is_shown_however_long() -> None:
    assert "Ten seats." in await search(FixedSearch(NEW), Table(), max_characters=1)


async def test_a_failed_search_is_told_to_the_model() -> None:
    table = Table()

    text = await search(FixedSearch(failure=RetrievalUnavailableError("qdrant at 10.0.0.1 is away")), table)

    assert text == "The search failed."
    assert table.phases[-1][2] == "failed"


@pytest.mark.parametrize("arguments", ["{}", '{"query": " "}', '{"query": "x", "tenant": "other"}', "nonsense"])
async def test_wrong_arguments_search_nothing(arguments: str) -> None:
    finding = FixedSearch(NEW)

    assert "arguments are wrong" in await search(finding, Table(), arguments)
    assert finding.asked == []


async def test_a_query_has_a_length() -> None:
    long = '{"query": "%s"}' % ("x" * 1001)

    assert "at most 1000 characters" in await search(FixedSearch(NEW), Table(), long)
