"""Checks of messages and answers: what passes, what is refused, and that whatever breaks refuses."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent_service.errors import StartupError
from agent_service.team import guardrails
from agent_service.team.guardrails import Guardrails
from agent_service.team.tool_spec import GuardrailSpec

GUARD_S = 10.0
TEXT = "My secret is 4711."
CATASTROPHIC = "(a|aa)+$"
"""Takes longer than anybody waits where many a's have something behind them. `(a+)+$` is known to the library."""

blocked = threading.Event()
"""What `hangs_in_its_thread` waits for."""


# --- functions that the rosters of these tests name ---


def says_yes(text: str) -> bool:
    return True


def says_no(text: str) -> bool:
    return False


def says_nothing(text: str) -> None:
    return None


def says_one(text: str) -> int:
    return 1


def says_a_word(text: str) -> str:
    return "no"


def raises(text: str) -> bool:
    raise RuntimeError(f"cannot judge {text}")


def exits(text: str) -> bool:
    raise TimeoutError(text)


def is_polite(text: str) -> bool:
    return "please" in text


async def says_yes_later(text: str) -> bool:
    await asyncio.sleep(0)
    return True


async def says_no_later(text: str) -> bool:
    return False


async def says_nothing_later(text: str) -> None: ...


async def raises_later(text: str) -> bool:
    raise RuntimeError(text)


async def hangs(text: str) -> bool:
    await asyncio.Event().wait()
    return True


def hangs_in_its_thread(text: str) -> bool:
    return blocked.wait(GUARD_S)


class Judge:
    """Callable, and what it gives back is to be awaited."""

    def __call__(self, text: str) -> Any:
        return says_yes_later(text)


judge = Judge()
no_function = "a text"


@pytest.fixture
def unblocked() -> Iterator[None]:
    """A thread that hangs is let go at the end."""
    blocked.clear()
    yield
    blocked.set()


def spec(**rule: Any) -> GuardrailSpec:
    return GuardrailSpec.model_validate({"name": "house", "on": "input", "message": "No.", **rule})


def function(name: str, **changes: Any) -> GuardrailSpec:
    return spec(function=f"{__name__}:{name}", **changes)


async def refusal(*specs: GuardrailSpec, text: str = TEXT) -> str | None:
    return await asyncio.wait_for(Guardrails(specs).check(text), GUARD_S)


# --- each kind ---


@pytest.mark.parametrize(
    ("rule", "text", "passes"),
    [
        ({"max_characters": 3}, "abc", True),
        ({"max_characters": 3}, "abcd", False),
        ({"max_characters": 3}, "", True),
        ({"max_characters": 1}, "\U0001f600", True),
        ({"pattern": r"\b\d{4}\b"}, "My code is 4711.", False),
        ({"pattern": r"\b\d{4}\b"}, "My code is 47110.", True),
        ({"pattern": "(?i)secret"}, "A SECRET", False),
        ({"pattern": "^b"}, "a\nb", True),
        ({"pattern": "(?m)^b"}, "a\nb", False),
        ({"pattern": r"\p{Han}"}, "次", False),
        ({"pattern": "x"}, "", True),
        ({"pattern": ""}, "", False),
    ],
)
async def test_a_text_is_refused_where_it_is_too_long_or_a_pattern_is_in_it(
    rule: dict[str, object], text: str, passes: bool
) -> None:
    assert await refusal(spec(**rule), text=text) == (None if passes else "No.")


@pytest.mark.parametrize("name", ["says_yes", "says_yes_later", "judge"])
async def test_a_function_that_says_true_lets_through(name: str) -> None:
    assert await refusal(function(name)) is None


@pytest.mark.parametrize(
    "name",
    [
        *("says_no", "says_nothing", "says_one", "says_a_word", "raises", "exits"),
        *("says_no_later", "says_nothing_later", "raises_later"),
    ],
)
async def test_a_function_that_says_anything_but_true_or_breaks_refuses(name: str) -> None:
    assert await refusal(function(name)) == "No."


async def test_a_function_is_given_the_text() -> None:
    assert await refusal(function("is_polite"), text="Help, please.") is None
    assert await refusal(function("is_polite"), text="Help.") == "No."


async def test_nothing_to_check_lets_everything_through() -> None:
    empty = Guardrails(())

    assert not empty.needed
    assert await empty.check(TEXT) is None
    assert Guardrails([spec(max_characters=1)]).needed


