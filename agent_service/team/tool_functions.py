"""Tools that are Python functions of whoever runs the service: `function = "package.module:name"` in the roster."""

import asyncio
import contextvars
import functools
import inspect
import json
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, get_args, get_type_hints

from agents import RunContextWrapper
from agents.function_schema import FuncSchema, function_schema
from agents.tool_context import ToolContext
from pydantic_core import to_jsonable_python

from agent_service.errors import StartupError
from agent_service.team.desk import TurnDesk
from agent_service.team.importing import imported
from agent_service.team.tool_arguments import parsed
from agent_service.team.tool_call import ToolBody, ToolOffer, ToolText
from agent_service.team.tool_spec import ToolSpec
from agent_service.types import Caller, TurnRequest

NOT_GIVEN = (Caller, TurnDesk, TurnRequest, RunContextWrapper, ToolContext)
"""What a function may not ask for: it is given what the model wrote, and nothing of the caller or the turn."""


def load_function(spec: ToolSpec, threads: Executor) -> tuple[ToolOffer, ToolBody]:
    """A function as a tool. Its signature is the schema, its docstring the description.

    Args:
        spec: a tool with a `function`.
        threads: where functions run that are not `async`. One that never returns keeps its thread.

    Raises:
        StartupError: it cannot be imported, or its signature cannot be offered.
    """
    named = f"AGENT_ROSTER: tool {spec.name!r}: function {spec.function!r}"
    function = imported(spec.function or "", f"tool {spec.name!r}")
    try:
        schema = function_schema(function, name_override=spec.name)
        hints = [hint for name, hint in get_type_hints(function).items() if name != "return"]
    except Exception as err:  # the SDK, pydantic and typing each raise their own
        raise StartupError(f"{named} cannot be offered to a model: {err}") from err
    if schema.takes_context or any(part in NOT_GIVEN for hint in hints for part in (hint, *get_args(hint))):
        raise StartupError(f"{named} asks for the caller or the run, which functions are not given")
    offer = ToolOffer(schema.description or spec.name, schema.params_json_schema, strict=schema.strict_json_schema)
    return offer, functools.partial(_call, function, schema, threads)


async def _call(
    function: Callable[..., Any],
    schema: FuncSchema,
    threads: Executor,
    desk: TurnDesk,  # noqa: ARG001 - functions are given nothing of the turn
    arguments: str,
) -> ToolText:
    positional, named = schema.to_call_args(parsed(schema.params_pydantic_model, arguments))
    call = functools.partial(function, *positional, **named)
    if inspect.iscoroutinefunction(function):
        result = await call()
    else:
        copied = contextvars.copy_context()
        result = await asyncio.get_running_loop().run_in_executor(threads, copied.run, call)
        if inspect.isawaitable(result):
            result = await result
    return ToolText(_text(result))


def _text(result: object) -> str:
    if result is None:
        return ""
    if isinstance(result, str):
        return result
    return json.dumps(to_jsonable_python(result, fallback=str), ensure_ascii=False)
