"""Rosters with tools, and what a tool call needs around it: a real desk, and who calls the tool as the SDK would."""

from collections.abc import Sequence
from typing import Any

from agents import FunctionTool
from agents.tool_context import ToolContext

from agent_service.team.desk import TurnDesk
from agent_service.team.spec import AgentSpec, Roster
from agent_service.team.toolbox import Toolbox
from agent_service.types import AgentName, CollectionName, Context, Question, ScoredPassage, Strategy, Tool
from tests.support.answerers import REQUEST
from tests.support.briefings import ListEvents, source

BILLING = AgentName("billing")
CONTEXT = Context(Strategy.RAG, (source(1, "Forty."),))


def stdio(name: str = "test", module: str = "tests.support.mcp_program", **changes: Any) -> dict[str, Any]:
    """The tests' server as a program."""
    return {"name": name, "command": ["{python}", "-m", module], **changes}


def roster(*tools: dict[str, Any], servers: Sequence[dict[str, Any]] = (), has: Sequence[str] | None = None) -> Roster:
    """A team of one with these tools. `has`: those that it may call; all of them unless said."""
    return Roster.model_validate(
        {
            "entry": "billing",
            "tools": tools,
            "mcp_servers": servers,
            "agents": [
                {
                    "name": "billing",
                    "description": "Money.",
                    "instructions": "billing.md",
                    "collections": ["billing", "shared"],
                    "strategy": "rag",
                    "tools": [tool["name"] for tool in tools] if has is None else has,
                }
            ],
        }
    )


def mcp(*names: str, server: str = "test", **limits: Any) -> list[dict[str, Any]]:
    """Tools of a server."""
    return [{"name": name, "mcp_server": server, **limits} for name in names]


def agent_of(roster: Roster) -> AgentSpec:
    """Its one agent."""
    return roster.agents[0]


class FixedSearch:
    """Finds the same for every question, or fails."""

    def __init__(self, *hits: ScoredPassage, failure: Exception | None = None) -> None:
        self.hits = hits
        self.asked: list[tuple[Question, Sequence[CollectionName], int]] = []
        self._failure = failure

    async def search(self, question: Question, collections: Sequence[CollectionName], limit: int) -> "FixedSearch":
        self.asked.append((question, collections, limit))
        if self._failure is not None:
            raise self._failure
        return self


class ListVitals:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bool]] = []

    def tell(self, part: str, member: str, *, ok: bool) -> None:
        self.told.append((part, member, ok))

    @property
    def last(self) -> tuple[str, str, bool] | None:
        return self.told[-1] if self.told else None


class Table:
    """A turn at which tools are called."""

    def __init__(self) -> None:
        self.events = ListEvents()
        self.desk = TurnDesk(REQUEST, self.events)
        self.desk.take_over(BILLING, CONTEXT)

    async def call(self, tool: FunctionTool, arguments: str = "{}", call_id: str = "c1") -> str:
        """What the model reads."""
        context = ToolContext(self.desk, tool_name=tool.name, tool_call_id=call_id, tool_arguments=arguments)
        result = await tool.on_invoke_tool(context, arguments)
        assert isinstance(result, str)
        return result

    @property
    def phases(self) -> list[tuple[str, str, str]]:
        return [(each.name, each.call_id, str(each.phase)) for each in self.events.events if isinstance(each, Tool)]


def offered(box: Toolbox, of: Roster) -> dict[str, FunctionTool]:
    """What the one agent is offered, by name."""
    tools = box.tools_for(agent_of(of))
    assert all(isinstance(tool, FunctionTool) for tool in tools)
    return {tool.name: tool for tool in tools if isinstance(tool, FunctionTool)}
