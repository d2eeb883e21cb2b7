"""Which sentences answer a question: the extractive answer of the offline model."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from agent_service.ports import TermEncoder
from agent_service.retrieval.support import ANSWERABLE, SupportCheck, TermWeights, stated_support
from agent_service.types import Question, Sentence, Source, SupportedSentence, TermId

RUNNER_UP = 0.7
"""A further sentence is quoted from this share of the best one's score on; below, it is rather beside the point."""

ASKS_FOR_A_FIGURE = re.compile(
    r"\b(how (much|many|long|often|fast|soon|large|big|old|far)|when|what (time|year|date|percentage|price|number)"
    r"|costs?|prices?|fees?|rates?|limits?|deadlines?)\b",
    re.IGNORECASE,
)
FIGURE = re.compile(r"\d")
FIGURE_BONUS = 1.15
"""Favours sentences with a figure where the question asks for one."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    source: Source
    sentence: Sentence
    terms: frozenset[TermId]
    score: float


class SentenceRanker:
    """Ranks sentences by how much of the question's information they hold, in their section's light."""

    def __init__(self, support: SupportCheck, encoder: TermEncoder) -> None:
        self._support = support
        self._encoder = encoder

    async def select(self, question: Question, sources: Sequence[Source], *, limit: int) -> Sequence[SupportedSentence]:
        """See `SentenceSelector.select`. The first is the best; the others add to it, in the documents' order."""
        if not sources:
            return []
        collections = list(dict.fromkeys(source.passage.collection for source in sources))
        weights = await self._support.weigh(question, collections)
        wants_figure = ASKS_FOR_A_FIGURE.search(question.text) is not None
        candidates = sorted(
            self._candidates(weights, sources, wants_figure=wants_figure),
            key=lambda c: (-c.score, c.source.marker, c.sentence.span.start),
        )
        chosen = _complementary(candidates, limit)
        return [SupportedSentence(c.source, c.sentence, min(1.0, c.score)) for c in chosen]

    def _candidates(
        self, weights: TermWeights, sources: Sequence[Source], *, wants_figure: bool
    ) -> Iterator[_Candidate]:
        for source in sources:
            title = source.passage.title
            for heading, group in groupby(source.passage.sentences, key=lambda sentence: sentence.heading):
                above = frozenset(self._encoder.terms(f"{title}\n{heading}"))
                said = [(sentence, frozenset(self._encoder.terms(sentence.text))) for sentence in group]
                section = weights.support(above.union(*(terms for _, terms in said)))
                if section < ANSWERABLE:
                    continue
                for sentence, terms in said:
                    stated = stated_support(weights, terms, above)
                    if not stated:
                        continue
                    score = stated * (0.5 + 0.5 * section)
                    if wants_figure and FIGURE.search(sentence.text):
                        score *= FIGURE_BONUS
                    yield _Candidate(source, sentence, terms, score)


def _complementary(candidates: Sequence[_Candidate], limit: int) -> list[_Candidate]:
    """The best candidate, and those near it that say something else about the question."""
    if not candidates:
        return []
    best = candidates[0]
    chosen = [best]
    for candidate in candidates[1:]:
        if len(chosen) == limit or candidate.score < RUNNER_UP * best.score:
            break
        if not _repeats(candidate, chosen):
            chosen.append(candidate)
    return [best, *sorted(chosen[1:], key=lambda c: (c.source.marker, c.sentence.span.start))]


def _repeats(candidate: _Candidate, chosen: Iterable[_Candidate]) -> bool:
    """Whether most of what a sentence says was said already."""
    return any(
        len(candidate.terms & other.terms) > 0.7 * min(len(candidate.terms), len(other.terms)) for other in chosen
    )
