"""Functions that the roster names as `package.module:name`."""

import importlib
from collections.abc import Callable
from typing import Any

from agent_service.errors import StartupError


def imported(function: str, whose: str) -> Callable[..., Any]:
    """The function of that name.

    Args:
        function: `package.module:name`.
        whose: what names it, for the error: "tool 'x'".

    Raises:
        StartupError: it cannot be imported, or is no function.
    """
    named = f"AGENT_ROSTER: {whose}: function {function!r}"
    module, _, attribute = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as err:  # a module may fail on import as it likes
        raise StartupError(f"{named} cannot be imported: {type(err).__name__}: {err}") from err
    if not callable(found):
        raise StartupError(f"{named} is no function")
    made: Callable[..., Any] = found
    return made
