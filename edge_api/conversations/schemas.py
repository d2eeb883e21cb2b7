"""What a conversation consists of, as the service and its repositories pass it on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NewType, TypeAlias

from edge_api.agent_client.events import (
    AgentSelected,
    Completed,
    JsonObject,
    Question,
    Role,
    TokenAdded,
    TurnEvent,
    TurnId,
)
from edge_api.agent_client.signing import Caller
from edge_api.errors import UpstreamError

SessionId = NewType("SessionId", str)
MessageId = NewType("MessageId", str)
Status: TypeAlias = Literal["completed", "stopped", "interrupted", "failed"]
Rating: TypeAlias = Literal["up", "down"]

# Most characters kept of one answer; the agent's own log of a turn is 256 KiB.
MAX_ANSWER_CHARACTERS = 262_144

MAX_TITLE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What a person sent; `session_id` None: a new conversation."""

    session_id: SessionId | None
    content: str
    agent: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remark:
    """A message as far as the next answer needs it."""

    role: Role
    content: str
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """A request to answer the last question of a session again, or an edited `content` in its place."""

    session_id: SessionId
    content: str | None = None
    agent: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A client's name for its request (`Idempotency-Key`); `fingerprint` tells requests under one key apart."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What a turn failed with: the gRPC status and the reason, as in `UpstreamError`."""

    code: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn whose answer is being made.

    Attributes:
        session_id: the conversation.
        message_id: the id that the answer will have; the agent service knows the request by it.
        question_id: the person's message.
        created: whether this message began the session.
        caller: on whose behalf the agent service is asked.
        deadline_at: after this nobody can still be making the answer.
        turn_id: the agent service's name of it, once that is known.
    """

    session_id: SessionId
    message_id: MessageId
    question_id: MessageId
    created: bool
    caller: Caller
    deadline_at: datetime
    turn_id: TurnId | None = None

    @property
    def name(self) -> TurnId:
        """How clients and the agent service call it: a request's id is its turn's, where the agent keeps to that."""
        return self.turn_id or TurnId(self.message_id)


@dataclass(frozen=True, slots=True)
class EndedTurn:
    """A turn whose answer is stored as far as it came.

    Attributes:
        last_sequence: the number of its last event, as far as it is known.
        failure: what a failed one failed with, where that is known.
    """

    session_id: SessionId
    message_id: MessageId
    caller: Caller
    turn_id: TurnId
    status: str
    last_sequence: int
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class AskedNow:
    """A turn that was opened by this request; the agent service is to be asked."""

    turn: OpenTurn
    question: Question


@dataclass(frozen=True, slots=True)
class AskedBefore:
    """The turn that an earlier request with the same key has opened."""

    turn: OpenTurn | EndedTurn


Asked: TypeAlias = AskedNow | AskedBefore
Closed: TypeAlias = Literal["stored", "already", "gone"]
"""What became of an answer: stored now; stored before, by whoever; or its session was emptied, deleted or went on."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as its owner sees it. `usage`: tokens summed over its answers."""

    id: SessionId
    title: str
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime
    turns: int
    usage: Mapping[str, int]
    running_turn_id: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a user thinks of an answer."""

    message_id: MessageId
    rating: Rating
    comment: str
    created_at: datetime


@dataclass(slots=True)
class Draft:
    """An answer as far as it has come."""

    status: Status | str = "interrupted"
    outcome: str | None = None
    agent: str = ""
    strategy: str | None = None
    citations: list[JsonObject] = field(default_factory=list)
    usage: JsonObject = field(default_factory=dict)
    trace: JsonObject = field(default_factory=dict)
    state: bytes | None = None
    turn_id: TurnId | None = None
    last_sequence: int = 0
    failure: Failure | None = None
    _parts: list[str] = field(default_factory=list)
    _characters: int = 0

    @property
    def content(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    def take(self, event: TurnEvent) -> None:
        """Add one step of the turn.

        Raises:
            UpstreamError: the answer is longer than any answer may be.
        """
        self.last_sequence = event.sequence
        if isinstance(event, TokenAdded):
            self.write(event.content)
        elif isinstance(event, AgentSelected):
            self.agent, self.strategy = event.agent, event.strategy
        elif isinstance(event, Completed):
            self.status, self.outcome = event.status, event.outcome
            self.agent, self.strategy = event.agent, event.strategy
            self.citations, self.usage, self.trace = event.citations, event.usage, event.trace
            self.state = event.state

    def write(self, content: str) -> None:
        """Add to the text.

        Raises:
            UpstreamError: the answer is longer than any answer may be.
        """
        self._characters += len(content)
        if self._characters > MAX_ANSWER_CHARACTERS:
            raise UpstreamError("RESOURCE_EXHAUSTED", message="the answer is too long")
        self._parts.append(content)
