"""The quotable sentences of a document: what may stand alone in an answer, in words that are understood alone.

An item of a list begins with the words that introduce the list, so does a row of a table, which names its columns:

    We accept:                       "We accept: Credit cards"          (the quote begins at "We accept")
    - Credit cards                   "We accept: Direct debit"
    - Direct debit

    Prices a month:                  "Prices a month: Plan: Basic; Price: EUR 9; SSO: no"

    | Plan  | Price  | SSO |         "Prices a month: Plan: Pro; Price: EUR 29; SSO: yes"
    |-------|--------|-----|
    | Basic | EUR 9  | no  |
    | Pro   | EUR 29 | yes |
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agent_service.ingestion.blocks import Block
from agent_service.ingestion.html_text import plain_html
from agent_service.ingestion.inline import Plain, Range, plain
from agent_service.ingestion.outline import Content, Outline
from agent_service.ingestion.prose import sentence_ranges
from agent_service.types import Span

# A chunk holds sentences whole, so none may be as long as the longest chunk.
MAX_SENTENCE = 1_200
# A code block of more characters is split at its blank lines, and what is still longer at line ends.
_MAX_CODE = 600
# A list item of more characters is split into its sentences.
_MAX_ITEM = 300
# Words of more characters are not repeated before each item of the list that they introduce.
_MAX_LEAD = 160

_LISTS = frozenset(("bullet_list", "ordered_list"))
# Before the words of a paragraph: a task's box, an alert's kind, the name of a footnote.
_MARK = re.compile(r"\[[ xX]\][ \t]+|\[![A-Za-z]+\]\s*|\[\^[^\]\s]{1,64}\]:\s*")
# "one, two, and three" as a list: what joins an item to the next is not part of it.
_SEPARATOR_OF_ITEMS = re.compile(r"[,;](?: (?:and|or))?$")
_QUOTE_MARKS = re.compile(r"^[\s>]+")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of a document. `lead`: what its text has from outside the span, a list's or table's opening words."""

    span: Span
    text: str
    lead: str = ""


def quotes(outline: Outline) -> list[Quote]:
    """The sentences of a document.

    Returns:
        In the order of the document; spans disjoint, trimmed of white space, at most `MAX_SENTENCE` long. Headings,
        header rows, rules, link definitions, comments and what has neither letters nor digits are left out.
    """
    return [quote for quote in _Reader(outline).blocks(outline.blocks) if any(map(str.isalnum, quote.text))]


