"""Inline Markdown as readable text that still knows where it came from.

markdown-it parses the markup but forgets positions inside a line; the parser here is its own, with a note of the
position on every token. What blocks a document consists of is the business of `outline`.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from markdown_it import MarkdownIt
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType

Range = tuple[int, int]

_POSITION = "at"
# Not strikethrough: a struck price without its tildes would say the contrary.
_RULES = ["autolink", "backticks", "emphasis", "entity", "escape", "html_inline", "image", "link", "newline", "text"]
_MARKUP = re.compile(r"[\\`*_\[<&]")
_LINE_BREAK_TAG = re.compile(r"<br\s*/?>", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[\^[^\]\s]{1,64}\]")
# What has more is no prose. Finding out what is a link takes time for each bracket, and what is bold more than that.
_MAX_MARKUP = 10_000
_MAX_BRACKETS = 16
_CHARACTERS_PER_BRACKET = 10


class _State(StateInline):
    """Notes on each token, under `meta["at"]`, where in the source the rule that made it began."""

    step = 0
    pending_from = 0
    pushed = 0

    def pushPending(self) -> Token:  # noqa: N802 - markdown-it's name
        token = super().pushPending()
        token.meta[_POSITION] = self.pending_from
        return token

    def push(self, ttype: str, tag: str, nesting: Literal[-1, 0, 1]) -> Token:
        token = super().push(ttype, tag, nesting)
        # A run of asterisks is one step of the parser and one token for each.
        token.meta[_POSITION] = self.step + self.pushed
        self.pushed += 1
        return token


class _PositionedInline(ParserInline):
    def __init__(self) -> None:
        super().__init__()
        self.ruler.enableOnly(_RULES)
        # Without `fragments_join`: it merges tokens and so loses positions.
        self.ruler2.enableOnly(["balance_pairs", "emphasis"])

    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens

    def tokenize(self, state: StateInline) -> None:
        """As in markdown-it, with the position of each step noted; links call it again for their text."""
        state = cast("_State", state)
        rules = self.ruler.getRules("")
        nesting = state.md.options["maxNesting"]
        while state.pos < state.posMax:
            state.step, state.pushed = state.pos, 0
            if not state.pending:
                state.pending_from = state.pos
            if state.level >= nesting or not any(rule(state, False) for rule in rules):  # noqa: FBT003 - its signature
                state.append_pending(state.src[state.pos])
                state.pos += 1
        if state.pending:
            state.pushPending()


class MarkdownParser(MarkdownIt):
    """CommonMark with tables; parses blocks, and inline text on demand. Links are read, never judged or encoded."""

    def __init__(self) -> None:
        super().__init__("commonmark")
        self.enable("table")
        self.core.ruler.enableOnly(["normalize", "block"])
        self.inline = _PositionedInline()

    def normalizeLink(self, url: str) -> str:  # noqa: N802 - markdown-it's name
        """Leave a URL as it is: it is not shown, and percent-encoding costs time."""
        return url

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802 - markdown-it's name
        """Leave the text of an autolink as it is: it is quoted."""
        return link

    def validateLink(self, url: str) -> bool:  # noqa: ARG002, N802 - markdown-it's name
        """Take every link for one: nothing is rendered, only its text is kept."""
        return True


PARSER = MarkdownParser()


@dataclass(frozen=True, slots=True)
class Plain:
    """Inline Markdown without its markup.

    `at[i]` is where character `i` of `text` stands in the source, ascending. `whole` are ranges of `text`, ascending,
    inside which no sentence ends: code and links. `run_in` is the length of bold text at the very start.
    """

    text: str
    at: Sequence[int]
    whole: tuple[Range, ...] = ()
    run_in: int = 0


def plain(content: str, env: EnvType) -> Plain:
    """Strip the markup of inline Markdown: links become their text, images their alternative text, tags nothing.

    Args:
        content: the text of a paragraph, heading or cell, without block markup.
        env: what `PARSER.parse` left there: the link references of the document.
    """
    brackets = _MAX_BRACKETS + len(content) // _CHARACTERS_PER_BRACKET
    is_prose = len(content) <= _MAX_MARKUP and content.count("[") <= brackets
    if not is_prose or not _MARKUP.search(content):
        return Plain(content, range(len(content)))
    builder = _Builder()
    builder.add(PARSER.inline.parse(content, PARSER, env, []), content, 0)
    return builder.build()


class _Builder:
    def __init__(self) -> None:
        self._texts: list[str] = []
        self._at: list[int] = []
        self._whole: list[Range] = []
        self._run_in = 0
        self._opened: list[int] = []

    def add(self, tokens: Sequence[Token], source: str, base: int) -> None:
        """Append tokens of `source`, which begins at `base` of the whole."""
        for token in tokens:
            at = base + int(token.meta.get(_POSITION, 0))
            match token.type:
                case "text" | "text_special":
                    self._append(token.content, at)
                case "code_inline":
                    self._code(token, source, at - base, base)
                case "softbreak" | "hardbreak":
                    # A backslash before the line's end belongs to the break: the break is where the line ends.
                    self._append(" ", at + (source[at - base] == "\\"))
                case "html_inline" if _LINE_BREAK_TAG.fullmatch(token.content):
                    self._texts.append("  ")
                    self._at += (at, at + len(token.content) - 1)
                case "image":
                    self.add(token.children or [], token.content, at + len("!["))
                case _:
                    self._pair(token.type)

    def _pair(self, kind: str) -> None:
        here = len(self._at)
        match kind:
            case "link_open" | "strong_open":
                self._opened.append(here)
            case "link_close":
                self._whole.append((self._opened.pop(), here))
            case "strong_close":
                if self._opened.pop() == 0:
                    self._run_in = self._run_in or here

    def build(self) -> Plain:
        """What was appended, without references to footnotes."""
        made = Plain("".join(self._texts), self._at, tuple(sorted(self._whole)), self._run_in)
        return _without_footnotes(made) if _FOOTNOTE.search(made.text) else made

    def _code(self, token: Token, source: str, at: int, base: int) -> None:
        inner = at + len(token.markup)
        # CommonMark takes one space off both ends of code that has them.
        padded = source[inner : inner + len(token.content)].replace("\n", " ") != token.content
        start = len(self._at)
        self._append(token.content, base + inner + padded)
        self._whole.append((start, len(self._at)))

    def _append(self, text: str, at: int) -> None:
        self._texts.append(text)
        self._at.extend(range(at, at + len(text)))


def _without_footnotes(made: Plain) -> Plain:
    kept: list[int] = []
    end = 0
    for match in _FOOTNOTE.finditer(made.text):
        kept.extend(range(end, match.start()))
        end = match.end()
    kept.extend(range(end, len(made.text)))
    return Plain(
        "".join(made.text[i] for i in kept),
        [made.at[i] for i in kept],
        tuple((bisect_left(kept, start), bisect_left(kept, stop)) for start, stop in made.whole),
        bisect_left(kept, made.run_in),
    )
