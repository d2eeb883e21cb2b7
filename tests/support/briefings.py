"""What a model and the team need around them, in the simplest form: passages, tables to read, sinks to write to."""

import asyncio
import math
from collections.abc import Mapping, Sequence

from agents import Model, ModelProvider

from agent_service.llm.streaming import StreamToSink
from agent_service.ports import Briefing, TokenSink
from agent_service.types import (
    AgentName,
    CachedPassage,
    Caller,
    CheckedCitations,
    Citation,
    CollectionName,
    Context,
    DocumentId,
    Event,
    Outcome,
    Passage,
    PassageId,
    Question,
    Sentence,
    Source,
    Span,
    SupportedSentence,
    Trace,
    Usage,
)

CALLER = Caller("ada", "acme")
QUESTION = Question("What does it cost?", "", CALLER)


def passage(
    text: str = "The Enterprise plan costs 40 EUR.", *, title: str = "Plans", heading: str = "", name: str = "plans"
) -> Passage:
    """A passage that is its whole document and one sentence."""
    span = Span(0, len(text))
    return Passage(
        id=PassageId(f"passage-{name}"),
        document_id=DocumentId(name),
        version="v1",
        collection=CollectionName("billing"),
        title=title,
        uri=f"{name}.md",
        heading=heading,
        ordinal=0,
        span=span,
        text=text,
        sentences=(Sentence(span, text, heading),),
    )


def source(marker: int = 1, text: str = "The Enterprise plan costs 40 EUR.", *, title: str = "Plans") -> Source:
    """A numbered passage."""
    return Source(marker, passage(text, title=title, name=f"{title.lower()}-{marker}"), 1.0)


class FixedBriefing:
    """A table that nobody keeps current."""

    max_output_tokens: int | None = None
    deadline: float = math.inf

    def __init__(self, agent: str = "billing", sources: Sequence[Source] = (), question: Question = QUESTION) -> None:
        self.question = question
        self.agent = AgentName(agent)
        self.sources = tuple(sources)


class ListSink:
    """Keeps what a model writes, and who wrote it; `written` is set with the first piece."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.outcomes: list[Outcome] = []
        self.answered: list[tuple[str, int]] = []
        self.written = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def outcome(self) -> Outcome | None:
        return self.outcomes[-1] if self.outcomes else None

    def write(self, text: str) -> None:
        self.pieces.append(text)
        self.written.set()

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def asked(self, model: str, *, retries: int) -> None:
        self.answered.append((model, retries))


class ListVitals:
    """Keeps what is told of the parts."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bool]] = []

    def tell(self, part: str, member: str, *, ok: bool) -> None:
        self.told.append((part, member, ok))


class ListEvents:
    """Keeps the events of a turn."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.cuts: list[tuple[Usage, Trace | None]] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def cut(self, usage: Usage, trace: Trace | None) -> None:
        self.cuts.append((usage, trace))

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


class FixedRouter:
    """Names the same agent for every question."""

    def __init__(self, agent: str | None) -> None:
        self.asked: list[tuple[Question, AgentName]] = []
        self._agent = AgentName(agent) if agent is not None else None

    async def route(self, question: Question, current: AgentName) -> AgentName | None:
        self.asked.append((question, current))
        return self._agent


class FixedSelector:
    """Selects these texts from the first source, whatever is asked; nothing where there is no source."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    async def select(self, question: Question, sources: Sequence[Source], *, limit: int) -> Sequence[SupportedSentence]:
        if not sources:
            return []
        sentences = (Sentence(Span(0, len(text)), text) for text in self._texts[:limit])
        return [SupportedSentence(sources[0], sentence, 1.0) for sentence in sentences]


class CannedStrategy:
    """Gathers the same context for every question, or fails in the same way."""

    def __init__(self, context: Context | None = None, *, failure: Exception | None = None) -> None:
        self.cached: list[tuple[CachedPassage, ...]] = []
        self.questions: list[Question] = []
        self.collections: list[tuple[CollectionName, ...]] = []
        self._context = context
        self._failure = failure

    async def gather(
        self, question: Question, collections: Sequence[CollectionName], cached: Sequence[CachedPassage]
    ) -> Context:
        self.questions.append(question)
        self.collections.append(tuple(collections))
        self.cached.append(tuple(cached))
        if self._context is None:
            raise self._failure or AssertionError("this strategy was not expected to be asked")
        return self._context


class TrustingChecker:
    """Believes every marker that has a source, without looking for the quote."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.results: list[tuple[str, ...]] = []

    async def check(
        self, answer: str, sources: Sequence[Source], caller: Caller, results: Sequence[str] = ()
    ) -> CheckedCitations:
        self.callers.append(caller)
        self.results.append(tuple(results))
        citations = tuple(
            Citation(
                source.marker,
                Span(0, len(answer)),
                source.passage,
                source.passage.heading,
                source.passage.span,
                source.passage.text,
            )
            for source in sources
            if f"[{source.marker}]" in answer
        )
        rests = any(result in answer for result in results)
        return CheckedCitations(citations, answer.count("[") - len(citations), rests)


class OneModelForAll:
    """Gives every agent the same model, and remembers the names that were asked for."""

    default_model = "scripted"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names: list[str | None] = []
        self.briefings: list[Briefing] = []

    def for_turn(self, briefing: Briefing, sink: TokenSink) -> ModelProvider:
        self.briefings.append(briefing)
        return _OneModelProvider(self, briefing, sink)


class _OneModelProvider(ModelProvider):
    def __init__(self, models: OneModelForAll, briefing: Briefing, sink: TokenSink) -> None:
        self._models = models
        self._briefing = briefing
        self._sink = sink

    def get_model(self, model_name: str | None) -> Model:
        self._models.names.append(model_name)
        return StreamToSink(self._models.model, self._sink, self._briefing, name="scripted")


def strategies(contexts: Mapping[str, Context]) -> dict[AgentName, CannedStrategy]:
    """A canned strategy for each agent named."""
    return {AgentName(name): CannedStrategy(context) for name, context in contexts.items()}
