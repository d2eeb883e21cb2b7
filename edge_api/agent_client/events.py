"""The words in which the agent service is spoken to and answers, as plain Python.

What a browser sees of an answer (sources, citations, usage, trace) is kept as the JSON object that it becomes.
"""

from dataclasses import dataclass
from typing import Any, Literal, NewType, TypeAlias

TurnId = NewType("TurnId", str)
JsonObject: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["user", "assistant"]
Health: TypeAlias = Literal["ok", "not_serving", "unreachable", "timeout"]


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the conversation so far; `content` has 1 to 32,000 characters."""

    role: Role
    content: str
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A message with all of its context.

    Attributes:
        request_id: names the turn, so that sending it again would start nothing new.
        history: oldest first, without `message`; at most 200 messages and 256,000 characters.
        agent: ask this one; empty: the service chooses.
        state: what the previous turn's `Completed` gave, unchanged; empty: a new conversation.
    """

    request_id: str
    message: str
    history: tuple[Said, ...] = ()
    agent: str = ""
    state: bytes = b""


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to store in the caller's tenant.

    Attributes:
        uri: with the collection it names the document: the same again is a new version of it.
        title: empty: made from the text or the URI.
        text: Markdown or plain text.
        groups: only their members may read it; empty: the whole tenant.
    """

    uri: str
    collection: str
    title: str
    text: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The turn exists."""

    sequence: int
    turn_id: TurnId


@dataclass(frozen=True, slots=True)
class AgentSelected:
    """Who answers; `strategy` is "rag", "cag", "hybrid" or None."""

    sequence: int
    agent: str
    strategy: str | None


@dataclass(frozen=True, slots=True)
class SourcesOffered:
    """The numbered passages offered to the model."""

    sequence: int
    sources: list[JsonObject]


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A tool call began, ended or failed; `phase` is "started", "completed", "failed" or None."""

    sequence: int
    name: str
    call_id: str
    phase: str | None


@dataclass(frozen=True, slots=True)
class TokenAdded:
    """Text to append."""

    sequence: int
    content: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a turn that did not fail; `state` goes with the next message, unchanged."""

    sequence: int
    status: str
    outcome: str | None
    agent: str
    strategy: str | None
    citations: list[JsonObject]
    usage: JsonObject
    trace: JsonObject
    state: bytes


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a turn has ended that was to be stopped; `abort_ms` is 0 where it had ended before."""

    status: str
    usage: JsonObject
    abort_ms: float


TurnEvent: TypeAlias = Started | AgentSelected | SourcesOffered | ToolCalled | TokenAdded | Completed
