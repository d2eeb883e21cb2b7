"""Hybrid: search on the first question of a subject; its passages stay while they support the follow-ups."""

from collections.abc import Sequence
from dataclasses import replace

from agent_service.ports import VectorStore
from agent_service.retrieval.context import offer
from agent_service.retrieval.strategies.rag import RagStrategy
from agent_service.retrieval.support import STILL_SUPPORTED, SupportCheck
from agent_service.types import CachedPassage, CollectionName, Context, Question, ScoredPassage, Strategy


class HybridStrategy:
    """Keeps the passages of a subject in context from turn to turn.

    What is kept travels in the conversation's state as ids; the passages are read again here as the caller of this
    turn, so what was replaced, deleted or closed to the caller since then is gone.
    """

    def __init__(self, rag: RagStrategy, store: VectorStore, support: SupportCheck, *, budget_tokens: int) -> None:
        self._rag = rag
        self._store = store
        self._support = support
        self._budget_tokens = budget_tokens

    async def gather(
        self, question: Question, collections: Sequence[CollectionName], cached: Sequence[CachedPassage]
    ) -> Context:
        """See `ContextStrategy.gather`."""
        kept = await self._reread(question, collections, cached)
        if kept:
            weights = await self._support.weigh(question, collections)
            support = max(self._support.best_statement(weights, hit.passage) for hit in kept)
            if support >= STILL_SUPPORTED or not weights.total:
                return Context(
                    strategy=Strategy.HYBRID,
                    sources=offer(kept, budget_tokens=self._budget_tokens),
                    considered=kept,
                    cached=tuple(cached_from(hit) for hit in kept),
                    cache_hit=True,
                    support=support,
                    reason="the passages of the earlier question still support this one",
                )
        context = await self._rag.gather(question, collections, ())
        again = "the passages kept do not support this question; " if kept else ""
        return replace(
            context,
            strategy=Strategy.HYBRID,
            cached=tuple(cached_from(hit) for hit in context.considered),
            reason=again + context.reason,
        )

    async def _reread(
        self, question: Question, collections: Sequence[CollectionName], cached: Sequence[CachedPassage]
    ) -> tuple[ScoredPassage, ...]:
        versions = {entry.passage_id: entry.version for entry in cached}
        passages = await self._store.passages(list(versions), question.caller) if versions else []
        current = [p for p in passages if p.version == versions[p.id] and p.collection in collections]
        # Their order is that of the search that found them; scores only carry it on.
        return tuple(ScoredPassage(p, 1.0 / (rank + 1)) for rank, p in enumerate(current))


def cached_from(hit: ScoredPassage) -> CachedPassage:
    """What the state keeps of a passage."""
    return CachedPassage(hit.passage.document_id, hit.passage.version, hit.passage.id)
