"""The table at which one turn is worked on: what was asked, who holds it, what they read, what was written."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent_service.ports import EventSink
from agent_service.team.screen import AnswerScreen
from agent_service.types import (
    CHARACTERS_PER_TOKEN,
    AgentName,
    AgentSelected,
    Context,
    Outcome,
    Question,
    ScoredPassage,
    Source,
    Sources,
    Stage,
    Strategy,
    Token,
    Tool,
    ToolPhase,
    TurnRequest,
    Usage,
)

MOST_SOURCES = 50
"""Most sources of a turn: the contract's bound."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A model call under way: when it began (of the desk's clock), what it was given, what was written before it."""

    started: float
    input_characters: int
    written_characters: int


class TurnDesk:
    """One turn's working state. It is the `Briefing` that models read and the `TokenSink` that they write to.

    Who answers is known once text comes (an agent may still hand over before): `agent` and `sources` are emitted
    with the first piece of text.
    """

    def __init__(
        self,
        request: TurnRequest,
        events: EventSink,
        clock: Callable[[], float] = time.perf_counter,
        allows: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`allows`: whether an answer may lead to a URL that is no source's own."""
        self.request = request
        self.model = ""
        self.retries = 0
        self.results: list[str] = []
        self.agents: list[AgentName] = []
        self.context: Context | None = None
        self.stages: list[Stage] = []
        self.special_outcome: Outcome | None = None
        self.usage = Usage()
        self.call: ModelCall | None = None
        self.clock = clock
        self._question = Question(request.message, request.previous_user_message, request.caller)
        self._events = events
        self._text: list[str] = []
        self._held: list[str] | None = None
        self._written = 0
        self._is_apart = False
        self._screened = (0, 0)
        self._found: list[Source] = []
        self._allows = allows
        self._screen = AnswerScreen(self._is_source, self._may_lead_to)
        self._announced: AgentName | None = None

    @property
    def question(self) -> Question:
        """See `Briefing`."""
        return self._question

    @property
    def agent(self) -> AgentName:
        """See `Briefing`. Who holds the turn now."""
        return self.agents[-1]

    @property
    def sources(self) -> tuple[Source, ...]:
        """See `Briefing`. With what tools have found since the context was gathered."""
        return (*(self.context.sources if self.context else ()), *self._found)

    @property
    def max_output_tokens(self) -> int | None:
        """See `Briefing`. The caller limits the answer, not the way to who gives it."""
        return self.request.max_output_tokens if self.context else None

    @property
    def deadline(self) -> float:
        """See `Briefing`."""
        return self.request.deadline

    @property
    def dropped_markers(self) -> int:
        """Markers taken out of the answer because they name no source."""
        return self._screened[0] + self._screen.dropped_markers

    @property
    def removed_links(self) -> int:
        """Links and images taken out of the answer."""
        return self._screened[1] + self._screen.removed_links

    @property
    def strategy(self) -> Strategy | None:
        """How the agent that holds the turn gathered its context."""
        return self.context.strategy if self.context else None

    @property
    def answer(self) -> str:
        """All text written so far."""
        return "".join(self._text)

    @property
    def held(self) -> str:
        """Text that waits for its check; empty where nothing does."""
        return "".join(self._held or ())

    def take_over(self, agent: AgentName, context: Context | None, *, holds: bool = False) -> None:
        """Another agent holds the turn from here on. `holds`: its text waits until `release` or `refuse`."""
        self.flush()
        self.agents.append(agent)
        self._held = [] if holds else None
        self.context = context
        self.special_outcome = None
        self._found = []

    def write(self, text: str) -> None:
        """See `TokenSink`. What may not be shown is taken out; what cannot be judged yet waits for the next piece."""
        self.announce()
        if self._is_apart:
            # What was written before a tool call, and what after it, are two paragraphs.
            self._is_apart = False
            self._show("\n\n")
        self._written += len(text)
        self._show(self._screen.feed(text))

    def flush(self) -> None:
        """A model has ended its text: show what could not be judged before."""
        if self.agents:
            self._show(self._screen.end())
        self._screened = (self.dropped_markers, self.removed_links)
        self._screen = AnswerScreen(self._is_source, self._may_lead_to)

    def release(self) -> None:
        """The text that was held has passed its checks."""
        held, self._held = self.held, None
        self._show(held)

    def refuse(self, message: str) -> None:
        """A check was not passed: the text that was held is dropped, and the person is told this."""
        self._held = None
        self.ended(Outcome.REFUSED)
        self.announce()
        # An agent may have written something before it handed over.
        self._show(f"\n\n{message}" if self._text else message)

    def _show(self, text: str) -> None:
        if not text:
            return
        if self._held is not None:
            self._held.append(text)
            return
        self._text.append(text)
        self._events.emit(Token(text))

    def asked(self, model: str, *, retries: int) -> None:
        """See `TokenSink`."""
        self.model = model
        self.retries += retries

    def tool(self, name: str, call_id: str, phase: ToolPhase) -> None:
        """A tool call begins or ends."""
        self.announce()
        self._events.emit(Tool(name, call_id, phase))

    def returned(self, text: str) -> None:
        """Keep what a tool returned: an answer may rest on it."""
        self.results.append(text)

    def found(self, hits: Iterable[ScoredPassage]) -> tuple[Source, ...]:
        """Number the passages that a tool has found; those on the table keep their numbers.

        Emits all sources anew where some were added. At most MOST_SOURCES are on the table; what is beyond is left out.

        Returns:
            The hits as sources, in their order.
        """
        by_id = {source.passage.id: source for source in self.sources}
        marker = max((source.marker for source in self.sources), default=0)
        offered: list[Source] = []
        added = False
        for hit in hits:
            source = by_id.get(hit.passage.id)
            if source is None and len(by_id) < MOST_SOURCES:
                marker += 1
                source = by_id[hit.passage.id] = Source(marker, hit.passage, hit.score)
                self._found.append(source)
                added = True
            if source is not None:
                offered.append(source)
        if added and self._announced == self.agent:
            self._events.emit(Sources(self.sources))
        return tuple(offered)

    def _is_source(self, marker: int) -> bool:
        return any(source.marker == marker for source in self.sources)

    def _may_lead_to(self, url: str) -> bool:
        return self._allows(url) or any(source.passage.uri == url for source in self.sources)

    def ended(self, outcome: Outcome) -> None:
        """See `TokenSink`."""
        self.special_outcome = outcome

    def announce(self) -> None:
        """Emit who answers from which sources, unless that was said already."""
        if self._announced == self.agent:
            return
        self._announced = self.agent
        self._events.emit(AgentSelected(self.agent, self.strategy))
        if self.sources:
            self._events.emit(Sources(self.sources))

    def count(self, usage: Usage) -> None:
        """Add a model call's tokens."""
        self.usage = Usage(
            requests=self.usage.requests + usage.requests,
            input_tokens=self.usage.input_tokens + usage.input_tokens,
            cached_input_tokens=self.usage.cached_input_tokens + usage.cached_input_tokens,
            output_tokens=self.usage.output_tokens + usage.output_tokens,
        )

    def begin_call(self, input_characters: int) -> None:
        """A model is asked."""
        self._is_apart = bool(self._text or self._held)
        self.call = ModelCall(self.clock(), input_characters, self._written)

    def end_call(self, usage: Usage) -> None:
        """The model has answered."""
        self.flush()
        self._count(self.call, usage)

    def _count(self, call: ModelCall | None, usage: Usage) -> None:
        if call is not None:
            self.stage("model", call.started, tokens=usage.total_tokens)
        self.call = None
        self.count(usage)

    def break_call(self) -> None:
        """The model call under way, if any, was cut off: its tokens are estimated, because providers do not say."""
        if (call := self.call) is not None:
            written = self._written - call.written_characters
            self._count(call, Usage(1, _tokens(call.input_characters), 0, _tokens(written)))

    def stage(self, name: str, started: float, *, tokens: int = 0) -> None:
        """Note a stage that began at `started` (of `clock`) and ends now."""
        duration_ms = (self.clock() - started) * 1000
        self.stages.append(Stage(name, duration_ms, agent=self.agents[-1] if self.agents else "", tokens=tokens))


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
