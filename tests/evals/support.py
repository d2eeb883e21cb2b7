"""How well the support check tells answerable questions from absent topics, and how often a quote holds the answer.

Run as `make eval DATA=folder` (or `python -m tests.evals.support folder`), with JSON Lines: `squad.corpus` (id, title,
text), `xquad_en.queries` (text, qrels, answers) and `mtrag_un.queries` (text). Prints a Markdown table.

Every other article is put into the store. Its questions are answerable; those of the articles left out are about absent
topics, and so are MTRAG-UN's turns, most of which lean on a conversation that is not given ("How can I apply?").
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_service.ingestion.pipeline import IngestPipeline
from agent_service.retrieval.context import offer
from agent_service.retrieval.search import Searcher
from agent_service.retrieval.selection import SentenceRanker
from agent_service.retrieval.sparse import Bm25Encoder
from agent_service.retrieval.stores.edge import EdgeStore
from agent_service.retrieval.support import ANSWERABLE, SupportCheck
from agent_service.types import Access, Caller, CollectionName, Question, SourceDocument

CALLER = Caller("eval", "default")
CORPUS = CollectionName("squad")


@dataclass(frozen=True, slots=True)
class Judged:
    """One question: its support, and in which of the quoted sentences a gold answer stands (-1: none)."""

    support: float
    answered_by: int
    answered: bool


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def judge(searcher: Searcher, ranker: SentenceRanker, text: str, answers: Sequence[str]) -> Judged:
    """Ask one question as the offline specialist does."""
    question = Question(text, "", CALLER)
    found = await searcher.search(question, [CORPUS], 8)
    sentences = await ranker.select(question, offer(found.hits, budget_tokens=4000), limit=3)
    gold = [answer.casefold() for answer in answers]
    place = next(
        (n for n, s in enumerate(sentences) if any(g in s.sentence.text.casefold() for g in gold)),
        -1,
    )
    return Judged(found.support, place, bool(sentences))


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The chance that a positive scores above a negative; ties count half. 0.5 is chance, 1 is perfect."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def supports(judged: Sequence[Judged]) -> list[float]:
    """The support of each question."""
    return [each.support for each in judged]


def share(flags: Iterable[bool]) -> float:
    """The share of True. 0 to 1."""
    listed = list(flags)
    return sum(listed) / len(listed)


async def evaluate(data: Path) -> str:
    """All figures, as a Markdown table."""
    encoder = Bm25Encoder()
    with tempfile.TemporaryDirectory() as folder:
        store = await EdgeStore.open(Path(folder), timeout_s=30)
        try:
            pipeline = IngestPipeline(store, encoder)
            corpus = rows(data / "squad.corpus.jsonl")
            stored = set(sorted({row["title"] for row in corpus})[::2])
            there = {row["id"] for row in corpus if row["title"] in stored}
            for row in corpus:
                if row["id"] not in there:
                    continue
                text = f"# {row['title']}\n\n{row['text']}\n"
                await pipeline.ingest(SourceDocument(row["id"], CORPUS, "", text, Access("default")))
            check = SupportCheck(store, encoder)
            searcher = Searcher(store, encoder, check, [CORPUS])
            ranker = SentenceRanker(check, encoder)
            asked = rows(data / "xquad_en.queries.jsonl")
            answerable = [
                await judge(searcher, ranker, row["text"], row["answers"]) for row in asked if there & set(row["qrels"])
            ]
            absent = [await judge(searcher, ranker, row["text"], []) for row in asked if not there & set(row["qrels"])]
            leaning = [await judge(searcher, ranker, row["text"], []) for row in rows(data / "mtrag_un.queries.jsonl")]
        finally:
            await store.close()
    return report(answerable, absent, leaning)


def report(answerable: Sequence[Judged], absent: Sequence[Judged], leaning: Sequence[Judged]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| figure | value |",
        "|---|---|",
        f"| questions: answerable, absent, leaning | {len(answerable)}, {len(absent)}, {len(leaning)} |",
        f"| AUROC of support: absent | {auroc(supports(answerable), supports(absent)):.3f} |",
        f"| AUROC of support: leaning | {auroc(supports(answerable), supports(leaning)):.3f} |",
        f"| gold answer in the first sentence quoted | {share(j.answered_by == 0 for j in answerable):.3f} |",
        f"| gold answer in any sentence quoted | {share(j.answered_by >= 0 for j in answerable):.3f} |",
        f"| answerable, answered | {share(j.answered for j in answerable):.3f} |",
        f"| absent, abstained | {share(not j.answered for j in absent):.3f} |",
        f"| leaning, abstained | {share(not j.answered for j in leaning):.3f} |",
        "",
        "| least support | answerable kept | absent refused | leaning refused |",
        "|---|---|---|---|",
    ]
    for least in (0.3, 0.4, 0.5, 0.6, 0.7):
        kept = share(j.support >= least for j in answerable)
        refused = share(j.support < least for j in absent)
        mark = " (in use)" if least == ANSWERABLE else ""
        leant = share(j.support < least for j in leaning)
        lines.append(f"| {least}{mark} | {kept:.3f} | {refused:.3f} | {leant:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(asyncio.run(evaluate(Path(sys.argv[1]))))  # noqa: T201
