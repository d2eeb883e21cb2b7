"""Does a text bear on a question? The measure behind routing, abstention, hybrid reuse and the choice of quotes.

Support is the share of the question's information that a text holds: each of the question's terms weighs its
inverse document frequency among the passages that the caller may read. It is comparable over questions, which
raw BM25 or fused scores are not.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agent_service.ports import TermEncoder, VectorStore
from agent_service.types import CollectionName, Passage, Question, TermId

ANSWERABLE = 0.5
"""Least support of an answer. Source: tests/evals/support.py; see docs/adr/0004-support-check.md."""

STILL_SUPPORTED = 0.75
"""Least support of a single kept sentence for keeping the passages of an earlier question (hybrid) instead of searching
again. Stricter than ANSWERABLE, and of a sentence rather than a passage: a search costs a millisecond, an answer from
the wrong passages costs trust."""

HEADING_SHARE = 0.5
"""What a question's term is worth where only the heading or title above a sentence has it."""

QUESTION_WORDS = (
    "able about allow any anything ask asked can could does explain fast find get getting give happen happens help how "
    "know let like long many may mean means might much need often please possible quickly say show something soon "
    "tell told want what when where which who whole why will wish would"
)
"""Words that shape a question and say nothing of its subject, beyond the stop words that no term is made of."""

FOLLOW_UP = re.compile(
    r"^\W*(and|but|or|so|also|what about|how about)\b|\b(it|its|they|them|their|theirs|that|those|these|this|same)\b",
    re.IGNORECASE,
)
"""What leans on the message before it: a conjunction that begins it, or a pronoun."""

FIRST_SENTENCE = re.compile(r"[^.!?]*")
"""Later ones may lean on the first ("My integration fails. How do I fix this?")."""

MOST_WEIGHED_TERMS = 64
"""Terms that are counted for one question: more than a question of 100 words has, and 10 ms in the embedded store. Of a
pasted page the first ones count; ordered by their hash they are a sample of it."""

MOST_PASSAGES = 512
"""Passages whose terms are kept: the popular ones, some 5 MiB."""

FEWEST_PASSAGES = 30
"""A caller's passages count as at least so many: in a handful of passages every word of them is common, and the one
word that the question has and they have not would outweigh all others. Asked "How big is the discount?", a tenant
whose first document says "The discount is 17 percent" would get no answer."""

FOLLOW_UP_SHARE = 0.3
"""What the terms of the message before count in a question that leans on it."""


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
        self._question_words = frozenset(encoder.terms(QUESTION_WORDS))
        self._terms_of = lru_cache(MOST_PASSAGES)(lambda text: frozenset(encoder.terms(text)))

    async def weigh(self, question: Question, collections: Sequence[CollectionName]) -> TermWeights:
        """What each term of a question weighs.

        A question that leans on the message before it brings that message's terms along, for less; one without terms
        of its own ("And why?") has only those.

        Raises:
            RetrievalUnavailableError: the store failed.
        """
        own = self.subject_terms(question.text)
        before: tuple[TermId, ...] = ()
        if not own or leans_back(question):
            before = tuple(term for term in self.subject_terms(question.previous) if term not in own)
        terms = (*own, *before)[:MOST_WEIGHED_TERMS]
        statistics = await self._store.term_statistics(terms, question.caller, collections)
        weights = {
            term: inverse_document_frequency(frequency, max(statistics.passages, FEWEST_PASSAGES))
            * (FOLLOW_UP_SHARE if own and term in before else 1.0)
            for term, frequency in statistics.frequencies.items()
        }
        return TermWeights(weights, math.fsum(weights.values()))

    def subject_terms(self, text: str) -> tuple[TermId, ...]:
        """The terms that say what a question is about; all of them where it has only question words."""
        terms = self._encoder.terms(text)
        return tuple(term for term in terms if term not in self._question_words) or terms

    def best_statement(self, weights: TermWeights, passage: Passage) -> float:
        """The support of the passage's best sentence. 0 to 1, larger is better."""
        title = passage.title
        return max(
            (
                stated_support(
                    weights,
                    frozenset(self._encoder.terms(sentence.text)),
                    frozenset(self._encoder.terms(f"{title}\n{sentence.heading}")),
                )
                for sentence in passage.sentences
            ),
            default=0.0,
        )

    def passage_terms(self, passage: Passage) -> frozenset[TermId]:
        """What a passage says, with the title and headings it stands under."""
        return self._terms_of(f"{passage.title}\n{passage.heading}\n{passage.text}")


def stated_support(weights: TermWeights, said: frozenset[TermId], above: frozenset[TermId]) -> float:
    """The support of one sentence: its own, and a share for what only the title and headings above it hold.

    0 for a sentence without any of the question's terms. 0 to 1, larger is better.
    """
    own = weights.support(said)
    return own + HEADING_SHARE * (weights.support(said | above) - own) if own else 0.0


def leans_back(question: Question) -> bool:
    """Whether a question can only be understood with the message before it."""
    first = FIRST_SENTENCE.match(question.text.strip())
    return bool(question.previous) and first is not None and FOLLOW_UP.search(first.group()) is not None


def inverse_document_frequency(frequency: int, passages: int) -> float:
    """How much a term tells, from the number of passages that hold it. Above 0, larger for rarer terms.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009, with the +1 under the logarithm
    that keeps it positive (as Lucene and Qdrant have it).
    """
    return math.log1p((passages - frequency + 0.5) / (frequency + 0.5))
