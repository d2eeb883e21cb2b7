"""Bodies of the chat endpoints, as they are read and as they are documented."""

import json
from typing import Annotated, Any, Literal, Self, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edge_api.agent_client.schemas import Agent, Citation, Strategy, Trace, Usage

MAX_METADATA_BYTES = 4_096

SessionName = Annotated[str, Field(min_length=1, max_length=128)]
Status: TypeAlias = Literal["completed", "stopped", "interrupted", "failed"]
Outcome: TypeAlias = Literal["answered", "no_evidence", "refused", "truncated"]


class ChatPost(BaseModel):
    """A message of a person."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"message": "What does the Enterprise plan cost?"}]},
    )

    message: str = Field(min_length=1, max_length=8_000, description="The question; not only white space.")
    session_id: SessionName | None = Field(default=None, description="Continue this session. Default: a new one.")
    conversation_id: SessionName | None = Field(default=None, description="Another name for `session_id`.")
    agent: str | None = Field(
        default=None, min_length=1, max_length=64, description="Ask this agent directly. Default: the team decides."
    )
    metadata: dict[str, Any] | None = Field(
        default=None, description="Kept with the message; at most 4 KiB as JSON. Never sent to a model."
    )

    @field_validator("message")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be only white space")
        return value

    @field_validator("metadata")
    @classmethod
    def _is_small(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            size = len(orjson.dumps(value))
            # orjson writes null for infinity and for what is no number; the database would refuse them.
            json.dumps(value, allow_nan=False)
        except (orjson.JSONEncodeError, ValueError, RecursionError) as err:
            raise ValueError(
                "must be plain JSON: valid text, finite numbers of at most 64 bits, not nested too deeply"
            ) from err
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes as JSON")
        return value

    @model_validator(mode="after")
    def _names_one_session(self) -> Self:
        if self.session_id and self.conversation_id and self.session_id != self.conversation_id:
            raise ValueError("session_id and conversation_id are names of the same thing and must be equal")
        return self

    @property
    def session(self) -> str | None:
        """The session by either name."""
        return self.session_id or self.conversation_id


class ChatReply(BaseModel):
    """A whole answer."""

    model_config = ConfigDict(extra="forbid")

    session_id: str
    conversation_id: str
    turn_id: str
    message_id: str
    status: Status
    outcome: Outcome | None
    answer: str
    agent: str
    strategy: Strategy | None
    citations: list[Citation]
    usage: Usage
    trace: Trace


class AgentList(BaseModel):
    """The team, the entry first."""

    agents: list[Agent]
