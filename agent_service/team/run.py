"""Runs one turn: choose the agent, gather context, run the model, check the citations."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agents import Agent, ModelProvider, ModelResponse, RunConfig, RunContextWrapper, RunHooks, Runner
from agents.exceptions import AgentsException, ModelRefusalError
from agents.items import TResponseInputItem
from agents.run_config import CallModelData, ModelInputData

from agent_service.errors import BudgetExceededError, FieldViolation, ModelFailedError, UnknownAgentError
from agent_service.ports import Briefing, CitationChecker, ContextStrategy, EventSink, TokenSink
from agent_service.team.build import build_team
from agent_service.team.desk import TurnDesk
from agent_service.team.ending import outcome_of, trace_of
from agent_service.team.guardrails import Guardrails
from agent_service.team.links import link_rule
from agent_service.team.prompt import conversation, fence, with_sources
from agent_service.team.spec import AgentSpec, Roster
from agent_service.team.toolbox import Toolbox
from agent_service.types import (
    CHARACTERS_PER_TOKEN,
    AgentInfo,
    AgentName,
    CheckedCitations,
    Completed,
    Outcome,
    State,
    TurnRequest,
    TurnStatus,
    Usage,
)

MAX_MODEL_CALLS = 8
"""Model calls of a turn: a route, a hand-off that was wrong, and tools in between; more is a loop."""


class ModelsForTurn(Protocol):
    """Hands out the models of a turn; see `llm.providers`."""

    default_model: str

    def for_turn(self, briefing: Briefing, sink: TokenSink) -> ModelProvider:
        """Models that read this briefing and write to this sink."""
        ...


class _RefusedError(Exception):
    """A guardrail refuses the message; the text is what the person is told."""


class TeamAnswerer:
    """Answers turns with the roster's team. Holds no turn's state: that is the desk's."""

    def __init__(
        self,
        roster: Roster,
        models: ModelsForTurn,
        strategies: Mapping[AgentName, ContextStrategy],
        citations: CitationChecker,
        toolbox: Toolbox | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Make it of its parts.

        Args:
            roster: who answers what.
            models: hands out each turn's models.
            strategies: one for every agent with documents.
            citations: checks what answers cite.
            toolbox: the agents' tools; None: they have none.
            clock: seconds, for stages.

        Raises:
            StartupError: a function that a guardrail names cannot be imported.
        """
        self._roster = roster
        self._team = build_team(roster)
        self._models = models
        self._strategies = strategies
        self._citations = citations
        self._clock = clock
        self._allows = link_rule(roster.link_hosts)
        self._input_checks = {spec.agent: Guardrails(roster.guardrails_of(spec, "input")) for spec in roster.agents}
        self._output_checks = {spec.agent: Guardrails(roster.guardrails_of(spec, "output")) for spec in roster.agents}
        if toolbox is not None:
            toolbox.on_change(lambda: self._equip(toolbox))
            self._equip(toolbox)

    def agents(self) -> tuple[AgentInfo, ...]:
        """The team, the entry first."""
        return self._roster.listing(self._models.default_model)

    def require(self, agent: AgentName) -> None:
        """Check that the roster has an agent.

        Raises:
            UnknownAgentError: it has none of that name.
        """
        if agent not in self._team.routed:
            raise UnknownAgentError(agent)

    async def answer(self, request: TurnRequest, events: EventSink) -> None:
        """See `Answerer.answer`."""
        desk = TurnDesk(request, events, self._clock, self._allows)
        try:
            await self._answer(request, desk, events)
        except BaseException:
            # Cut off or failed: tokens were used all the same.
            desk.break_call()
            events.cut(desk.usage, trace_of(desk, CheckedCitations((), 0)) if desk.agents else None)
            raise

    async def _answer(self, request: TurnRequest, desk: TurnDesk, events: EventSink) -> None:
        start = self._start(request)
        items = conversation(request.history, request.message)
        try:
            await Runner.run(
                start,
                items,
                context=desk,
                max_turns=MAX_MODEL_CALLS,
                hooks=_ModelCallHooks(desk),
                run_config=RunConfig(
                    model_provider=self._models.for_turn(desk, desk),
                    tracing_disabled=True,
                    call_model_input_filter=self._brief,
                ),
            )
        except _RefusedError as refused:
            desk.refuse(str(refused))
        except ModelRefusalError:
            desk.ended(Outcome.REFUSED)
        except AgentsException as err:
            raise ModelFailedError("the model did not come to an answer") from err
        desk.announce()
        await self._release(desk)
        await self._complete(desk, events)

    def _equip(self, toolbox: Toolbox) -> None:
        """Have a team with the tools that can be used now. Runs under way go on with theirs."""
        self._team = build_team(self._roster, toolbox.tools_for)

    def _start(self, request: TurnRequest) -> Agent[TurnDesk]:
        if request.agent is not None:
            self.require(request.agent)
            return self._team.direct[request.agent]
        kept = request.state.agent
        # A state from before the roster changed may name somebody who left.
        if kept is not None and kept in self._team.routed:
            return self._team.routed[kept]
        return self._team.routed[AgentName(self._roster.entry)]

    def _specs(self, agent: Agent[Any]) -> AgentSpec:
        spec = self._roster.spec(agent.name)
        if spec is None:
            raise UnknownAgentError(agent.name)
        return spec

    async def _brief(self, call: CallModelData[TurnDesk]) -> ModelInputData:
        """Before each model call: gather context where the agent just took over, and put it into the input."""
        desk, data = call.context, call.model_data
        if desk is None:
            raise TypeError("a run of the team needs its desk")
        spec = self._specs(call.agent)
        if not desk.agents or desk.agent != spec.agent:
            _require_window(desk.request, spec)
            await self._take_over(desk, spec)
        if desk.context is None:
            return data
        if desk.context.stable:
            return ModelInputData(data.input, f"{data.instructions}\n\n{fence(desk.context.sources)}")
        # What tools have found since stands in their results.
        items: list[TResponseInputItem] = with_sources(
            data.input, desk.context.sources, question_at=len(desk.request.history)
        )
        return ModelInputData(items, data.instructions)

    async def _take_over(self, desk: TurnDesk, spec: AgentSpec) -> None:
        refusal = await self._input_checks[spec.agent].check(desk.request.message)
        strategy = self._strategies.get(spec.agent)
        holds = self._output_checks[spec.agent].needed
        if strategy is None or refusal is not None:
            desk.take_over(spec.agent, None, holds=holds)
        else:
            started = self._clock()
            state = desk.request.state
            cached = state.cached if state.agent == spec.agent else ()
            desk.take_over(spec.agent, await strategy.gather(desk.question, spec.reads, cached), holds=holds)
            desk.stage("retrieval", started)
        if refusal is not None:
            raise _RefusedError(refusal)

    async def _release(self, desk: TurnDesk) -> None:
        """Show what has waited for the end; where it does not pass its checks, say that in its place."""
        desk.flush()
        if not desk.held:
            return
        refusal = await self._output_checks[desk.agent].check(desk.held)
        if refusal is None:
            desk.release()
        else:
            desk.refuse(refusal)

    async def _complete(self, desk: TurnDesk, events: EventSink) -> None:
        started = self._clock()
        checked = await self._citations.check(desk.answer, desk.sources, desk.request.caller, desk.results)
        desk.stage("citations", started)
        context = desk.context
        # Who has no documents takes no conversation over: the next message goes to whoever had it.
        kept = State(desk.agent, context.cached) if context else desk.request.state
        events.emit(
            Completed(
                status=TurnStatus.COMPLETED,
                outcome=outcome_of(desk, checked),
                agent=desk.agent,
                strategy=desk.strategy,
                citations=checked.citations,
                usage=desk.usage,
                trace=trace_of(desk, checked),
                state=kept,
            )
        )


class _ModelCallHooks(RunHooks[TurnDesk]):
    """Times and counts the model calls; the SDK calls it inline and in order."""

    def __init__(self, desk: TurnDesk) -> None:
        self._desk = desk

    async def on_llm_start(
        self,
        context: RunContextWrapper[TurnDesk],  # noqa: ARG002
        agent: Agent[TurnDesk],  # noqa: ARG002
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        self._desk.begin_call(len(system_prompt or "") + sum(map(_characters, input_items)))

    async def on_llm_end(
        self,
        context: RunContextWrapper[TurnDesk],  # noqa: ARG002
        agent: Agent[TurnDesk],  # noqa: ARG002
        response: ModelResponse,
    ) -> None:
        counted = response.usage
        self._desk.end_call(
            Usage(
                requests=1,
                input_tokens=counted.input_tokens,
                cached_input_tokens=counted.input_tokens_details.cached_tokens or 0,
                output_tokens=counted.output_tokens,
            )
        )


def _characters(item: TResponseInputItem) -> int:
    """About what an item of a model's input comes to."""
    content = item.get("content")
    return len(content) if isinstance(content, str) else len(str(content or item))


def _require_window(request: TurnRequest, spec: AgentSpec) -> None:
    """Raise BudgetExceededError where the conversation is more than the agent takes."""
    characters = len(request.message) + sum(len(m.content) for m in request.history)
    tokens = characters // CHARACTERS_PER_TOKEN
    if tokens > spec.max_input_tokens:
        rule = f"message and history have about {tokens} tokens; {spec.name} takes {spec.max_input_tokens}"
        raise BudgetExceededError(FieldViolation("history", rule))
