"""Does a text bear on a question? The measure behind routing, abstention, hybrid reuse and the choice of quotes.

Support is the share of the question's information that a text holds: each of the question's terms weighs its
inverse document frequency among the passages that the caller may read. It is comparable over questions, which
raw BM25 or fused scores are not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent_service.ports import TermEncoder, VectorStore
from agent_service.types import CollectionName, Passage, Question, TermId

ANSWERABLE = 0.5
"""Least support of an answer. Source: tests/evals/abstention.py; see docs/adr/0004-support-check.md."""

STILL_SUPPORTED = 0.8
"""Least support for keeping the passages of an earlier question (hybrid) instead of searching again. Stricter than
ANSWERABLE: a search costs a millisecond, an answer from the wrong passages costs trust."""


@dataclass(frozen=True, slots=True)
class TermWeights:
    """A question's terms with their weights. Weights are above 0, their sum is `total`."""

    weights: dict[TermId, float]
    total: float

    def support(self, terms: Iterable[TermId]) -> float:
        """The share of the question's weight that `terms` hold. 0 to 1; 0 for a question of stop words only."""
        if not self.total:
            return 0.0
        held = terms if isinstance(terms, (set, frozenset)) else frozenset(terms)
        return math.fsum(weight for term, weight in self.weights.items() if term in held) / self.total


class SupportCheck:
    """Weighs questions against what their caller may read."""

    def __init__(self, store: VectorStore, encoder: TermEncoder) -> None:
        self._store = store
        self._encoder = encoder

    async def weigh(self, question: Question, collections: Sequence[CollectionName]) -> TermWeights:
        """The question's own terms; for one without any ("And why?") those of the message before it.

        Raises:
            RetrievalUnavailableError: the store failed.
        """
        terms = self._encoder.terms(question.text) or self._encoder.terms(question.previous)
        statistics = await self._store.term_statistics(terms, question.caller, collections)
        weights = {
            term: inverse_document_frequency(frequency, statistics.passages)
            for term, frequency in statistics.frequencies.items()
        }
        return TermWeights(weights, math.fsum(weights.values()))

    def passage_terms(self, passage: Passage) -> frozenset[TermId]:
        """What a passage says, with the title and headings it stands under."""
        return frozenset(self._encoder.terms(f"{passage.title}\n{passage.heading}\n{passage.text}"))


def inverse_document_frequency(frequency: int, passages: int) -> float:
    """How much a term tells, from the number of passages that hold it. Above 0, larger for rarer terms.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009, with the +1 under the logarithm
    that keeps it positive (as Lucene and Qdrant have it).
    """
    return math.log1p((passages - frequency + 0.5) / (frequency + 0.5))
