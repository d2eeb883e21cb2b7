"""Checks of messages and answers that the roster declares. What fails one is refused: an outcome, and no error.

They fail closed: a check that breaks, or takes too long, refuses.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import regex

from agent_service.team.importing import imported
from agent_service.team.tool_spec import GuardrailSpec

log = logging.getLogger(__name__)

Rule = Callable[[str], Awaitable[bool]]
"""Whether a text passes. Raises what it likes."""

THREAD_MARGIN_S = 1.0
"""How much longer than a pattern's own time limit its thread is waited for."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One check, ready to use."""

    spec: GuardrailSpec
    passes: Rule


class Guardrails:
    """Some checks, in their order."""

    def __init__(self, specs: Sequence[GuardrailSpec]) -> None:
        """Make them ready.

        Raises:
            StartupError: a function cannot be imported.
        """
        self._guardrails = [Guardrail(spec, _rule(spec)) for spec in specs]

    @property
    def needed(self) -> bool:
        """Whether there is anything to check."""
        return bool(self._guardrails)

    async def check(self, text: str) -> str | None:
        """What to say in place of a text that fails: the message of the first check that it fails. None: it passes."""
        for guardrail in self._guardrails:
            if not await _passes(guardrail, text):
                return guardrail.spec.message
        return None


async def _passes(guardrail: Guardrail, text: str) -> bool:
    spec = guardrail.spec
    try:
        async with asyncio.timeout(spec.timeout_s + THREAD_MARGIN_S):
            passes = await guardrail.passes(text)
    except Exception as err:  # noqa: BLE001 - a check may fail as it likes; the text is then not let through
        log.warning("a guardrail failed, and refuses", extra={"guardrail": spec.name, "kind": type(err).__qualname__})
        return False
    if not passes:
        log.info("a guardrail refuses", extra={"guardrail": spec.name})
    return passes


def _rule(spec: GuardrailSpec) -> Rule:
    if spec.pattern is not None:
        return partial(_has_none_of, regex.compile(spec.pattern), spec.timeout_s)
    if spec.function is not None:
        function = imported(spec.function, f"guardrail {spec.name!r}")
        return partial(_lets_through, function, spec.timeout_s)
    return partial(_is_no_longer_than, spec.max_characters or 0)


async def _is_no_longer_than(most: int, text: str) -> bool:
    return len(text) <= most


async def _has_none_of(pattern: "regex.Pattern[str]", timeout_s: float, text: str) -> bool:
    """Whether a pattern is nowhere in a text. In a thread and without the interpreter's lock, within its time limit.

    Raises:
        TimeoutError: the pattern takes too long for this text.
    """
    return await asyncio.to_thread(pattern.search, text, timeout=timeout_s, concurrent=True) is None


async def _lets_through(function: Callable[[str], object], timeout_s: float, text: str) -> bool:
    async with asyncio.timeout(timeout_s):
        if inspect.iscoroutinefunction(function):
            answer = await function(text)
        else:
            answer = await asyncio.to_thread(function, text)
            if inspect.isawaitable(answer):
                answer = await answer
    # Anything but True refuses: a function that forgets to answer must not let everything through.
    return answer is True
