"""A Markdown document as a tree of blocks that know their lines, and the headings over them."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count

from markdown_it.common.utils import MD_TRIM_CHARS
from markdown_it.utils import EnvType

from agent_service.ingestion.blocks import Block, Lines, parse
from agent_service.ingestion.inline import plain

_FENCE_OF_FRONT_MATTER = re.compile(r"(?:---|\.\.\.)[ \t]*")
# A document may also begin with a rule: front matter begins with a key.
_KEY = re.compile(r"[\w.-]+[ \t]*:")
# `## Limits {#limits}`: how several site builders name an anchor.
_ANCHOR = re.compile(r"\s*\{#[\w.:-]+\}$")
_SEPARATOR = " > "


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading outside lists and quotes. `path`: it and those above, without the document's title."""

    start: int
    level: int
    text: str
    path: str


@dataclass(frozen=True, slots=True)
class Content:
    """What a block says, without the marks before its lines, and where each line stands in the document."""

    text: str
    _begins: Sequence[int]
    _shifts: Sequence[int]

    def source(self, index: int) -> int:
        """Where character `index` of `text` stands in the document; a line break stands where its line ends."""
        return index + self._shifts[bisect_right(self._begins, index) - 1]


class Outline:
    """A parsed document. All positions count in the code points of `text`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.env: EnvType = {}
        # markdown-it replaces NUL, too; with it replaced here, its lines are substrings of ours.
        self._source = text.replace("\0", "\ufffd")
        self._lines = Lines(text)
        self.blocks = list(parse(self._source, self._lines, _lines_of_front_matter(text, self._lines), self.env))
        self.headings = tuple(_with_paths(self._headings()))
        self.title = next((h.text for h in self.headings if h.level == 1 and h.text), "")

    def line_start(self, line: int) -> int:
        """Where a line begins."""
        return self._lines.start(line)

    def line_starts(self, start: int, end: int) -> Sequence[int]:
        """Where those lines begin that begin inside a range, after its start."""
        return self._lines.starts(start, end)

    def line(self, line: int) -> str:
        """The text of a line, without its line break."""
        return self._source[self.line_start(line) : self._lines.end(line)]

    def content(self, text: str, first_line: int) -> Content:
        """Find in the document the lines of a block's text, as markdown-it cut it out.

        It takes quote marks and white space off the beginning of lines, may expand tabs there, and trims paragraphs;
        what is left of a line is always the end of it.
        """
        lines = text.split("\n")
        begins = [0, *accumulate(len(line) + 1 for line in lines)][: len(lines)]
        shifts = []
        for number, (begin, line) in enumerate(zip(begins, lines, strict=True), first_line):
            raw = self.line(number)
            kept = raw if raw.endswith(line.lstrip(" \t")) else raw.rstrip(MD_TRIM_CHARS)
            shifts.append(self.line_start(number) + len(kept) - len(line) - begin)
        return Content(text, begins, shifts)

    def paragraph(self, block: Block) -> Content:
        """The content of a paragraph."""
        # Lines of rare white space alone are no blank lines for CommonMark, but are trimmed away all the same.
        lines = block.content.split("\n")
        without_spare = block.last - len(lines)
        first = next((at for at in range(block.first, without_spare) if self._holds(at, lines)), without_spare)
        return self.content(block.content, first)

    def _holds(self, first_line: int, lines: Sequence[str]) -> bool:
        raw = (self.line(number).rstrip(MD_TRIM_CHARS) for number in count(first_line))
        return all(each.endswith(line.strip(MD_TRIM_CHARS)) for each, line in zip(raw, lines, strict=False))

    def heading_at(self, position: int) -> str:
        """The path of the last heading that begins at a position or before; empty above the first."""
        index = bisect_right(self.headings, position, key=lambda heading: heading.start)
        return self.headings[index - 1].path if index else ""

    def _headings(self) -> Iterator[tuple[int, int, str]]:
        for block in self.blocks:
            if block.kind == "heading":
                text = " ".join(plain(block.content, self.env).text.split())
                yield self.line_start(block.first), block.level, _ANCHOR.sub("", text)


def _with_paths(headings: Iterator[tuple[int, int, str]]) -> Iterator[Heading]:
    title: tuple[int, str] | None = None
    above: list[tuple[int, str]] = []
    for start, level, text in headings:
        own = (level, text)
        above = [*(heading for heading in above if heading[0] < level), own]
        if title is None and level == 1 and text:
            title = own
        named = [heading for heading in above if heading[1]]
        # `is`: a later heading with the title's words is a heading like any other.
        path = [heading[1] for heading in named if heading is not title] or [heading[1] for heading in named]
        yield Heading(start, level, text, _SEPARATOR.join(path))


def _lines_of_front_matter(text: str, lines: Lines) -> int:
    def line(number: int) -> str:
        return text[lines.start(number) : lines.end(number)]

    if line(0).rstrip() != "---" or not _KEY.match(line(1)):
        return 0
    closing = (n for n in range(2, len(lines)) if _FENCE_OF_FRONT_MATTER.fullmatch(line(n)))
    return next((n + 1 for n in closing), 0)
