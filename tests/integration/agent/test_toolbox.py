"""Tools as the SDK's runner calls them, for a model that is scripted and a server that is real."""

import asyncio
import json

import pytest
from agents import Agent, RunConfig, Runner
from agents.exceptions import ModelBehaviorError
from agents.testing import ScriptedModel, assistant_message, function_call

from agent_service.team.desk import TurnDesk
from agent_service.team.spec import Roster
from agent_service.team.toolbox import Toolbox
from agent_service.types import ScoredPassage
from tests.support.briefings import passage
from tests.support.mcp_http import http_mcp_server
from tests.support.mcp_rosters import FixedSearch, Table, agent_of, mcp, roster, stdio

WAIT_S = 20.0
HIT = ScoredPassage(passage("Ten seats.", name="seats"), 1.0)


async def opened(of: Roster) -> Toolbox:
    box = Toolbox(of, FixedSearch(HIT))
    arrived = asyncio.Event()
    box.on_change(arrived.set)
    await box.open()
    if of.mcp_servers:
        await asyncio.wait_for(arrived.wait(), WAIT_S)
    return box


async def run(box: Toolbox, of: Roster, model: ScriptedModel, table: Table) -> str:
    agent = Agent[TurnDesk](name="billing", model=model, tools=box.tools_for(agent_of(of)))
    config = RunConfig(tracing_disabled=True)
    result = await Runner.run(agent, "Where is my order?", context=table.desk, run_config=config)
    return str(result.final_output)


def outputs(model: ScriptedModel) -> list[str]:
    """What the model read of its calls, in their order."""
    assert model.last_call is not None
    items = model.last_call.input
    assert not isinstance(items, str)
    return [str(item["output"]) for item in items if item.get("type") == "function_call_output"]


async def test_a_model_calls_a_server_a_search_and_tries_again_in_one_turn() -> None:
    of = roster(*mcp("echo"), {"name": "find", "builtin": "search"}, servers=[stdio()])
    table = Table()
    model = ScriptedModel(
        [
            [
                function_call("echo", '{"text": "it is paid"}', call_id="c1"),
                function_call("find", '{"query": "seats"}', call_id="c2"),
                function_call("echo", '{"text": ', call_id="c3"),
            ],
            [function_call("echo", '{"text": "better"}', call_id="c4")],
            [assistant_message("It is paid, for ten seats. [2]")],
        ]
    )
    box = await opened(of)
    try:
        assert await run(box, of, model, table) == "It is paid, for ten seats. [2]"
    finally:
        await box.close()

    paid, found, wrong, better = outputs(model)
    assert "<tool_result" in paid
    assert "it is paid" in paid
    assert '<source number="2"' in found
    assert "call again" in wrong
    assert "better" in better
    ends = {call_id: phase for _, call_id, phase in table.phases}
    assert ends == {"c1": "completed", "c2": "completed", "c3": "failed", "c4": "completed"}
    assert sorted(table.desk.results) == ["better", "it is paid"]


async def test_a_tool_beyond_the_list_is_neither_offered_nor_callable() -> None:
    of = roster(*mcp("echo"), servers=[stdio()])
    model = ScriptedModel([[function_call("wipe", "{}", call_id="c1")]])
    table = Table()
    box = await opened(of)
    try:
        with pytest.raises(ModelBehaviorError, match="wipe"):
            await run(box, of, model, table)
    finally:
        await box.close()

    assert model.last_call is not None
    assert [tool.name for tool in model.last_call.tools] == ["echo"]
    assert table.phases == []


async def test_a_turn_that_is_cancelled_ends_its_call_at_the_server() -> None:
    async with http_mcp_server() as http:
        of = roster(*mcp("wait"), servers=[{"name": "test", "url": http.url}])
        table = Table()
        box = await opened(of)
        try:
            task = asyncio.create_task(
                run(box, of, ScriptedModel([[function_call("wait", "{}", call_id="c1")]]), table)
            )
            await asyncio.wait_for(http.seen.until(lambda seen: seen.started == 1), WAIT_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            await asyncio.wait_for(http.seen.until(lambda seen: seen.cancelled == 1), WAIT_S)
        finally:
            await box.close()

    assert [phase for *_, phase in table.phases] == ["started"]


async def test_many_calls_of_one_answer_are_bounded() -> None:
    of = roster({"name": "find", "builtin": "search"})
    calls = [function_call("find", json.dumps({"query": f"q{n}"}), call_id=f"c{n}") for n in range(30)]
    model = ScriptedModel([calls, [assistant_message("Enough.")]])
    table = Table()

    await run(await opened(of), of, model, table)

    assert len([text for text in outputs(model) if text.startswith("No more tool calls")]) == 14
    assert len(table.phases) == 32
