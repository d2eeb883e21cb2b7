"""The blocks of a Markdown document, slim: what markdown-it says of them, without its tokens.

A token is half a dozen objects that the garbage collector walks through while everything else stands still. They are
made for a window of the document at a time and let go: 2 MiB of text stop the event loop for 40 ms instead of 140.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from markdown_it.token import Token
from markdown_it.utils import EnvType

from agent_service.ingestion.inline import PARSER

BYTE_ORDER_MARK = "\ufeff"

# What markdown-it takes for the end of a line; `str.splitlines` knows more.
_LINE_END = re.compile(r"\r\n?|\n")
_WINDOW = 64 * 1024


class Lines:
    """Where the lines of a text begin and end, in code points. A byte order mark stands before the first line."""

    def __init__(self, text: str) -> None:
        breaks = [match.span() for match in _LINE_END.finditer(text)]
        self._length = len(text)
        self._starts = [int(text.startswith(BYTE_ORDER_MARK)), *(end for _, end in breaks)]
        self._ends = [*(start for start, _ in breaks), len(text)]

    def start(self, line: int) -> int:
        """Where a line begins; the end of the text for lines behind the last."""
        return self._starts[line] if line < len(self._starts) else self._length

    def end(self, line: int) -> int:
        """Where a line ends, without its line break."""
        return self._ends[line] if line < len(self._ends) else self._length

    def from_position(self, position: int) -> int:
        """The first line that begins at a position or behind it."""
        return bisect_left(self._starts, position)

    def starts(self, start: int, end: int) -> Sequence[int]:
        """Where those lines begin that begin inside a range, after its start."""
        return self._starts[bisect_right(self._starts, start) : bisect_right(self._starts, end - 1)]

    def __len__(self) -> int:
        return len(self._starts)


@dataclass(slots=True)
class Block:
    """A block of a document. `kind`: markdown-it's, without "_open". `first`, `last`: its lines, the last excluded.

    `content`: the inline text of a paragraph, heading or cell, the text of code or HTML; the others have `children`.
    """

    kind: str
    first: int
    last: int
    level: int = 0
    content: str = ""
    children: list["Block"] = field(default_factory=list)


def parse(source: str, lines: Lines, first_line: int, env: EnvType, smallest: int = _WINDOW) -> Iterator[Block]:
    """The blocks of a document from a line on, at the outermost level.

    Args:
        source: the text, without NUL characters.
        lines: its lines.
        first_line: where to begin.
        env: gathers the link references; complete when the last block is out.
        smallest: characters parsed at a time; twice as many as long as they are all of one block.
    """
    window = smallest
    while first_line < len(lines):
        behind = lines.from_position(lines.start(first_line) + window)
        tokens = PARSER.parse(source[lines.start(first_line) : lines.start(behind)], env)
        blocks = _slim(tokens, first_line)
        if behind >= len(lines):
            yield from blocks
            return
        # What follows can only change the last block: the next window begins with it.
        yield from blocks[:-1]
        window = smallest if len(blocks) > 1 else 2 * window
        first_line = blocks[-1].first if blocks else first_line


def _slim(tokens: Iterable[Token], first_line: int) -> list[Block]:
    root = Block("root", 0, 0)
    above = [root]
    for token in tokens:
        if token.type == "inline":
            above[-1].content = token.content
        elif token.nesting < 0:
            above.pop()
        else:
            # Cells have no lines of their own: theirs are those of the row.
            first, last = (first_line + line for line in token.map) if token.map else (above[-1].first, above[-1].last)
            level = int(token.tag[1]) if token.type == "heading_open" else 0
            block = Block(token.type.removesuffix("_open"), first, last, level, token.content)
            above[-1].children.append(block)
            if token.nesting > 0:
                above.append(block)
    return root.children