class _Reader:
    def __init__(self, outline: Outline) -> None:
        self._outline = outline

    def blocks(self, nodes: Sequence[Block], lead: str = "", *, item: bool = False) -> list[Quote]:
        """The sentences of sibling blocks; with `item` those of a list item, whose first words get `lead`."""
        found: list[Quote] = []
        opening: Quote | None = None
        for index, node in enumerate(nodes):
            if node.kind == "paragraph":
                own = self._paragraph(node, lead if index == 0 else "", item=item)
                found += own
                opening = _opening(own, item=item)
                continue
            parts = self._parts(node, opening)
            if opening and parts and parts[0].lead == opening.text:
                found[-1:] = _joined(opening, parts[0])
                parts = parts[1:]
            found += parts
            opening = None
        return found

    def _parts(self, node: Block, opening: Quote | None) -> Sequence[Quote]:
        """The sentences of a list or table, with the words that open it, or of another block."""
        words = opening.text if opening else ""
        if node.kind in _LISTS:
            words += ":" if words and not words.endswith((":", "?")) else ""
            return [quote for item in node.children for quote in self.blocks(item.children, words, item=True)]
        if node.kind == "table":
            return list(self._table(node, words if words.endswith(":") else ""))
        return list(self._other(node))

    def _other(self, node: Block) -> Iterable[Quote]:
        match node.kind:
            case "blockquote":
                return self.blocks(node.children)
            case "fence":
                return self._code(node, node.first + 1)
            case "code_block":
                return self._code(node, node.first)
            case "html_block":
                content = self._outline.content(node.content.removesuffix("\n"), node.first)
                made = plain_html(content.text)
                return self._quotes(content, made, sentence_ranges(made.text))
            case _:
                return ()

    def _paragraph(self, node: Block, lead: str, *, item: bool) -> list[Quote]:
        content = self._outline.paragraph(node)
        mark = _MARK.match(content.text)
        begin = mark.end() if mark else 0
        made = plain(content.text[begin:], self._outline.env)
        made = replace(made, at=[at + begin for at in made.at]) if begin else made
        whole = item and len(made.text) <= _MAX_ITEM
        ranges = sentence_ranges(made.text, [(0, len(made.text))] if whole else made.whole, made.run_in)
        found = list(self._quotes(content, made, ranges, begin))
        if item and found:
            found[-1] = replace(found[-1], text=_SEPARATOR_OF_ITEMS.sub("", found[-1].text))
        if lead and found:
            found[0] = replace(found[0], text=f"{lead} {found[0].text}", lead=lead)
        return found

    def _table(self, node: Block, opening: str) -> Iterator[Quote]:
        head, *bodies = node.children
        header = self._cells(head.children[0])
        lead = opening
        for row in bodies[0].children if bodies else ():
            start = self._outline.line_start(row.first)
            line = self._outline.line(row.first)
            # A row never begins with ">": it would have ended the table.
            indent = len(line) - len(_QUOTE_MARKS.sub("", line))
            words = _row(header, self._cells(row))
            yield from self._bounded(start + indent, start + len(line.rstrip()), f"{opening} {words}".strip(), lead)
            # The first row stays with its header; the others may come into another chunk.
            lead = " ".join((opening, *header)).strip()

    def _cells(self, row: Block) -> list[str]:
        contents = (cell.content for cell in row.children)
        return [" ".join(plain(content, self._outline.env).text.split()) for content in contents]

    def _code(self, node: Block, first_line: int) -> Iterator[Quote]:
        content = self._outline.content(node.content.removesuffix("\n"), first_line)
        for start, end in _code_ranges(content.text):
            text = content.text[start:end]
            first, last = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
            if first < last:
                lines = text.rstrip().lstrip("\n")
                yield from self._bounded(content.source(first), content.source(last - 1) + 1, lines)

    def _quotes(self, content: Content, made: Plain, ranges: Iterable[Range], first: int = 0) -> Iterator[Quote]:
        """Sentences of readable text, with the markup that touches them; `first`: where the content begins."""
        text = content.text
        for a, b in ranges:
            begin = made.at[a - 1] + 1 if a else first
            end = len(text) if b == len(made.text) else made.at[b] if made.text[b].isspace() else made.at[b - 1] + 1
            part = text[begin:end]
            begin, end = begin + len(part) - len(part.lstrip()), begin + len(part.rstrip())
            yield from self._bounded(
                content.source(begin), content.source(end - 1) + 1, " ".join(made.text[a:b].split())
            )

    def _bounded(self, start: int, end: int, text: str, lead: str = "") -> Iterator[Quote]:
        """One quote; several, in the words of the document, where it is too long for one."""
        if end - start <= MAX_SENTENCE:
            yield Quote(Span(start, end), text, lead)
            return
        for first, last in _cut(self._outline.text, start, end):
            yield Quote(Span(first, last), " ".join(self._outline.text[first:last].split()), lead)


def _opening(own: Sequence[Quote], *, item: bool) -> Quote | None:
    """The quote that introduces a list or table right behind it.

    It ends with a colon; before a list it may be a question, or an item without a full stop.
    """
    if not own or len(own[-1].text) > _MAX_LEAD:
        return None
    introduces = own[-1].text.endswith((":", "?")) or (item and len(own) == 1 and own[0].text[-1] not in ".!…")
    return own[-1] if introduces else None


def _joined(opening: Quote, first: Quote) -> list[Quote]:
    """Opening words with a colon say nothing alone: they become part of the first item's or row's quote."""
    if not opening.text.endswith(":") or first.span.end - opening.span.start > MAX_SENTENCE:
        return [opening, first]
    return [Quote(Span(opening.span.start, first.span.end), first.text, opening.lead)]


def _row(header: Sequence[str], cells: Sequence[str]) -> str:
    """A table row in words: "Plan: Pro; Price: EUR 29". Where the first column has no name, its cell is the subject."""
    named = [f"{name}: {cell}" if name else cell for name, cell in zip(header, cells, strict=True) if cell]
    if header[0] or not cells[0] or len(named) == 1:
        return "; ".join(named)
    return f"{named[0]} \N{EN DASH} {'; '.join(named[1:])}"


def _code_ranges(text: str) -> Iterator[Range]:
    if len(text) <= _MAX_CODE:
        yield 0, len(text)
        return
    start = 0
    for end in [*(match.start() for match in _BLANK_LINES.finditer(text)), len(text)]:
        while end - start > _MAX_CODE:
            line_end = text.rfind("\n", start + 1, start + _MAX_CODE)
            line_end = line_end if line_end > start else text.find("\n", start + _MAX_CODE, end)
            if line_end < 0:
                break
            yield start, line_end
            start = line_end
        yield start, end
        start = end


def _cut(text: str, start: int, end: int) -> Iterator[Range]:
    while start < end:
        stop = end if end - start <= MAX_SENTENCE else start + MAX_SENTENCE
        if stop < end:
            words = text[start:stop].rstrip()
            space = max(words.rfind(" "), words.rfind("\n"))
            stop = start + (space if space > MAX_SENTENCE // 2 else len(words))
        yield start, start + len(text[start:stop].rstrip())
        start = stop + len(text[stop:end]) - len(text[stop:end].lstrip())
