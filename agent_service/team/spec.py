"""The roster: who answers what. Read once at start, checked whole."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from agent_service.errors import StartupError
from agent_service.team.tool_spec import GuardrailSpec, McpServerSpec, Name, ToolSpec
from agent_service.types import AgentInfo, AgentName, CollectionName, Strategy

DEFAULT_ROSTER = Path(__file__).parent / "roster.toml"

Host = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class AgentSpec(BaseModel):
    """One table of the roster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    description: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    instructions: str
    collections: tuple[Name, ...] = ()
    strategy: Strategy | None = None
    budget_tokens: int = Field(default=4000, ge=200, le=1_000_000)
    max_input_tokens: int = Field(default=60_000, ge=1_000, le=10_000_000)
    max_output_tokens: int = Field(default=2_048, ge=16, le=32_768)
    hands_off_to: tuple[Name, ...] = ()
    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    reasoning_effort: Effort | None = None
    tools: tuple[Name, ...] = ()
    guardrails: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _documents_need_a_strategy(self) -> Self:
        if bool(self.collections) != (self.strategy is not None):
            raise ValueError(f"agent {self.name!r}: collections and strategy go together")
        if self.name in self.hands_off_to:
            raise ValueError(f"agent {self.name!r}: hands off to itself")
        for field in ("tools", "guardrails"):
            names = getattr(self, field)
            if len(set(names)) != len(names):
                raise ValueError(f"agent {self.name!r}: {field} are named twice")
        return self

    @property
    def agent(self) -> AgentName:
        """The name, typed."""
        return AgentName(self.name)

    @property
    def reads(self) -> tuple[CollectionName, ...]:
        """The collections, typed."""
        return tuple(CollectionName(name) for name in self.collections)


class Roster(BaseModel):
    """The team.

    Attributes:
        link_hosts: hosts that answers may link to, with their subdomains, beside the documents' own addresses.
        guardrails: checks by name; those in `team_guardrails` hold for every agent.
        prompts: the text of each agent's instructions, by agent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: Name
    agents: tuple[AgentSpec, ...] = Field(min_length=1, max_length=64)
    tools: tuple[ToolSpec, ...] = Field(default=(), max_length=128)
    mcp_servers: tuple[McpServerSpec, ...] = Field(default=(), max_length=32)
    guardrails: tuple[GuardrailSpec, ...] = Field(default=(), max_length=64)
    team_guardrails: tuple[Name, ...] = ()
    link_hosts: tuple[Host, ...] = ()
    prompts: dict[str, str] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        names = [agent.name for agent in self.agents]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"agents defined twice: {twice}")
        wanted = {self.entry}.union(*(agent.hands_off_to for agent in self.agents))
        if missing := sorted(wanted - set(names)):
            raise ValueError(f"the roster names agents that it does not define: {missing}")
        return self

    @model_validator(mode="after")
    def _tools_resolve(self) -> Self:
        for what, defined, named in (
            ("tools", [tool.name for tool in self.tools], {name for agent in self.agents for name in agent.tools}),
            (
                "mcp_servers",
                [server.name for server in self.mcp_servers],
                {tool.mcp_server for tool in self.tools if tool.mcp_server},
            ),
            (
                "guardrails",
                [guardrail.name for guardrail in self.guardrails],
                {*self.team_guardrails, *(name for agent in self.agents for name in agent.guardrails)},
            ),
        ):
            if twice := sorted({name for name in defined if defined.count(name) > 1}):
                raise ValueError(f"{what} defined twice: {twice}")
            if missing := sorted(named - set(defined)):
                raise ValueError(f"the roster names {what} that it does not define: {missing}")
        search = {tool.name for tool in self.tools if tool.builtin == "search"}
        for agent in self.agents:
            if search.intersection(agent.tools) and not agent.collections:
                raise ValueError(f"agent {agent.name!r}: has no collections to search")
        return self

    def tools_of(self, agent: AgentSpec) -> tuple[ToolSpec, ...]:
        """The tools that an agent may call, in its order."""
        by_name = {tool.name: tool for tool in self.tools}
        return tuple(by_name[name] for name in agent.tools)

    def guardrails_of(self, agent: AgentSpec, on: Literal["input", "output"]) -> tuple[GuardrailSpec, ...]:
        """The checks that hold for an agent, those of the whole team first."""
        by_name = {guardrail.name: guardrail for guardrail in self.guardrails}
        names = dict.fromkeys((*self.team_guardrails, *agent.guardrails))
        return tuple(by_name[name] for name in names if by_name[name].on == on)

    @property
    def specialists(self) -> tuple[AgentSpec, ...]:
        """The agents with documents."""
        return tuple(agent for agent in self.agents if agent.collections)

    @property
    def collections(self) -> tuple[CollectionName, ...]:
        """Every collection that an agent reads, once, in the roster's order."""
        return tuple(dict.fromkeys(name for agent in self.agents for name in agent.reads))

    def spec(self, name: str) -> AgentSpec | None:
        """The agent of that name."""
        return next((agent for agent in self.agents if agent.name == name), None)

    def listing(self, default_model: str) -> tuple[AgentInfo, ...]:
        """The team as callers see it; the entry first."""
        ordered = sorted(self.agents, key=lambda agent: agent.name != self.entry)
        return tuple(
            AgentInfo(
                name=agent.agent,
                description=agent.description,
                strategy=agent.strategy,
                model=agent.model or default_model,
                collections=agent.reads,
                entry=agent.name == self.entry,
            )
            for agent in ordered
        )


def load_roster(path: Path = DEFAULT_ROSTER) -> Roster:
    """Read a roster and the prompt files beside it.

    Raises:
        StartupError: a file is missing or not UTF-8, the TOML is malformed, or a rule of the roster is broken.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        roster = Roster.model_validate(table)
        prompts = {
            agent.name: (path.parent / agent.instructions).read_text(encoding="utf-8").strip()
            for agent in roster.agents
        }
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise StartupError(f"AGENT_ROSTER {path}: {err}") from err
    except ValidationError as err:
        rules = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'roster'}: {e['msg']}" for e in err.errors())
        raise StartupError(f"AGENT_ROSTER {path}: {rules}") from err
    if empty := sorted(name for name, prompt in prompts.items() if not prompt):
        raise StartupError(f"AGENT_ROSTER {path}: these agents have an empty prompt file: {empty}")
    return roster.model_copy(update={"prompts": prompts})
