"""What is searched for, what is found, and what an answer may rest on."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent_service.types.basics import Caller, CollectionName, DocumentId, PassageId, Span, Strategy, TermId
from agent_service.types.documents import Passage, Sentence


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
    """Citations in the order of the answer's text, and the number of markers that earned none.

    `rests_on_results`: some statement of the answer is what a tool has returned.
    """

    citations: tuple[Citation, ...]
    dropped: int
    rests_on_results: bool = False
