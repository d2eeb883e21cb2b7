"""What the runner wants of a model, and how it becomes the bytes of an HTTP body."""

from dataclasses import dataclass
from typing import Any

import msgspec
from agents import ModelSettings
from agents.agent_output import AgentOutputSchemaBase
from agents.handoffs import Handoff
from agents.items import TResponseInputItem
from agents.tool import Tool
from openai import Omit
from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The arguments of `Model.get_response` that an API can be told."""

    instructions: str | None
    input: str | list[TResponseInputItem]
    settings: ModelSettings
    tools: list[Tool]
    output_schema: AgentOutputSchemaBase | None
    handoffs: list[Handoff]


def encode(fields: dict[str, Any]) -> bytes:
    """A body of these fields as JSON, without those that are not given."""
    given = {name: value for name, value in fields.items() if value is not None and not isinstance(value, Omit)}
    return msgspec.json.encode(given, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """SDK objects as JSON has them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return list(value)
