"""The values that the parts of the service pass to each other. Plain data; no behaviour beyond derived properties.

Texts are counted in Unicode code points, times in seconds unless a name says `_ms`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

TurnId = NewType("TurnId", str)
RequestId = NewType("RequestId", str)
AgentName = NewType("AgentName", str)
CollectionName = NewType("CollectionName", str)
DocumentId = NewType("DocumentId", str)
PassageId = NewType("PassageId", str)
TermId = NewType("TermId", int)


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


# --- documents ---


@dataclass(frozen=True, slots=True)
class Sentence:
    """The smallest piece of a document that is quoted: a sentence, a list item, a table row or a code block.

    `span` counts in the document's text; the words there are the quote. `text` is the same made readable on its
    own: without markup, and a table row with its column names.
    """

    span: Span
    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document under one heading; `text` is exactly the document's text at `span`.

    The passages of a document tile it: each begins where the one before ends.
    """

    id: PassageId
    document_id: DocumentId
    version: str
    collection: CollectionName
    title: str
    uri: str
    heading: str
    ordinal: int
    span: Span
    text: str
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Term weights: parallel sequences, ids ascending and unique, weights above 0."""

    indices: tuple[TermId, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IndexedPassage:
    """A passage with what it is found by. `dense`: (d,) float32, L2-normalised, where the store has dense vectors."""

    passage: Passage
    sparse: SparseVector
    dense: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What is known of a stored document, without its text."""

    id: DocumentId
    version: str
    title: str
    uri: str
    collection: CollectionName
    access: Access
    characters: int
    passages: int
    ingested_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document with its text, in which all its spans count."""

    info: DocumentInfo
    text: str


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document as handed in for ingestion. Empty `title`: taken from the text or the URI."""

    uri: str
    collection: CollectionName
    title: str
    text: str
    access: Access


class IngestStatus(StrEnum):
    """What became of a document handed in."""

    CREATED = "created"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Ingested:
    """A document that is durable and searchable as a whole."""

    status: IngestStatus
    document: DocumentInfo


# --- retrieval ---


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search in the store. `collections` empty: all. `limit`: 1 to 100."""

    terms: tuple[TermId, ...]
    caller: Caller
    collections: tuple[CollectionName, ...] = ()
    limit: int = 8
    dense: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A search hit. `score`: larger is better, at least 0, comparable only within one search."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class TermStatistics:
    """In how many passages of a scope each term occurs.

    `frequencies` has an entry for every term asked for, 0 included; none exceeds `passages`.
    """

    passages: int
    frequencies: Mapping[TermId, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A passage offered to the model under a number, from 1; under CAG a whole document."""

    marker: int
    passage: Passage
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class CachedPassage:
    """A passage kept in context from one turn to the next."""

    document_id: DocumentId
    version: str
    passage_id: PassageId


@dataclass(frozen=True, slots=True)
class Question:
    """What retrieval is asked: the message, the user's message before it (may be empty), and who asks."""

    text: str
    previous: str
    caller: Caller


@dataclass(frozen=True, slots=True)
class Context:
    """What an agent may answer from.

    `sources` are in the order of their markers. `stable`: they belong into the prompt's stable prefix (CAG).
    `considered`: what retrieval looked at, best first. `support`: 0 to 1, larger is better.
    """

    strategy: Strategy
    sources: tuple[Source, ...]
    considered: tuple[ScoredPassage, ...] = ()
    cached: tuple[CachedPassage, ...] = ()
    stable: bool = False
    cache_hit: bool = False
    support: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SupportedSentence:
    """A sentence of a source that bears on the question. `score`: 0 to 1, larger is better."""

    source: Source
    sentence: Sentence
    score: float


@dataclass(frozen=True, slots=True)
class Citation:
    """A statement of the answer and the words of a document that support it."""

    marker: int
    answer_span: Span
    passage: Passage
    heading: str
    source_span: Span
    quote: str


@dataclass(frozen=True, slots=True)
class CheckedCitations:
    """Citations in the order of the answer's text, and the number of markers that earned none."""

    citations: tuple[Citation, ...]
    dropped: int


# --- turns ---


@dataclass(frozen=True, slots=True)
class State:
    """What must last from turn to turn."""

    agent: AgentName | None = None
    cached: tuple[CachedPassage, ...] = ()


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One question with all of its context, validated. `grace_s` counts only with DETACH."""

    request_id: RequestId
    message: str
    caller: Caller
    history: tuple[Message, ...] = ()
    agent: AgentName | None = None
    state: State = State()
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    grace_s: float = 30.0
    max_output_tokens: int | None = None

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
    """One stage of a turn: "retrieval", "model" or "citations"."""

    name: str
    duration_ms: float
    agent: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """How an answer came about."""

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
class AgentInfo:
    """A member of the team, as callers see it."""

    name: AgentName
    description: str
    strategy: Strategy | None
    model: str
    collections: Sequence[CollectionName] = field(default=())
    entry: bool = False
