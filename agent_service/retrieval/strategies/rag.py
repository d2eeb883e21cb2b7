"""RAG: search for every question."""

from collections.abc import Sequence

from agent_service.retrieval.context import offer
from agent_service.retrieval.search import Searcher
from agent_service.types import CachedPassage, CollectionName, Context, Question, Strategy

TOP_K = 8
"""Passages searched for. nDCG and recall are measured at 5 to 10; 8 of about 900 characters are 1,800 tokens."""


class RagStrategy:
    """Gathers the best passages for each question, whatever was gathered before."""

    def __init__(self, searcher: Searcher, *, budget_tokens: int) -> None:
        self._searcher = searcher
        self._budget_tokens = budget_tokens

    async def gather(
        self,
        question: Question,
        collections: Sequence[CollectionName],
        cached: Sequence[CachedPassage],  # noqa: ARG002 - what the port hands over, and RAG never keeps
    ) -> Context:
        """See `ContextStrategy.gather`."""
        found = await self._searcher.search(question, collections, TOP_K)
        sources = offer(found.hits, budget_tokens=self._budget_tokens)
        return Context(
            strategy=Strategy.RAG,
            sources=sources,
            considered=found.hits,
            support=found.support,
            reason=f"searched {', '.join(collections)} for this question",
        )
