"""From passages to numbered sources within a token budget."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from agent_service.types import CHARACTERS_PER_TOKEN, Passage, PassageId, ScoredPassage, Source, Span


def estimate_tokens(characters: int) -> int:
    """About how many model tokens a text of that many characters has. At least 1."""
    # Rounded up, so that the estimate of a whole never exceeds the sum over its parts.
    return max(1, -(-characters // CHARACTERS_PER_TOKEN))


def merge_neighbours(hits: Sequence[ScoredPassage]) -> list[ScoredPassage]:
    """Join hits that follow each other in one document under one heading.

    Returns:
        In the order of the best hit of each group, with its score.
    """
    groups: dict[tuple[str, str, str], list[ScoredPassage]] = {}
    for hit in hits:
        key = (hit.passage.document_id, hit.passage.version, hit.passage.heading)
        groups.setdefault(key, []).append(hit)
    merged: list[ScoredPassage] = []
    for group in groups.values():
        group.sort(key=lambda hit: hit.passage.ordinal)
        run = [group[0]]
        for hit in group[1:]:
            if hit.passage.ordinal == run[-1].passage.ordinal + 1:
                run.append(hit)
            else:
                merged.append(_join(run))
                run = [hit]
        merged.append(_join(run))
    merged.sort(key=lambda hit: (-hit.score, hit.passage.id))
    return merged


def _join(run: Sequence[ScoredPassage]) -> ScoredPassage:
    if len(run) == 1:
        return run[0]
    parts = [hit.passage for hit in run]
    whole = replace(
        parts[0],
        span=Span(parts[0].span.start, parts[-1].span.end),
        text="".join(part.text for part in parts),
        sentences=tuple(sentence for part in parts for sentence in part.sentences),
    )
    return ScoredPassage(whole, max(hit.score for hit in run))


def offer(hits: Iterable[ScoredPassage], *, budget_tokens: int) -> tuple[Source, ...]:
    """The hits that fit the budget, best first, neighbours merged, numbered from 1.

    One that does not fit is passed over for a smaller one. The first is always offered: an agent with a budget too
    small for any passage could never answer.
    """
    chosen: list[ScoredPassage] = []
    left = budget_tokens
    for hit in hits:
        cost = estimate_tokens(len(hit.passage.text))
        if cost <= left or not chosen:
            left -= cost
            chosen.append(hit)
    merged = merge_neighbours(chosen)
    return tuple(Source(marker, hit.passage, hit.score) for marker, hit in enumerate(merged, start=1))


def whole(document_parts: Sequence[Passage], text: str) -> Passage:
    """A document as one passage under the document's own id, with the sentences of all its parts."""
    first = document_parts[0]
    return replace(
        first,
        id=PassageId(first.document_id),
        heading="",
        ordinal=0,
        span=Span(0, len(text)),
        text=text,
        sentences=tuple(sentence for part in document_parts for sentence in part.sentences),
    )
