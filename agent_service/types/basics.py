"""Names, people, places in a text, and the words for states: what every other type is made of."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

TurnId = NewType("TurnId", str)
RequestId = NewType("RequestId", str)
AgentName = NewType("AgentName", str)
CollectionName = NewType("CollectionName", str)
DocumentId = NewType("DocumentId", str)
PassageId = NewType("PassageId", str)
TermId = NewType("TermId", int)


CHARACTERS_PER_TOKEN = 4
"""A usual estimate for English prose with common tokenisers, for budgets and for what nobody counts."""


class Strategy(StrEnum):
    """How an agent gathers its context."""

    RAG = "rag"
    CAG = "cag"
    HYBRID = "hybrid"


class Role(StrEnum):
    """Who said a message."""

    USER = "user"
    ASSISTANT = "assistant"


class TurnStatus(StrEnum):
    """Where a turn stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class Outcome(StrEnum):
    """Of which kind a completed answer is."""

    ANSWERED = "answered"
    NO_EVIDENCE = "no_evidence"
    REFUSED = "refused"
    TRUNCATED = "truncated"


class OnDisconnect(StrEnum):
    """What becomes of a turn when nobody follows it any more."""

    CANCEL = "cancel"
    DETACH = "detach"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: decides whose turns and which documents are visible."""

    subject: str
    tenant: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """Who may read a document: the whole tenant, or, where groups are named, members of any of them."""

    tenant: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of a text, in code points."""

    start: int
    end: int
