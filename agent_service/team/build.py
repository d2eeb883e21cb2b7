"""From the roster to Agents SDK objects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agents import Agent, ModelSettings, Tool
from openai.types.shared import Reasoning

from agent_service.team.desk import TurnDesk
from agent_service.team.spec import AgentSpec, Roster
from agent_service.types import AgentName


@dataclass(frozen=True, slots=True)
class Team:
    """SDK agents by name: with their hand-offs, and as asked directly, without."""

    routed: dict[AgentName, Agent[TurnDesk]]
    direct: dict[AgentName, Agent[TurnDesk]]


def build_team(roster: Roster, tools_for: Callable[[AgentSpec], list[Tool]] = lambda _: []) -> Team:
    """Every agent of the roster, hand-offs joined (they may go in circles).

    An agent must not be changed while it runs: the SDK refuses that.
    """
    routed: dict[AgentName, Agent[TurnDesk]] = {
        spec.agent: Agent[TurnDesk](
            name=spec.name,
            handoff_description=spec.description,
            instructions=roster.prompts[spec.name],
            # Without include_usage a server other than OpenAI's reports no usage on a stream.
            model_settings=ModelSettings(
                max_tokens=spec.max_output_tokens,
                temperature=spec.temperature,
                reasoning=Reasoning(effort=spec.reasoning_effort) if spec.reasoning_effort else None,
                include_usage=True,
            ),
            model=spec.model,
            tools=tools_for(spec),
        )
        for spec in roster.agents
    }
    for spec in roster.agents:
        handoffs: list[Any] = [routed[AgentName(name)] for name in spec.hands_off_to]
        routed[spec.agent].handoffs = handoffs
    # An agent without documents can only pass the question on, asked directly or not.
    direct = {
        spec.agent: routed[spec.agent].clone(handoffs=[]) if spec.collections else routed[spec.agent]
        for spec in roster.agents
    }
    return Team(routed, direct)
