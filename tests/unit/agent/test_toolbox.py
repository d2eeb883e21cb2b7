"""Who is offered which tools, before any server is there."""

import pytest

from agent_service.errors import StartupError
from agent_service.team.spec import load_roster
from agent_service.team.toolbox import Toolbox
from tests.support.mcp_rosters import FixedSearch, agent_of, mcp, offered, roster, stdio

HTTP = {"name": "test", "url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": "ORDERS_TOKEN"}}
SEARCH = {"name": "find", "builtin": "search"}


def test_an_agent_gets_what_it_names_and_nothing_else() -> None:
    of = roster(SEARCH, {"name": "echo", "function": "tests.unit.agent.test_tool_functions:price"}, has=["find"])

    assert list(offered(Toolbox(of, FixedSearch()), of)) == ["find"]


def test_the_tools_of_a_server_that_is_not_there_yet_are_left_out() -> None:
    of = roster(*mcp("echo"), SEARCH, servers=[stdio()])

    assert list(offered(Toolbox(of, FixedSearch()), of)) == ["find"]


@pytest.mark.parametrize("value", [None, "", "two\nlines", "smörgås"])
def test_a_header_needs_its_variable_at_start(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    of = roster(*mcp("echo"), servers=[HTTP])
    if value is None:
        monkeypatch.delenv("ORDERS_TOKEN", raising=False)
    else:
        monkeypatch.setenv("ORDERS_TOKEN", value)

    with pytest.raises(StartupError, match=r"MCP server 'test'.*ORDERS_TOKEN") as caught:
        Toolbox(of, FixedSearch())

    assert not value or value not in str(caught.value)


def test_a_program_needs_its_variables_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORDERS_KEY", raising=False)

    with pytest.raises(StartupError, match="ORDERS_KEY is not set"):
        Toolbox(roster(*mcp("echo"), servers=[stdio(env=["ORDERS_KEY"])]), FixedSearch())


async def test_nothing_is_started_and_no_secret_needed_for_a_provider_that_calls_no_tools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ORDERS_TOKEN", raising=False)
    of = roster(*mcp("echo"), SEARCH, servers=[HTTP])
    box = Toolbox(of, FixedSearch(), connects=False)

    await box.open()

    assert [tool.name for tool in box.tools_for(agent_of(of))] == ["find"]
    await box.close()


def test_a_server_that_no_agent_needs_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORDERS_TOKEN", raising=False)

    box = Toolbox(roster(*mcp("echo"), SEARCH, servers=[HTTP], has=["find"]), FixedSearch())

    assert box._keepers == {}


async def test_a_box_that_was_never_opened_can_be_closed() -> None:
    await Toolbox(roster(*mcp("echo"), servers=[stdio()]), FixedSearch()).close()


def test_the_shipped_team_has_its_search_without_any_server() -> None:
    shipped = load_roster()
    box = Toolbox(shipped, FixedSearch())

    named = {agent.name: [tool.name for tool in box.tools_for(agent)] for agent in shipped.agents}

    assert named == {
        "orchestrator": [],
        "billing": ["search_documents"],
        "technical": ["search_documents"],
        "policy": [],
    }
