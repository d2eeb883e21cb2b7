"""The roles that the parts of the service play for each other. `wiring` says who plays them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from agent_service.errors import ReplayedError
from agent_service.types import (
    AgentName,
    CachedPassage,
    Caller,
    CheckedCitations,
    CollectionName,
    Context,
    DocumentId,
    DocumentInfo,
    Event,
    IndexedPassage,
    Outcome,
    Passage,
    PassageId,
    Question,
    ScoredPassage,
    SearchQuery,
    Source,
    SparseVector,
    StoredDocument,
    SupportedSentence,
    TermId,
    TermStatistics,
    Trace,
    TurnEvent,
    TurnRequest,
    Usage,
)


class TermEncoder(Protocol):
    """Turns text into terms: the one place that knows tokenisation, stemming and stop words."""

    def terms(self, text: str) -> tuple[TermId, ...]:
        """The distinct terms of a text, ascending; empty where it holds stop words only."""
        ...

    def weigh(self, text: str) -> SparseVector:
        """The BM25 document vector of a text: term frequency with saturation and length normalisation."""
        ...


class VectorStore(Protocol):
    """Documents, whole and in passages, and the search over them.

    Every read but `exists` and `collections` takes the caller; the filter is inside the query. A document that the
    caller may not read is not there. Implementations answer to `tests/contract/test_vector_store.py`.

    Raises:
        RetrievalUnavailableError: the store did not answer in time, or failed. Any method.
    """

    async def put(self, document: StoredDocument, passages: Sequence[IndexedPassage]) -> None:
        """Store a version of a document with all its passages, and drop every other version of it.

        When it returns, the version is durable and searchable as a whole. A crash before leaves the older version
        or the new one, whole, never a mixture that a later search could show.
        """
        ...

    async def delete(self, document_id: DocumentId, caller: Caller) -> int | None:
        """Delete a document whole. Returns the number of its passages; None where the caller sees no such one."""
        ...

    async def info(self, document_id: DocumentId, caller: Caller) -> DocumentInfo | None:
        """What is known of a document; None where the caller sees no such one."""
        ...

    async def exists(self, document_id: DocumentId) -> bool:
        """Whether there is such a document, whoever may read it: for deciding about writes, never to be told."""
        ...

    async def document(self, document_id: DocumentId, caller: Caller) -> StoredDocument | None:
        """A document with its text; None where the caller sees no such one."""
        ...

    async def page(
        self,
        caller: Caller,
        *,
        collections: Sequence[CollectionName] = (),
        after: DocumentId | None = None,
        limit: int = 50,
    ) -> list[DocumentInfo]:
        """Documents in ascending order of their ids, those after `after`; at most `limit`. No collections: all."""
        ...

    async def passages(self, ids: Sequence[PassageId], caller: Caller) -> list[Passage]:
        """Passages by id, in the order of `ids`; those that are gone or not for the caller are left out."""
        ...

    async def passages_of(self, document_id: DocumentId, caller: Caller) -> list[Passage]:
        """All passages of a document, in its order; empty where the caller sees no such document."""
        ...

    async def search(self, query: SearchQuery) -> list[ScoredPassage]:
        """Best first, ties by passage id; at most `query.limit`; only passages that share a term with the query.

        Scores are BM25 with the IDF of the whole store, or DBSF-fused where `query.dense` is given (then passages
        without a common term may be found, too).
        """
        ...

    async def term_statistics(
        self, terms: Sequence[TermId], caller: Caller, collections: Sequence[CollectionName] = ()
    ) -> TermStatistics:
        """Counts passages, and those with each term, among what the caller may read in these collections."""
        ...

    async def collections(self) -> Mapping[CollectionName, int]:
        """The collections that hold documents, of every tenant, with the number of their documents."""
        ...

    async def close(self) -> None:
        """Release files, locks and connections. Idempotent."""
        ...


class ContextStrategy(Protocol):
    """One way to gather context: RAG, CAG or hybrid."""

    async def gather(
        self, question: Question, collections: Sequence[CollectionName], cached: Sequence[CachedPassage]
    ) -> Context:
        """What an agent with these collections may answer this question from.

        Args:
            question: the question.
            collections: the agent's collections, at least one.
            cached: what the conversation's state keeps in context for this agent.

        Raises:
            CollectionNotReadyError: nothing was ingested yet into any of the collections.
            RetrievalUnavailableError: the store failed.
        """
        ...


class EvidenceRouter(Protocol):
    """Says which agent's documents bear on a question."""

    async def route(self, question: Question, current: AgentName) -> AgentName | None:
        """The specialist whose documents and description support the question best; None where none does.

        Args:
            question: what is asked.
            current: who holds the turn. A specialist keeps it unless another has clearly better support.

        Raises:
            CollectionNotReadyError: nothing was ingested yet for any specialist.
            RetrievalUnavailableError: the store failed.
        """
        ...


