"""Bodies of the chat endpoints, as they are read and as they are documented."""

import json
from typing import Annotated, Any, Literal, Self, TypeAlias

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edge_api.agent_client.schemas import Agent, Citation, Strategy, Trace, Usage

MAX_METADATA_BYTES = 4_096

SessionName = Annotated[str, Field(min_length=1, max_length=128)]
Status: TypeAlias = Literal["completed", "stopped", "interrupted", "failed"]
Outcome: TypeAlias = Literal["answered", "no_evidence", "refused", "truncated"]


def _says_something(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be only white space")
    return value


def _is_small(value: dict[str, Any]) -> dict[str, Any]:
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


Message = Annotated[str, Field(min_length=1, max_length=8_000), AfterValidator(_says_something)]
AgentName = Annotated[str, Field(min_length=1, max_length=64)]
Metadata = Annotated[dict[str, Any], AfterValidator(_is_small)]


class ChatPost(BaseModel):
    """A message of a person."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"message": "What does the Enterprise plan cost?"}]},
    )

    message: Message = Field(description="The question; not only white space.")
    session_id: SessionName | None = Field(default=None, description="Continue this session. Default: a new one.")
    conversation_id: SessionName | None = Field(default=None, description="Another name for `session_id`.")
    agent: AgentName | None = Field(default=None, description="Ask this agent directly. Default: the team decides.")
    metadata: Metadata | None = Field(
        default=None, description="Kept with the message; at most 4 KiB as JSON. Never sent to a model."
    )

    @model_validator(mode="after")
    def _names_one_session(self) -> Self:
        if self.session_id and self.conversation_id and self.session_id != self.conversation_id:
            raise ValueError("session_id and conversation_id are names of the same thing and must be equal")
        return self

    @property
    def session(self) -> str | None:
        """The session by either name."""
        return self.session_id or self.conversation_id


class AgainPost(BaseModel):
    """Asks for another answer to the last message."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    message: Message | None = Field(default=None, description="In the place of the last message. Default: that one.")
    agent: AgentName | None = Field(default=None, description="Ask this agent directly. Default: the team decides.")
    metadata: Metadata | None = Field(default=None, description="Kept with an edited message.")


class StopReply(BaseModel):
    """How a turn has ended that was to be stopped."""

    model_config = ConfigDict(extra="forbid")

    session_id: str
    conversation_id: str
    turn_id: str
    message_id: str
    status: Status = Field(description="`stopped`; another one where it had ended before.")
    usage: Usage | None = Field(description="Tokens used, as far as they are known.")
    abort_ms: float = Field(ge=0, description="What the abort took. Milliseconds; 0 where it had ended before.")


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
