"""Functions as tools: offered by their signature, given what the model wrote and nothing else."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import pytest
from agents import RunContextWrapper
from pydantic import Field

from agent_service.errors import StartupError
from agent_service.team.tool_call import FAILED, TOO_SLOW, ToolOffer
from agent_service.team.tool_functions import load_function
from agent_service.team.tool_spec import ToolSpec
from agent_service.team.toolbox import Toolbox
from agent_service.types import Caller
from tests.support.mcp_rosters import FixedSearch, Table, offered, roster

HERE = __name__
NUMBER = 7
GATE = threading.Event()
THREADS: list[str] = []


def price(seats: int, plan: Annotated[str, Field(max_length=10)] = "team") -> str:
    """The price of a plan.

    Args:
        seats: How many people use it.
    """
    THREADS.append(threading.current_thread().name)
    return f"{plan}: {seats * 6}"


async def tax(net: float) -> dict[str, float]:
    """Value added tax."""
    await asyncio.sleep(0)
    return {"net": net, "tax": net * 0.25}


def nothing() -> None:
    """Does nothing."""


def broken() -> str:
    """Fails."""
    raise RuntimeError("secret 4711")


def stuck() -> str:
    """Waits until somebody opens the gate."""
    GATE.wait(20)
    return "late"


def wants_caller(caller: Caller, order: str) -> str:
    """Asks who calls."""
    return f"{caller}{order}"


def may_want_caller(order: str, caller: Caller | None = None) -> str:
    """Asks who calls, politely."""
    return f"{caller}{order}"


def wants_run(context: RunContextWrapper[object], order: str) -> str:
    """Asks for the run."""
    return f"{context}{order}"


def anything_goes(**values: str) -> str:
    """Has no schema."""
    return str(values)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def offer(name: str, threads: ThreadPoolExecutor) -> ToolOffer:
    return load_function(ToolSpec(name=name, function=f"{HERE}:{name}"), threads)[0]


async def call(name: str, arguments: str = "{}", table: Table | None = None, **limits: float) -> str:
    of = roster({"name": name, "function": f"{HERE}:{name}", **limits})
    box = Toolbox(of, FixedSearch())
    try:
        return await (table or Table()).call(offered(box, of)[name], arguments)
    finally:
        await box.close()


def test_the_signature_is_the_schema_and_the_docstring_the_description(threads: ThreadPoolExecutor) -> None:
    found = offer("price", threads)

    assert found.description == "The price of a plan."
    assert set(found.schema["properties"]) == {"seats", "plan"}
    assert found.schema["properties"]["seats"]["description"] == "How many people use it."
    assert found.schema["additionalProperties"] is False


async def test_a_function_runs_in_a_thread_of_its_own_kind() -> None:
    assert "team: 18" in await call("price", '{"seats": 3, "plan": "team"}')
    assert THREADS[-1].startswith("tool")


async def test_an_async_function_runs_on_the_loop_and_its_result_is_given_as_json() -> None:
    text = await call("tax", '{"net": 100}')

    assert json.loads(text.split("\n")[3]) == {"net": 100.0, "tax": 25.0}


async def test_no_result_is_an_empty_text() -> None:
    assert '<tool_result name="nothing">\n\n</tool_result>' in await call("nothing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{", "Invalid JSON"),
        ("[]", "arguments"),
        ("{}", "seats: Field required"),
        ('{"seats": "many"}', "seats: Input should be a valid integer"),
        ('{"seats": 1, "plan": "enterprise-plus"}', "plan: String should have at most 10 characters"),
    ],
)
async def test_wrong_arguments_are_explained_and_the_function_is_not_called(arguments: str, said: str) -> None:
    table = Table()
    before = len(THREADS)

    text = await call("price", arguments, table)

    assert "call again" in text
    assert said in text
    assert table.phases[-1][2] == "failed"
    assert len(THREADS) == before


async def test_an_exception_stays_here() -> None:
    assert await call("broken") == FAILED


async def test_a_function_that_does_not_return_is_given_up() -> None:
    GATE.clear()
    try:
        assert await call("stuck", timeout_s=0.01) == TOO_SLOW
    finally:
        GATE.set()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no.such.module:price", "tool 'price'.*no.such.module.*cannot be imported.*ModuleNotFoundError"),
        (f"{HERE}:absent", "cannot be imported.*AttributeError"),
        (f"{HERE}:NUMBER", "is no function"),
        (f"{HERE}:anything_goes", "cannot be offered"),
        (f"{HERE}:wants_caller", "asks for the caller"),
        (f"{HERE}:may_want_caller", "asks for the caller"),
        (f"{HERE}:wants_run", "asks for the caller or the run"),
    ],
)
def test_a_function_that_cannot_be_offered_is_a_start_up_error(function: str, said: str) -> None:
    with pytest.raises(StartupError, match=said):
        Toolbox(roster({"name": "price", "function": function}), FixedSearch(), connects=False)