# --- several ---


async def test_the_first_that_fails_says_what_is_told() -> None:
    specs = [
        spec(max_characters=1_000, message="Too long."),
        spec(pattern="4711", message="No codes."),
        spec(pattern="secret", message="No secrets."),
    ]

    assert await refusal(*specs) == "No codes."
    assert await refusal(*reversed(specs)) == "No secrets."


async def test_what_stands_behind_the_first_that_fails_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    assert await refusal(spec(max_characters=1, message="Too long."), function("raises")) == "Too long."

    assert "failed" not in caplog.text


async def test_a_text_passes_that_passes_them_all() -> None:
    assert await refusal(spec(max_characters=100), spec(pattern="x{3}"), function("says_yes_later")) is None


async def test_the_usual_message_is_told_where_the_roster_gives_none() -> None:
    plain = GuardrailSpec.model_validate({"name": "house", "on": "input", "max_characters": 1})

    assert await refusal(plain) == "I cannot help with that."


# --- too slow ---


async def test_a_pattern_that_takes_too_long_refuses_and_the_service_goes_on_meanwhile() -> None:
    slow = spec(pattern=CATASTROPHIC, timeout_s=0.2)
    turns = 0

    async def goes_on() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(goes_on())
    told = await refusal(slow, text="a" * 60 + "b")
    others.cancel()

    assert told == "No."
    assert turns > 100


async def test_a_pattern_that_is_fast_for_this_text_judges_it() -> None:
    assert await refusal(spec(pattern=CATASTROPHIC, timeout_s=5.0), text="b") is None
    assert await refusal(spec(pattern=CATASTROPHIC, timeout_s=5.0), text="baa") == "No."


async def test_a_function_that_hangs_refuses() -> None:
    assert await refusal(function("hangs", timeout_s=0.01)) == "No."


@pytest.mark.usefixtures("unblocked")
async def test_a_function_that_hangs_in_its_thread_refuses() -> None:
    assert await refusal(function("hangs_in_its_thread", timeout_s=0.01)) == "No."
    # The loop waits for its threads when it closes, before the fixture ends.
    blocked.set()


async def test_a_pattern_whose_thread_does_not_come_back_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardrails, "THREAD_MARGIN_S", 0.0)

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "to_thread", never)

    assert await refusal(spec(pattern="x", timeout_s=0.01)) == "No."


async def test_who_is_cancelled_is_not_told_a_refusal() -> None:
    task = asyncio.create_task(Guardrails([function("hangs", timeout_s=60)]).check(TEXT))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, GUARD_S)


# --- at start ---


@pytest.mark.parametrize(
    "named", ["no.such.module:check", f"{__name__}:no_such_function", f"{__name__}:no_function"], ids=["a", "b", "c"]
)
def test_a_function_that_cannot_be_had_is_a_start_up_error_that_names_the_guardrail(named: str) -> None:
    with pytest.raises(StartupError, match=f"AGENT_ROSTER: guardrail 'house': function '{named}'"):
        Guardrails([spec(function=named)])


# --- the log ---


@pytest.mark.parametrize(
    "rule",
    [
        *({"max_characters": 1}, {"pattern": "4711"}, {"pattern": CATASTROPHIC, "timeout_s": 0.01}),
        *({"function": f"{__name__}:{name}"} for name in ("says_no", "raises", "raises_later", "exits")),
    ],
    ids=str,
)
async def test_the_log_names_the_guardrail_and_holds_nothing_of_the_text(
    rule: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = f"{TEXT} {'a' * 60}b"

    assert await refusal(spec(**rule), text=text) == "No."

    ours = [record for record in caplog.records if record.name == guardrails.__name__]
    assert {record.__dict__["guardrail"] for record in ours} == {"house"}
    logged = caplog.text + " ".join(str(record.__dict__) for record in caplog.records)
    assert "4711" not in logged.replace(str(rule.get("pattern")), "")
    assert "secret" not in logged


async def test_what_breaks_is_logged_with_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    await refusal(function("raises"))

    (record,) = caplog.records
    assert (record.levelname, record.__dict__["kind"]) == ("WARNING", "RuntimeError")


async def test_a_text_that_passes_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=guardrails.__name__)

    await refusal(function("says_yes"))

    assert [record for record in caplog.records if record.name == guardrails.__name__] == []
