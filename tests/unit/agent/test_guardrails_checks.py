"""Checks that the roster declares: what passes, what is refused, and that they fail closed."""

import asyncio
import logging
import threading
from typing import Any

import pytest

from agent_service.errors import StartupError
from agent_service.team.guardrails import Guardrails
from agent_service.team.tool_spec import GuardrailSpec

HERE = "tests.unit.agent.test_guardrails_checks"
SECRET = "the vault code is QK4711ZW"
GUARD_S = 10.0

released = threading.Event()


def is_polite(text: str) -> bool:
    return "please" in text


async def is_polite_later(text: str) -> bool:
    await asyncio.sleep(0)
    return "please" in text


def forgets(_: str) -> None:
    return None


def breaks(text: str) -> bool:
    raise ValueError(text)


def blocks(_: str) -> bool:
    return released.wait(GUARD_S)


async def waits(_: str) -> bool:
    return await asyncio.Event().wait()


def guardrail(name: str = "check", **rule: Any) -> GuardrailSpec:
    if "function" in rule:
        rule["function"] = f"{HERE}:{rule['function']}"
    return GuardrailSpec.model_validate({"name": name, "on": "input", "message": f"No: {name}.", **rule})


async def check(text: str, *specs: GuardrailSpec) -> str | None:
    return await asyncio.wait_for(Guardrails(specs).check(text), GUARD_S)


async def test_without_checks_everything_passes() -> None:
    assert not Guardrails(()).needed
    assert await check("anything") is None


async def test_checks_are_needed_where_there_are_some() -> None:
    assert Guardrails([guardrail(max_characters=1)]).needed


@pytest.mark.parametrize(("text", "passes"), [("", True), ("abc", True), ("abcd", False), ("\U0001f600" * 3, True)])
async def test_a_text_may_be_as_long_as_it_says(text: str, passes: bool) -> None:
    assert (await check(text, guardrail(max_characters=3)) is None) == passes


@pytest.mark.parametrize(("text", "passes"), [("all well", True), ("my card 4111-1111", False), ("x4111", False)])
async def test_a_text_with_the_pattern_anywhere_is_refused(text: str, passes: bool) -> None:
    assert (await check(text, guardrail(pattern=r"4\d{3}")) is None) == passes


@pytest.mark.parametrize("function", ["is_polite", "is_polite_later"])
async def test_a_function_decides_in_a_thread_or_on_the_loop(function: str) -> None:
    assert await check("please", guardrail(function=function)) is None
    assert await check("now", guardrail(function=function)) == "No: check."


async def test_the_first_that_fails_is_heard() -> None:
    specs = (
        guardrail("long", max_characters=100),
        guardrail("rude", pattern="now"),
        guardrail("short", max_characters=1),
    )

    assert await check("do it now", *specs) == "No: rude."


@pytest.mark.parametrize("function", ["breaks", "forgets"])
async def test_a_check_that_breaks_or_says_nothing_refuses(function: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert await check(SECRET, guardrail(function=function)) == "No: check."

    assert [record.__dict__.get("guardrail") for record in caplog.records] == ["check"]
    assert SECRET not in caplog.text
    assert SECRET not in str([record.__dict__ for record in caplog.records])


async def test_a_function_that_never_ends_refuses_after_its_time() -> None:
    assert await check("x", guardrail(function="waits", timeout_s=0.05)) == "No: check."


async def test_a_thread_that_never_ends_refuses_after_its_time_and_holds_nobody_up() -> None:
    try:
        assert await check("x", guardrail(function="blocks", timeout_s=0.05)) == "No: check."
    finally:
        released.set()


async def test_a_pattern_that_never_ends_refuses_after_its_time_and_the_loop_runs_on() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    try:
        refused = await check("a" * 40 + "!", guardrail(pattern=r"^(a|a)*(a|aa)+$", timeout_s=0.3))
    finally:
        ticking.cancel()

    assert refused == "No: check."
    # A loop that was held up would have ticked once or twice.
    assert ticks >= 5


@pytest.mark.parametrize("function", ["no.such.module:f", f"{HERE}:no_such_function", f"{HERE}:SECRET"])
def test_a_function_that_is_not_there_is_a_start_up_error_that_names_the_guardrail(function: str) -> None:
    spec = GuardrailSpec.model_validate({"name": "polite", "on": "output", "function": function})

    with pytest.raises(StartupError, match="polite"):
        Guardrails([spec])
