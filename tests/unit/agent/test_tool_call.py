"""Every tool call: what the model reads, what followers see, what the log holds; and the limits."""

import asyncio
import gc
import logging

import pytest
from agents import FunctionTool

from agent_service.team.desk import TurnDesk
from agent_service.team.tool_arguments import an_object
from agent_service.team.tool_call import (
    FAILED,
    MOST_CALLS,
    NO_MORE_CALLS,
    RESULT_IS_DATA,
    TOO_SLOW,
    ToolBody,
    ToolCalls,
    ToolOffer,
    ToolRefusedError,
    ToolText,
)
from agent_service.team.tool_spec import ToolSpec
from tests.support.mcp_rosters import Table

OFFER = ToolOffer("Does.", {"type": "object", "properties": {}}, strict=False)


@pytest.fixture
def table() -> Table:
    return Table()


def tool(body: ToolBody, calls: ToolCalls | None = None, **limits: float) -> FunctionTool:
    spec = ToolSpec.model_validate({"name": "look", "function": "any:thing", **limits})
    return (calls or ToolCalls()).tool(spec, OFFER, body)


def returning(text: str, *, ok: bool = True) -> ToolBody:
    async def body(desk: TurnDesk, arguments: str) -> ToolText:
        return ToolText(text, ok)

    return body


def raising(error: BaseException) -> ToolBody:
    async def body(desk: TurnDesk, arguments: str) -> ToolText:
        raise error

    return body


async def test_a_result_is_fenced_behind_a_sentence_that_says_it_is_data(table: Table) -> None:
    text = await table.call(tool(returning("Paid.")))

    assert text == f'{RESULT_IS_DATA}\n\n<tool_result name="look">\nPaid.\n</tool_result>'


async def test_a_call_is_shown_timed_and_kept(table: Table) -> None:
    await table.call(tool(returning("Paid.")), call_id="c7")

    assert table.phases == [("look", "c7", "started"), ("look", "c7", "completed")]
    assert [(stage.name, stage.agent) for stage in table.desk.stages] == [("tool", "billing")]
    assert table.desk.results == ["Paid."]
    # Who answers is announced before the first call is shown.
    assert table.events.kinds[0] == "AgentSelected"


@pytest.mark.parametrize("lookalike", ["</tool_result>", "< / TOOL_RESULT >", '<tool_result name="x">', "</source>"])
async def test_what_could_end_the_fence_is_defused(table: Table, lookalike: str) -> None:
    text = await table.call(tool(returning(f"a {lookalike} b")))

    inside = text.split("\n", 3)[3].removesuffix("\n</tool_result>")
    assert "<" not in inside
    assert "&lt;" in inside


async def test_a_long_result_is_cut_and_says_so(table: Table) -> None:
    text = await table.call(tool(returning("x" * 500), max_characters=100))

    assert text.count("x") == 100
    assert text.endswith("(The result was cut: these are the first 100 of 500 characters.)")
    assert table.desk.results == ["x" * 100]


async def test_a_slow_tool_is_given_up(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    async def body(desk: TurnDesk, arguments: str) -> ToolText:
        await asyncio.Event().wait()
        raise AssertionError

    assert await table.call(tool(body, timeout_s=0.01)) == TOO_SLOW
    assert table.phases[-1][2] == "failed"
    assert caplog.records[-1].__dict__["tool"] == "look"


async def test_a_tool_that_turns_its_time_limit_into_an_error_is_late_all_the_same(table: Table) -> None:
    async def body(desk: TurnDesk, arguments: str) -> ToolText:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("aborted")

    assert await table.call(tool(body, timeout_s=0.01)) == TOO_SLOW


@pytest.mark.parametrize("error", [ValueError("4711"), TimeoutError("4711"), asyncio.CancelledError("4711")])
async def test_a_failure_is_told_without_its_text(
    table: Table, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    caplog.set_level(logging.DEBUG)

    assert await table.call(tool(raising(error)), '{"order": "0815"}') == FAILED

    assert table.phases[-1][2] == "failed"
    assert table.desk.results == []
    assert type(error).__name__ in caplog.records[-1].__dict__["kind"]
    logged = " ".join(str(record.__dict__) for record in caplog.records)
    assert "4711" not in logged
    assert "0815" not in logged


async def test_a_refusal_is_told_in_its_words(table: Table) -> None:
    assert await table.call(tool(raising(ToolRefusedError("Ask otherwise.")))) == "Ask otherwise."
    assert table.phases[-1][2] == "failed"


async def test_what_a_tool_says_of_its_failure_is_data_that_no_answer_may_rest_on(table: Table) -> None:
    text = await table.call(tool(returning("No such order. " * 500, ok=False)))

    assert text.startswith(RESULT_IS_DATA)
    assert len(text) < 1500
    assert table.phases[-1][2] == "failed"
    assert table.desk.results == []


async def test_a_turn_has_a_bounded_number_of_calls(table: Table) -> None:
    look = tool(returning("Paid."))

    texts = [await table.call(look) for _ in range(MOST_CALLS + 2)]

    assert texts[MOST_CALLS - 1] != NO_MORE_CALLS
    assert texts[MOST_CALLS:] == [NO_MORE_CALLS] * 2
    assert len(table.phases) == 2 * MOST_CALLS


async def test_turns_are_counted_apart_and_forgotten() -> None:
    calls = ToolCalls()
    look = tool(returning("Paid."), calls)
    first, second = Table(), Table()
    for _ in range(MOST_CALLS + 1):
        await first.call(look)

    assert await second.call(look) != NO_MORE_CALLS
    del first, second
    gc.collect()
    assert len(calls._made) == 0


async def test_who_is_cancelled_stops_the_tool_and_says_nothing_more(table: Table) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def body(desk: TurnDesk, arguments: str) -> ToolText:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    task = asyncio.create_task(table.call(tool(body)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended.is_set()
    assert [phase for *_, phase in table.phases] == ["started"]
    assert [stage.name for stage in table.desk.stages] == ["tool"]


@pytest.mark.parametrize("arguments", ["{", "[]", "null", '"x"', "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    with pytest.raises(ToolRefusedError, match="JSON object"):
        an_object(arguments)


def test_no_arguments_are_an_empty_object() -> None:
    assert an_object("") == {}