class SentenceSelector(Protocol):
    """Finds the sentences that answer a question."""

    async def select(self, question: Question, sources: Sequence[Source], *, limit: int) -> Sequence[SupportedSentence]:
        """At most `limit` sentences, best first; empty where the sources do not support an answer."""
        ...


class CitationChecker(Protocol):
    """Turns the markers of an answer into citations whose quotes stand in the stored documents."""

    async def check(
        self, answer: str, sources: Sequence[Source], caller: Caller, results: Sequence[str] = ()
    ) -> CheckedCitations:
        """A citation for every marker whose source exists and holds words that support the statement before it.

        Args:
            answer: the text, with its markers.
            sources: what was offered.
            caller: who must be able to read what is cited.
            results: texts that tools have returned, on which an answer may rest without a marker.
        """
        ...


class Briefing(Protocol):
    """What lies on the table while a model works at a turn. The team keeps it current; models only read it."""

    @property
    def question(self) -> Question:
        """What is asked."""
        ...

    @property
    def agent(self) -> AgentName:
        """Whose model call this is."""
        ...

    @property
    def sources(self) -> tuple[Source, ...]:
        """What that agent may answer from, as its prompt shows it; empty for an agent without documents."""
        ...

    @property
    def max_output_tokens(self) -> int | None:
        """Most tokens that the caller allows this model call; None: the agent's own limit holds."""
        ...

    @property
    def deadline(self) -> float:
        """When the turn's time is up, of `time.monotonic()`; infinity: never."""
        ...


class TokenSink(Protocol):
    """Takes the text of an answer as the model writes it."""

    def write(self, text: str) -> None:
        """Append text to the answer. Never blocks."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """The model says that its text is not an ordinary answer: it is TRUNCATED, or REFUSED."""
        ...

    def asked(self, model: str, *, retries: int) -> None:
        """Say who answered the model call that ends.

        Args:
            model: its name; not the one that was wanted where a fallback stood in.
            retries: requests that failed before, at this model and at others.
        """
        ...


class Vitals(Protocol):
    """Takes note of how things are that the service can do without for a while."""

    def tell(self, part: str, member: str, *, ok: bool) -> None:
        """Note how a member of a part is.

        Args:
            part: "model" or "tools"; it is well while all its members are.
            member: a model's or an MCP server's name.
            ok: whether it works.
        """
        ...


class EventSink(Protocol):
    """Takes the events of a turn, in order."""

    def emit(self, event: Event) -> None:
        """Append an event to the turn's log. Never blocks."""
        ...

    def cut(self, usage: Usage, trace: Trace | None) -> None:
        """Leave behind what is known of an answer that will not be completed: it is cut off, or it failed.

        Args:
            usage: of the model calls so far; that of a call that was cut is estimated.
            trace: how far the answer had come; None where nobody had begun it.
        """
        ...


class Answerer(Protocol):
    """Answers one turn."""

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        """Emit the turn's events after `started`, up to and with `completed`.

        Cancelling the task aborts the model call and leaves behind what is known of it (`EventSink.cut`).
        `request.agent` is known to exist.

        Raises:
            AgentServiceError: the turn failed; nothing was emitted after the fault.
        """
        ...


class TurnCodec(Protocol):
    """Events and failures as the protocol's bytes: what replicas of the service share of a turn."""

    def encode_event(self, event: TurnEvent) -> bytes:
        """An event, as followers get it."""
        ...

    def encode_failure(self, failure: Exception) -> bytes:
        """What a turn failed with, as followers get it: of what is unforeseen that it is an internal error."""
        ...

    def decode_failure(self, payload: bytes) -> ReplayedError:
        """The same failure again."""
        ...


class WriteGuard(Protocol):
    """Says whether this replica may change the store of documents."""

    async def require_shared_or_sole(self) -> None:
        """Hold where every replica would see the change.

        Raises:
            StoreNotSharedError: other replicas have stores of their own.
        """
        ...
