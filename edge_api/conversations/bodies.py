"""Bodies of the session endpoints, as they are read and as they are documented."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from edge_api.agent_client.schemas import Citation, Strategy, Trace, Usage
from edge_api.conversations.repository.messages import ReadMessage
from edge_api.conversations.schemas import MAX_TITLE_CHARACTERS, Rating, SessionInfo, Verdict

MAX_COMMENT_CHARACTERS = 2_000


class SessionBody(BaseModel):
    """A session's state."""

    model_config = ConfigDict(extra="forbid")

    session_id: str
    conversation_id: str = Field(description="Another name for `session_id`.")
    title: str
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime = Field(description="When it is gone unless it is used before.")
    turns: int = Field(description="Answers so far, also partial ones.")
    tokens_used: int = Field(description="All tokens of all answers.")
    usage: Usage = Field(description="The same by kind.")
    running_turn_id: str | None = Field(description="The turn that is being answered.")


class SessionList(BaseModel):
    """A page of sessions, the most recently active first."""

    model_config = ConfigDict(extra="forbid")

    sessions: list[SessionBody]
    next_cursor: str | None = Field(description="Asks for the next page; null: this was the last.")


class FeedbackBody(BaseModel):
    """What the owner thinks of an answer."""

    model_config = ConfigDict(extra="forbid")

    message_id: str
    rating: Rating
    comment: str
    created_at: datetime


class AlternativeBody(BaseModel):
    """A message in whose place another one has come."""

    model_config = ConfigDict(extra="forbid")

    id: str
    role: Literal["user", "assistant"]
    content: str
    status: Literal["completed", "stopped", "interrupted", "failed"]
    outcome: Literal["answered", "no_evidence", "refused", "truncated"] | None = Field(
        description="Of completed answers."
    )
    agent: str | None = Field(description="Of answers.")
    strategy: Strategy | None
    citations: list[Citation]
    usage: Usage | None = Field(description="Of answers, where it is known.")
    trace: Trace | None = Field(description="Likewise.")
    metadata: dict[str, Any] = Field(description="What the client sent with it.")
    feedback: FeedbackBody | None
    created_at: datetime


class MessageBody(AlternativeBody):
    """A stored message."""

    alternatives: list[AlternativeBody] = Field(
        description="What was said in its place before: the newest 20, oldest first."
    )


class MessageList(BaseModel):
    """A page of messages."""

    model_config = ConfigDict(extra="forbid")

    messages: list[MessageBody]
    next_cursor: str | None = Field(description="Asks for the next page; null: this was the last.")


class Rename(BaseModel):
    """A session's new title."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=1, max_length=MAX_TITLE_CHARACTERS)

    @field_validator("title")
    @classmethod
    def _is_one_line(cls, value: str) -> str:
        title = " ".join(value.split())
        if not title:
            raise ValueError("must not be only white space")
        return title


class Rate(BaseModel):
    """Thumbs and a comment."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rating": "up", "comment": "Clear."}]})

    rating: Rating
    comment: str = Field(default="", max_length=MAX_COMMENT_CHARACTERS)


def session_body(session: SessionInfo) -> dict[str, Any]:
    """A session as its owner is shown it."""
    return {
        "session_id": session.id,
        "conversation_id": session.id,
        "title": session.title,
        "created_at": session.created_at,
        "last_active_at": session.last_active_at,
        "expires_at": session.expires_at,
        "turns": session.turns,
        "tokens_used": session.usage["total_tokens"],
        "usage": session.usage,
        "running_turn_id": session.running_turn_id,
    }


def message_body(message: ReadMessage) -> dict[str, Any]:
    """A message as its owner is shown it."""
    return _body(message) | {"alternatives": [_body(each) for each in message.alternatives]}


def feedback_body(verdict: Verdict) -> dict[str, Any]:
    """Feedback as its author is shown it."""
    return {
        "message_id": verdict.message_id,
        "rating": verdict.rating,
        "comment": verdict.comment,
        "created_at": verdict.created_at,
    }


def _body(message: ReadMessage) -> dict[str, Any]:
    row = message.row
    return {
        "id": row.id,
        "role": row.role,
        "content": row.content,
        "status": row.status,
        "outcome": row.outcome,
        "agent": row.agent or None,
        "strategy": row.strategy,
        "citations": row.citations,
        "usage": row.usage or None,
        "trace": row.trace or None,
        "metadata": row.details,
        "feedback": feedback_body(message.verdict) if message.verdict else None,
        "created_at": row.created_at,
    }
