"""Which specialist's documents bear on a question: the routing of the offline model."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from agent_service.errors import CollectionNotReadyError
from agent_service.ports import TermEncoder, VectorStore
from agent_service.retrieval.support import ANSWERABLE, SupportCheck, TermWeights, leans_back
from agent_service.types import AgentName, CollectionName, Question, ScoredPassage, SearchQuery, TermId

PROBES = 3
"""Passages looked at per specialist."""

DESCRIPTION_SHARE = 0.1
"""What a question's terms are worth in a specialist's description, beside its documents."""

LOYALTY = 0.15
"""By how much another specialist's evidence must exceed that of the one who holds the conversation."""

FOLLOW_UP_LOYALTY = 0.45
"""The same for a question that leans on the message before it."""


@dataclass(frozen=True, slots=True)
class Specialist:
    """What routing knows of an agent with documents."""

    name: AgentName
    description: str
    collections: tuple[CollectionName, ...]


class SupportRouter:
    """Compares the evidence that each specialist's collections hold for a question."""

    def __init__(
        self,
        store: VectorStore,
        encoder: TermEncoder,
        support: SupportCheck,
        specialists: Sequence[Specialist],
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._support = support
        self._specialists = tuple(specialists)
        self._described = {s.name: frozenset(encoder.terms(f"{s.name}\n{s.description}")) for s in self._specialists}

    async def route(self, question: Question, current: AgentName) -> AgentName | None:
        """See `EvidenceRouter.route`."""
        holds = any(specialist.name == current for specialist in self._specialists)
        terms = self._support.subject_terms(question.text)
        if not terms:  # "And why?" changes no subject
            return current if holds else None
        collections = tuple(dict.fromkeys(c for s in self._specialists for c in s.collections))
        present = await self._store.collections()
        if present.keys().isdisjoint(collections):
            raise CollectionNotReadyError(*collections)
        weights = await self._support.weigh(question, collections)
        probes = await asyncio.gather(*(self._probe(question, terms, s) for s in self._specialists))
        best_score = max((hits[0].score for hits in probes if hits), default=0.0)
        evidence = {
            specialist.name: self._evidence(specialist, hits, weights, best_score)
            for specialist, hits in zip(self._specialists, probes, strict=True)
        }
        return _choose(evidence, current, FOLLOW_UP_LOYALTY if leans_back(question) else LOYALTY)

    async def _probe(
        self, question: Question, terms: tuple[TermId, ...], specialist: Specialist
    ) -> list[ScoredPassage]:
        return await self._store.search(
            SearchQuery(terms=terms, caller=question.caller, collections=specialist.collections, limit=PROBES)
        )

    def _evidence(
        self, specialist: Specialist, hits: Sequence[ScoredPassage], weights: TermWeights, best_score: float
    ) -> float:
        """0 to about 1.1. Support says how much of the question is there, the BM25 score how much is said of it."""
        if not hits:
            return 0.0
        support = max(weights.support(self._support.passage_terms(hit.passage)) for hit in hits)
        if support < ANSWERABLE:
            return 0.0
        described = weights.support(self._described[specialist.name])
        return support * (0.5 + 0.5 * hits[0].score / best_score) + DESCRIPTION_SHARE * described


def _choose(evidence: dict[AgentName, float], current: AgentName, loyalty: float) -> AgentName | None:
    best = max(evidence, key=lambda name: evidence[name], default=None)
    if current in evidence:
        challenged = best is not None and evidence[best] > evidence[current] + loyalty
        return best if challenged else current
    return best if best is not None and evidence[best] > 0 else None
