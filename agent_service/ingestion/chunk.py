"""Cuts a Markdown document into the passages that are searched, without changing a character of it."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent_service.ingestion.blocks import Block
from agent_service.ingestion.outline import Outline
from agent_service.ingestion.sentences import Quote, quotes
from agent_service.types import Sentence, Span

# Part of each document's version: raise it when the same text is cut or read in another way.
CHUNKER_VERSION = "1"
_TARGET_CHARACTERS = 900
MAX_CHARACTERS = 1_600
# A section of at most so many characters is not cut, and no cut leaves less than `_MIN` on either side of it.
_SMALL = 1_200
_MIN = 250

_CONTAINERS = frozenset(("bullet_list", "ordered_list", "list_item", "blockquote", "table", "tbody"))
_SENTENCE_RANK = 100


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document under one heading; `text` is the document's text at `span`.

    `context`: opening words of the list or the table that the chunk continues, for search; empty otherwise.
    """

    span: Span
    text: str
    heading: str
    sentences: tuple[Sentence, ...]
    context: str = ""


def chunk(text: str) -> list[Chunk]:
    """Cut a Markdown document at its headings, and long sections further.

    Returns:
        Chunks in the order of the document, none longer than `MAX_CHARACTERS`; their texts, joined, are the document.
        A heading always begins a chunk, except where what stands before it has nothing to quote: that joins what
        follows. Empty for an empty text.
    """
    return chunks(Outline(text))


def chunks(outline: Outline) -> list[Chunk]:
    """As `chunk`, of a document that is parsed already."""
    cutter = _Cutter(outline, quotes(outline))
    return [cutter.chunk(span) for section in cutter.sections() for span in cutter.cut(section)]


class _Cutter:
    def __init__(self, outline: Outline, found: Sequence[Quote]) -> None:
        self._outline = outline
        self._quotes = found
        self._quote_starts = [quote.span.start for quote in found]
        # Where a cut may be, with its rank: blocks before the blocks inside them, before sentences, before lines.
        self._cuts = sorted(self._candidates())

    def sections(self) -> Iterator[Span]:
        """The ranges between headings; one without a sentence joins the next."""
        start, end = 0, len(self._outline.text)
        for heading in self._outline.headings:
            if self._quotes_in(start, heading.start):
                yield Span(start, heading.start)
                start = heading.start
        if start < end:
            yield Span(start, end)

    def cut(self, section: Span) -> Iterator[Span]:
        """Cut a section into ranges of at most `MAX_CHARACTERS`."""
        start = section.start
        while section.end - start > _SMALL:
            stop = self._next_cut(start, section.end)
            if stop is None:
                break
            yield Span(start, stop)
            start = stop
        yield Span(start, section.end)

    def chunk(self, span: Span) -> Chunk:
        """The chunk at a range."""
        found = self._quotes_in(span.start, span.end)
        # One without a sentence stands under the last of its headings.
        heading = self._outline.heading_at(found[0].span.start if found else span.end - 1)
        return Chunk(
            span,
            self._outline.text[span.start : span.end],
            heading,
            tuple(Sentence(quote.span, quote.text, heading) for quote in found),
            found[0].lead if found else "",
        )

    def _next_cut(self, start: int, end: int) -> int | None:
        """Where to cut what begins at `start`; None where it stays whole."""
        fits = end - start <= MAX_CHARACTERS
        good = self._cuts_in(start + _MIN, min(start + MAX_CHARACTERS, end - _MIN))
        if good:
            position, rank = min(good, key=lambda cut: (cut[1], abs(cut[0] - start - _TARGET_CHARACTERS)))
            return None if fits and rank > 0 else position
        if fits:
            return None
        if near := self._cuts_in(start + 1, start + MAX_CHARACTERS):
            return near[-1][0]
        return self._cut_anywhere(start)

    def _cut_anywhere(self, start: int) -> int:
        """A cut in what has neither blocks nor sentences: at a line, or at no particular place."""
        lines = [at for at in self._outline.line_starts(start, start + MAX_CHARACTERS + 1) if not self._tears(at)]
        if lines:
            return lines[-1]
        stop = start + MAX_CHARACTERS
        if self._tears(stop):
            return self._quote_starts[bisect_right(self._quote_starts, stop) - 1]
        # "\r\n" stays together: it is one line break.
        return stop - (self._outline.text[stop - 1 : stop + 1] == "\r\n")

    def _cuts_in(self, first: int, last: int) -> Sequence[tuple[int, int]]:
        return self._cuts[bisect_left(self._cuts, (first, 0)) : bisect_left(self._cuts, (last + 1, 0))]

    def _quotes_in(self, start: int, end: int) -> Sequence[Quote]:
        return self._quotes[bisect_left(self._quote_starts, start) : bisect_left(self._quote_starts, end)]

    def _tears(self, position: int) -> bool:
        """Whether a cut there would go through a sentence."""
        index = bisect_left(self._quote_starts, position) - 1
        return index >= 0 and position < self._quotes[index].span.end

    def _candidates(self) -> Iterator[tuple[int, int]]:
        ranks = dict.fromkeys(self._sentence_cuts(), _SENTENCE_RANK)
        for position, rank in _block_cuts(self._outline, self._outline.blocks, 0):
            ranks[position] = min(rank, ranks.get(position, _SENTENCE_RANK))
        return ((position, rank) for position, rank in ranks.items() if not self._tears(position))

    def _sentence_cuts(self) -> Iterator[int]:
        end = 0
        for quote in self._quotes:
            lines = self._outline.line_starts(end - 1, quote.span.start + 1)
            # With the marks before its line, where no other sentence stands on that line.
            yield lines[-1] if lines else quote.span.start
            end = quote.span.end


def _block_cuts(outline: Outline, blocks: Sequence[Block], rank: int) -> Iterator[tuple[int, int]]:
    """Where blocks begin. The deeper the block the larger the rank; the first row of a table stays with its header."""
    for index, block in enumerate(blocks):
        if block.kind == "thead" or (block.kind == "tr" and index == 0):
            continue
        introduced = index > 0 and _introduces(blocks[index - 1])
        yield outline.line_start(block.first), _SENTENCE_RANK if introduced else rank
        if block.kind in _CONTAINERS:
            yield from _block_cuts(outline, block.children, rank + 1)


def _introduces(block: Block) -> bool:
    """Whether a block belongs with the next: a heading, or a paragraph that ends with a colon."""
    return block.kind == "heading" or (block.kind == "paragraph" and block.content.endswith(":"))
