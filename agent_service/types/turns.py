"""A question with its context, the events of its turn, and what a turn leaves behind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent_service.types.basics import (
    AgentName,
    Caller,
    CollectionName,
    Message,
    OnDisconnect,
    Outcome,
    RequestId,
    Role,
    Strategy,
    TurnId,
    TurnStatus,
)
from agent_service.types.retrieval import CachedPassage, Citation, ScoredPassage, Source


@dataclass(frozen=True, slots=True)
class State:
    """What must last from turn to turn."""

    agent: AgentName | None = None
    cached: tuple[CachedPassage, ...] = ()


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One question with all of its context, validated.

    Attributes:
        grace_s: how long it runs on without a follower; counts only with DETACH.
        deadline: when its time is up, of `time.monotonic()`; the host sets it.
    """

    request_id: RequestId
    message: str
    caller: Caller
    history: tuple[Message, ...] = ()
    agent: AgentName | None = None
    state: State = State()
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    grace_s: float = 30.0
    max_output_tokens: int | None = None
    deadline: float = math.inf

    @property
    def previous_user_message(self) -> str:
        """The user's message before this one; empty in a new conversation."""
        return next((m.content for m in reversed(self.history) if m.role is Role.USER), "")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used, summed over model calls; `input_tokens` include the cached ones."""

    requests: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a turn: "retrieval", "model", "tool" or "citations"."""

    name: str
    duration_ms: float
    agent: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """How an answer came about.

    Attributes:
        model: who wrote the answer; not the agent's own model where a fallback stood in. Empty: no model did.
        retries: model requests that failed and were made again, at the same model or a fallback.
        removed_links: links and images that led elsewhere than to the documents, and were taken out of the answer.
    """

    agent: AgentName
    strategy: Strategy | None
    reason: str = ""
    considered: tuple[ScoredPassage, ...] = ()
    used: tuple[int, ...] = ()
    cache_hit: bool = False
    stages: tuple[Stage, ...] = ()
    dropped_markers: int = 0
    agents: tuple[AgentName, ...] = ()
    support: float = 0.0
    model: str = ""
    retries: int = 0
    removed_links: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The turn exists."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class AgentSelected:
    """Who answers."""

    agent: AgentName
    strategy: Strategy | None


@dataclass(frozen=True, slots=True)
class Sources:
    """The passages offered to the model."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer, never empty."""

    content: str


class ToolPhase(StrEnum):
    """How far a tool call has come."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool call began or ended."""

    name: str
    call_id: str
    phase: ToolPhase


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a turn that did not fail. `outcome` is None unless the status is COMPLETED."""

    status: TurnStatus
    outcome: Outcome | None
    agent: AgentName
    strategy: Strategy | None
    citations: tuple[Citation, ...] = ()
    usage: Usage = Usage()
    trace: Trace | None = None
    state: State = State()


Event = Started | AgentSelected | Sources | Token | Tool | Completed


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """An event of a turn's log. `sequence` counts from 1, without gaps."""

    turn_id: TurnId
    sequence: int
    event: Event


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event of a turn that runs on another replica: `payload` is the protocol's message, serialised."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StoppedTurn:
    """How a turn has ended. `abort_ms`: from the request to stop it to its end; 0 where it had ended before."""

    status: TurnStatus
    usage: Usage
    abort_ms: float
    last_sequence: int


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """A member of the team, as callers see it."""

    name: AgentName
    description: str
    strategy: Strategy | None
    model: str
    collections: Sequence[CollectionName] = field(default=())
    entry: bool = False
