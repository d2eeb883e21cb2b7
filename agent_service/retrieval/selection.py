"""Which sentences answer a question: the extractive answer of the offline model."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from agent_service.ports import TermEncoder
from agent_service.retrieval.support import ANSWERABLE, SupportCheck, TermWeights, stated_support
from agent_service.types import Question, Sentence, Source, SupportedSentence, TermId

RUNNER_UP = 0.75
"""A further sentence is quoted from this share of the best one's score on; below, it is rather beside the point."""

EXPECTED_SHAPES = (
    (
        re.compile(
            r"\b(how (much|many|long|often|fast|soon|large|big|old|far)|when"
            r"|what (time|year|date|percentage|price|number)|costs?|prices?|fees?|rates?|limits?|deadlines?)\b",
            re.IGNORECASE,
        ),
        re.compile(r"\d"),
    ),
    (re.compile(r"\bwhere\b", re.IGNORECASE), re.compile(r"\b(in|at|within) (the )?[A-Z]")),
)
"""What a question asks for, and what a sentence that has it looks like: a figure; a place."""

SHAPE_BONUS = 1.15
"""Favours sentences of the expected shape among those that say about the same."""

TOPIC_SHARE = 0.3
"""Favours sentences under a title or heading that speaks of the question: what is said in passing elsewhere may hold as
many of its terms. No effect on XQuAD-en, which has no headings; chosen on questions about the sample documents."""

LENGTH_SHARE = 0.1
USUAL_TERMS = 15
"""A sentence of many terms holds a question's terms more easily by chance. Chosen on XQuAD-en (0.742 to 0.749 in the
first sentence quoted); a larger share loses again."""


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
        shapes = [shape for asks, shape in EXPECTED_SHAPES if asks.search(question.text)]
        candidates = sorted(
            self._candidates(weights, sources, shapes),
            key=lambda c: (-c.score, c.source.marker, c.sentence.span.start),
        )
        chosen = _complementary(candidates, limit)
        return [SupportedSentence(c.source, c.sentence, min(1.0, c.score)) for c in chosen]

    def _candidates(
        self, weights: TermWeights, sources: Sequence[Source], shapes: Sequence[re.Pattern[str]]
    ) -> Iterator[_Candidate]:
        for source in sources:
            title = source.passage.title
            for heading, group in groupby(source.passage.sentences, key=lambda sentence: sentence.heading):
                above = frozenset(self._encoder.terms(f"{title}\n{heading}"))
                said = list(self._said(list(group)))
                topical = 1 + TOPIC_SHARE * weights.support(above)
                section = weights.support(above.union(*(terms | lead for _, terms, lead in said)))
                if section < ANSWERABLE:
                    continue
                for sentence, terms, lead in said:
                    stated = stated_support(weights, terms, above | lead)
                    # What ends in a colon only introduces what comes next.
                    if not stated or sentence.text.endswith(":"):
                        continue
                    score = stated * topical * (0.5 + 0.5 * section) / _length_penalty(terms)
                    if any(shape.search(sentence.text) for shape in shapes):
                        score *= SHAPE_BONUS
                    yield _Candidate(source, sentence, terms, score)

    def _said(self, group: Sequence[Sentence]) -> Iterator[tuple[Sentence, frozenset[TermId], frozenset[TermId]]]:
        """Each sentence with its own terms, and those of the words that it shares with its neighbours.

        The items of a list repeat the words that introduce it ("We accept: ..."), table rows their first column's
        name: such words stand above a sentence like a heading, and do not tell it from the next.
        """
        leads = Counter(sentence.text.partition(": ")[0] for sentence in group)
        for sentence in group:
            lead, colon, rest = sentence.text.partition(": ")
            if not colon or leads[lead] == 1:
                lead, rest = "", sentence.text
            yield sentence, frozenset(self._encoder.terms(rest)), frozenset(self._encoder.terms(lead))


def _length_penalty(terms: frozenset[TermId]) -> float:
    """1 for sentences of usual length, growing slowly with more terms."""
    return 1 - LENGTH_SHARE + LENGTH_SHARE * max(1.0, len(terms) / USUAL_TERMS)


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
