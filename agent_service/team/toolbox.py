"""The tools of the team: which agent may call which, and which of them can be called now."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agents import Tool

from agent_service.ports import Vitals
from agent_service.team.desk import TurnDesk
from agent_service.team.mcp_servers import McpKeeper, description_of, schema_of
from agent_service.team.spec import AgentSpec, Roster
from agent_service.team.tool_call import ToolBody, ToolCalls, ToolOffer, ToolText
from agent_service.team.tool_functions import load_function
from agent_service.team.tool_search import OFFER, PassageSearch, search_tool
from agent_service.team.tool_spec import ToolSpec

MOST_THREADS = 8
"""Functions that run at once without being `async`; further ones wait, within their time limit."""


class Toolbox:
    """Makes the tools of each agent, and keeps the connections to the servers that some of them come from."""

    def __init__(
        self, roster: Roster, search: PassageSearch, vitals: Vitals | None = None, *, connects: bool = True
    ) -> None:
        """`connects`: whether servers are started at all; a provider that calls no tools needs none.

        Raises:
            StartupError: a function cannot be imported, or a variable that a server needs is missing.
        """
        self._roster = roster
        self._search = search
        self._calls = ToolCalls()
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="tool")
        self._listeners: list[Callable[[], None]] = []
        self._functions = {tool.name: load_function(tool, self._threads) for tool in roster.tools if tool.function}
        self._keepers = _keepers(roster, self._tell, vitals) if connects else {}

    def tools_for(self, spec: AgentSpec) -> list[Tool]:
        """What an agent may call and can be called now, in the roster's order."""
        tools: list[Tool] = []
        for tool in self._roster.tools_of(spec):
            made = self._made(tool, spec)
            if made is not None:
                tools.append(self._calls.tool(tool, *made))
        return tools

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have a listener called whenever `tools_for` would give something else than before."""
        self._listeners.append(listener)

    async def open(self) -> None:
        """Begin to connect to the servers. Waits for none of them."""
        for keeper in self._keepers.values():
            keeper.start()

    async def close(self) -> None:
        """Stop the servers that were started, all at once. A function that still runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for closed in [asyncio.create_task(keeper.close()) for keeper in self._keepers.values()]:
            await closed

    def _made(self, tool: ToolSpec, agent: AgentSpec) -> tuple[ToolOffer, ToolBody] | None:
        if tool.builtin == "search":
            return OFFER, search_tool(self._search, agent, tool)
        if tool.function:
            return self._functions[tool.name]
        keeper = self._keepers.get(tool.mcp_server or "")
        listed = keeper.tools.get(tool.name) if keeper else None
        if keeper is None or listed is None:
            return None
        offer = ToolOffer(description_of(listed), schema_of(listed), strict=False)
        return offer, functools.partial(_call_server, keeper, tool.name)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _keepers(roster: Roster, changed: Callable[[], None], vitals: Vitals | None) -> dict[str, McpKeeper]:
    """One for each server with a tool that an agent may call."""
    used = {name for agent in roster.agents for name in agent.tools}
    wanted: dict[str, list[str]] = {}
    for tool in roster.tools:
        if tool.mcp_server and tool.name in used:
            wanted.setdefault(tool.mcp_server, []).append(tool.name)
    return {
        server.name: McpKeeper(server, wanted[server.name], changed, vitals)
        for server in roster.mcp_servers
        if server.name in wanted
    }


async def _call_server(keeper: McpKeeper, name: str, desk: TurnDesk, arguments: str) -> ToolText:  # noqa: ARG001
    """A server is given nothing of the turn: the desk stays here."""
    return await keeper.call(name, arguments)
