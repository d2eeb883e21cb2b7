"""The only place where concrete classes meet: from settings to parts that work together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent_service.ingestion.pipeline import IngestPipeline
from agent_service.llm.providers import HostedModels, OfflineModels, never_trace
from agent_service.ports import ContextStrategy, VectorStore, WriteGuard
from agent_service.retrieval.citations import StoredQuoteChecker
from agent_service.retrieval.routing import Specialist, SupportRouter
from agent_service.retrieval.search import Searcher
from agent_service.retrieval.selection import SentenceRanker
from agent_service.retrieval.sparse import Bm25Encoder
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.retrieval.strategies.cag import CagStrategy
from agent_service.retrieval.strategies.hybrid import HybridStrategy
from agent_service.retrieval.strategies.rag import RagStrategy
from agent_service.retrieval.support import SupportCheck
from agent_service.rpc.turn_codec import ProtoTurnCodec
from agent_service.settings import Settings
from agent_service.team.guardrails import Guardrails
from agent_service.team.run import ModelsForTurn, TeamAnswerer
from agent_service.team.spec import DEFAULT_ROSTER, AgentSpec, Roster, load_roster
from agent_service.team.toolbox import Toolbox
from agent_service.turns.host import TurnHost
from agent_service.types import AgentName, Strategy
from agent_service.vitals import PartVitals

if TYPE_CHECKING:
    from agent_service.turns.log_redis import RedisTurns


class Models(ModelsForTurn, Protocol):
    """A provider of models that can be closed."""

    async def close(self) -> None:
        """Release connections."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The service's parts, ready to be served."""

    store: VectorStore
    pipeline: IngestPipeline
    searcher: Searcher
    team: TeamAnswerer
    turns: TurnHost
    models: Models
    toolbox: Toolbox
    vitals: PartVitals
    guard: WriteGuard | None = None

    async def open(self) -> None:
        """Join the other replicas, and begin to connect to the servers of tools."""
        await self.toolbox.open()
        await self.turns.open()

    async def close(self) -> None:
        """Write what replicas share of turns; release the servers of tools, the model client and the store."""
        await self.turns.close()
        await self.toolbox.close()
        await self.models.close()
        await self.store.close()


async def open_store(settings: Settings) -> VectorStore:
    """The embedded store in the data directory, or a Qdrant server where one is named.

    The adapters are imported here, one of them: each costs half a second at start.

    Raises:
        StartupError: the directory is in use, damaged or not writable, or the server does not answer.
    """
    if settings.qdrant_url:
        from agent_service.retrieval.stores.server import ServerStore  # noqa: PLC0415

        api_key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
        return await ServerStore.connect(settings.qdrant_url, api_key=api_key, timeout_s=settings.retrieval_timeout_s)
    from agent_service.retrieval.stores.edge import EdgeStore  # noqa: PLC0415

    return await EdgeStore.open(settings.data_dir / "store", timeout_s=settings.retrieval_timeout_s)


def open_pipeline(store: VectorStore) -> IngestPipeline:
    """Ingestion into a store."""
    return IngestPipeline(store, Bm25Encoder())


def open_searcher(settings: Settings, store: VectorStore) -> Searcher:
    """Search in a store, without a team.

    Raises:
        StartupError: the roster breaks a rule.
    """
    encoder = Bm25Encoder()
    roster = load_roster(settings.roster or DEFAULT_ROSTER)
    return Searcher(store, encoder, SupportCheck(store, encoder), roster.collections)


def checked_roster(settings: Settings) -> Roster:
    """The roster, with all that it names found: prompt files, functions, and the variables of tool servers.

    Raises:
        StartupError: the roster breaks a rule, or something is missing.
    """
    roster = load_roster(settings.roster or DEFAULT_ROSTER)
    store, encoder = InMemoryStore(), Bm25Encoder()
    searcher = Searcher(store, encoder, SupportCheck(store, encoder), roster.collections)
    Toolbox(roster, searcher, connects=settings.provider != "offline")
    Guardrails(roster.guardrails)
    return roster


def wire(settings: Settings, store: VectorStore) -> Parts:
    """Everything that is served, over an open store.

    Raises:
        StartupError: the roster breaks a rule.
    """
    never_trace()
    roster = load_roster(settings.roster or DEFAULT_ROSTER)
    encoder = Bm25Encoder()
    support = SupportCheck(store, encoder)
    searcher = Searcher(store, encoder, support, roster.collections)
    router = SupportRouter(store, encoder, support, _specialists(roster))
    vitals = PartVitals()
    models = _models(settings, router, SentenceRanker(support, encoder), vitals)
    # The offline model calls no tools: no server of them is started for it.
    toolbox = Toolbox(roster, searcher, vitals, connects=settings.provider != "offline")
    strategies = _strategies(roster, store, searcher, support)
    team = TeamAnswerer(roster, models, strategies, StoredQuoteChecker(store, encoder), toolbox)
    shared = open_shared_turns(settings)
    turns = TurnHost(
        team,
        max_turns=settings.max_turns,
        keep_s=settings.turn_keep_s,
        turn_timeout_s=settings.turn_timeout_s,
        shared=shared,
    )
    return Parts(store, IngestPipeline(store, encoder), searcher, team, turns, models, toolbox, vitals, shared)


def open_shared_turns(settings: Settings) -> "RedisTurns | None":
    """What replicas share of turns, in the Redis that is named; nothing is connected yet. None: there is one agent."""
    if settings.redis_url is None:
        return None
    from agent_service.turns.log_redis import RedisTurns  # noqa: PLC0415
    from agent_service.turns.log_redis_link import RedisLink  # noqa: PLC0415

    link = RedisLink(settings.redis_url.get_secret_value())
    return RedisTurns(link, ProtoTurnCodec(), keep_s=settings.turn_keep_s, has_own_store=settings.qdrant_url is None)


def _specialists(roster: Roster) -> list[Specialist]:
    return [Specialist(agent.agent, agent.description, agent.reads) for agent in roster.specialists]


def _models(settings: Settings, router: SupportRouter, selector: SentenceRanker, vitals: PartVitals) -> Models:
    if settings.provider == "offline" or settings.openai_api_key is None:
        return OfflineModels(router, selector, delay_s=settings.offline_delay_s)
    fallback_api_key = settings.fallback_api_key
    return HostedModels(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        api=settings.openai_api,
        default_model=settings.model,
        timeout_s=settings.model_timeout_s,
        fallback_models=[name.strip() for name in settings.fallback_models.split(",") if name.strip()],
        fallback_base_url=settings.fallback_base_url,
        fallback_api_key=fallback_api_key.get_secret_value() if fallback_api_key else None,
        vitals=vitals,
    )


def _strategies(
    roster: Roster, store: VectorStore, searcher: Searcher, support: SupportCheck
) -> Mapping[AgentName, ContextStrategy]:
    def strategy(agent: AgentSpec) -> ContextStrategy:
        rag = RagStrategy(searcher, budget_tokens=agent.budget_tokens)
        if agent.strategy is Strategy.CAG:
            return CagStrategy(store, searcher, support, budget_tokens=agent.budget_tokens)
        if agent.strategy is Strategy.HYBRID:
            return HybridStrategy(rag, store, support, budget_tokens=agent.budget_tokens)
        return rag

    return {agent.agent: strategy(agent) for agent in roster.specialists}
