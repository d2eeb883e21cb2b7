"""What a model wrote as arguments: read strictly, and refused in words from which it can do better."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agent_service.team.tool_call import ToolRefusedError

MOST_RULES = 5
"""Broken rules that the model is told of at once."""

MOST_RULE_CHARACTERS = 200

Arguments = TypeVar("Arguments", bound=BaseModel)


def parsed(model: type[Arguments], arguments: str) -> Arguments:
    """Arguments that follow a schema.

    Raises:
        ToolRefusedError: they are no JSON, or break a rule.
    """
    try:
        return model.model_validate_json(arguments or "{}")
    except ValidationError as err:
        rules = [
            f"{'.'.join(map(str, each['loc'])) or 'arguments'}: {each['msg']}"[:MOST_RULE_CHARACTERS]
            for each in err.errors(include_url=False, include_input=False, include_context=False)[:MOST_RULES]
        ]
        raise ToolRefusedError(f"The arguments are wrong; call again with better ones. {'; '.join(rules)}") from None


def an_object(arguments: str) -> dict[str, Any]:
    """Arguments that somebody else holds against their schema.

    Raises:
        ToolRefusedError: they are no JSON object.
    """
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ToolRefusedError("The arguments are wrong; call again with better ones. They must be a JSON object.")
    return value
