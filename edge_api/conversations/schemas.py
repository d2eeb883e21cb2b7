"""What a conversation consists of, as the service and its repositories pass it on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NewType, TypeAlias

from edge_api.agent_client.events import AgentSelected, Completed, JsonObject, Role, TokenAdded, TurnEvent, TurnId
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
class OpenTurn:
    """A turn that was opened: the person's message is stored, the answer is not.

    Attributes:
        session_id: the conversation.
        message_id: the id that the answer will have; it also names the turn here, before the agent has named it.
        question_id: the person's message.
        created: whether this message began the session.
        before: the newest stored messages before this one, oldest first.
        state: what the last answer left for this one.
    """

    session_id: SessionId
    message_id: MessageId
    question_id: MessageId
    created: bool
    before: Sequence[Remark]
    state: bytes


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
        if isinstance(event, TokenAdded):
            self._characters += len(event.content)
            if self._characters > MAX_ANSWER_CHARACTERS:
                raise UpstreamError("RESOURCE_EXHAUSTED", message="the answer is too long")
            self._parts.append(event.content)
        elif isinstance(event, AgentSelected):
            self.agent, self.strategy = event.agent, event.strategy
        elif isinstance(event, Completed):
            self.status, self.outcome = event.status, event.outcome
            self.agent, self.strategy = event.agent, event.strategy
            self.citations, self.usage, self.trace = event.citations, event.usage, event.trace
            self.state = event.state
