"""The table at which one turn is worked on: what was asked, who holds it, what they read, what was written."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from agent_service.ports import EventSink
from agent_service.types import (
    AgentName,
    AgentSelected,
    Context,
    Outcome,
    Question,
    Source,
    Sources,
    Stage,
    Strategy,
    Token,
    TurnRequest,
    Usage,
)

CHARACTERS_PER_TOKEN = 4
"""A usual estimate, for what nobody counts: a model's window, and calls that were cut off."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A model call under way: when it began (of the desk's clock), what it was given, what was written before it."""

    started: float
    input_characters: int
    answer_characters: int


class TurnDesk:
    """One turn's working state. It is the `Briefing` that models read and the `TokenSink` that they write to.

    Who answers is known once text comes (an agent may still hand over before): `agent` and `sources` are emitted
    with the first piece of text.
    """

    def __init__(self, request: TurnRequest, events: EventSink, clock: Callable[[], float] = time.perf_counter) -> None:
        self.request = request
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
        """See `Briefing`."""
        return self.context.sources if self.context else ()

    @property
    def max_output_tokens(self) -> int | None:
        """See `Briefing`. The caller limits the answer, not the way to who gives it."""
        return self.request.max_output_tokens if self.context else None

    @property
    def strategy(self) -> Strategy | None:
        """How the agent that holds the turn gathered its context."""
        return self.context.strategy if self.context else None

    @property
    def answer(self) -> str:
        """All text written so far."""
        return "".join(self._text)

    def take_over(self, agent: AgentName, context: Context | None) -> None:
        """Another agent holds the turn from here on."""
        self.agents.append(agent)
        self.context = context
        self.special_outcome = None

    def write(self, text: str) -> None:
        """See `TokenSink`."""
        self.announce()
        self._text.append(text)
        self._events.emit(Token(text))

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
        self.call = ModelCall(self.clock(), input_characters, len(self.answer))

    def end_call(self, usage: Usage) -> None:
        """The model has answered."""
        if self.call is not None:
            self.stage("model", self.call.started, tokens=usage.total_tokens)
        self.call = None
        self.count(usage)

    def break_call(self) -> None:
        """The model call under way, if any, was cut off: its tokens are estimated, because providers do not say."""
        if (call := self.call) is not None:
            written = len(self.answer) - call.answer_characters
            self.end_call(Usage(1, _tokens(call.input_characters), 0, _tokens(written)))

    def stage(self, name: str, started: float, *, tokens: int = 0) -> None:
        """Note a stage that began at `started` (of `clock`) and ends now."""
        duration_ms = (self.clock() - started) * 1000
        self.stages.append(Stage(name, duration_ms, agent=self.agents[-1] if self.agents else "", tokens=tokens))


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
