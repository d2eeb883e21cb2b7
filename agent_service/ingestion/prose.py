"""Where sentences end, by rule. Works on readable text; knows no Markdown and no documents."""

# ruff: noqa: RUF001 - typographic quotation marks and full-width stops are what this module looks for

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from agent_service.ingestion.inline import Range

PARAGRAPH_SEPARATOR = "\u2029"

# A stop with the quotes and brackets that close after it, and white space; East Asian stops need none.
_STOP = re.compile(
    rf"""(?<![.!?…])[.!?…]++["'”’»›)\]]*+(?=\s|$)|(?<![。！？])[。！？]++["'”’»›)\]」』）]*+|{PARAGRAPH_SEPARATOR}"""
)
_WORD_BEFORE = re.compile(r"[^\s\"'“‘«‹(\[/—–]*$")
_OPENERS = re.compile(r"""["'“‘«‹(\[¿¡*_]{0,8}""")
_FIRST_WORD = re.compile(r"[^\W\d_]+(?:['’][a-z]+)?")
# What stands between brackets or quotes is not torn apart, unless it is so long that the pair is likely a mistake.
_PAIRS = re.compile(
    r"""\([^()\u2029]{0,300}\)|“[^“”\u2029]{0,300}”|«[^«»\u2029]{0,300}»|(?<![^\s(])"(?!\s)[^"\u2029]{0,300}"(?!\w)"""
)


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# These are never the last word of a sentence.
_ABBREVIATIONS = _words("e.g i.e eg ie vs cf viz dr mr mrs ms prof hon sgt capt messrs approx z.b d.h bzw ggf u.a")
# These are abbreviations in front of a number only: "No. 5", but "No. You cannot."
_BEFORE_NUMBERS = _words(
    "no nos nr fig figs eq sec sect art arts par para vol vols ch chap p pp pt v ver § ca jan feb mar apr jun jul aug",
    "sep sept oct nov dec",
)
# These may end a sentence: they do where one of `_STARTERS` follows.
_AMBIGUOUS = _words(
    "inc ltd co corp llc plc gmbh jr sr etc al bros ave blvd rd st mt gen col lt rev dept est min max avg incl excl",
    "resp a.m p.m ph.d u.s u.k e.u",
)
_STARTERS = _words(
    "A After All Although An And Any Are As At Because Before Both But By Can Do Does Each Either Every For From He",
    "Here How However I If In Is It Its Most My No None Not On Once One Only Or Other Our Please See She Since So",
    "Some Such Thank That The Their Then There These They This Those To Under Unless Until Use Users We What When",
    "Where Which While Who Why With Without Yes You Your",
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
# "Yes." and "Note!" say nothing alone: they stay with what follows.
_MIN_SENTENCE = 12
# Bold words before a paragraph, with a stop: its subject, not a sentence of it.
_MAX_RUN_IN = 40


def sentence_ranges(text: str, whole: Sequence[Range] = (), run_in: int = 0) -> list[Range]:
    """Split readable text into sentences.

    Args:
        text: readable text; white space of any kind separates words.
        whole: ranges, ascending, inside which no sentence ends.
        run_in: length of a bold beginning; it is not split off where it is short.

    Returns:
        Ranges of `text` in its order, without the white space around; empty where there is only white space.
    """
    starts = [0]
    begun = frozenset(start for start, _ in whole)
    after = 0
    for end in _stops(text, whole, run_in):
        if end < after:
            continue
        after = _skip_space(text, end)
        if after < len(text) and not _goes_on(text, starts[-1], end, after, code=after in begun):
            starts.append(after)
    ends = [*starts[1:], len(text)]
    trimmed = (_trim(text, start, end) for start, end in zip(starts, ends, strict=True))
    return _join_short(part for part in trimmed if part[0] < part[1])


def _stops(text: str, whole: Sequence[Range], run_in: int) -> Iterator[int]:
    closed = _merge([*whole, *(match.span() for match in _PAIRS.finditer(text))])
    begins = [start for start, _ in closed]
    for match in _STOP.finditer(text):
        end = match.end()
        around = bisect_right(begins, end - 1) - 1
        inside = around >= 0 and end < closed[around][1]
        if not inside and not (end == run_in <= _MAX_RUN_IN):
            yield end


def _goes_on(text: str, start: int, end: int, after: int, *, code: bool) -> bool:
    """Whether the sentence that began at `start` goes on behind the stop that ends at `end`."""
    before = text[max(start, end - 40) : end].rstrip("\"'”’»›)]」』）")
    if not before.endswith((".", "!", "?", "…")):
        return False
    opened = _OPENERS.match(text, after)
    following = text[(first := opened.end() if opened else after) : first + 40]
    if following[:1].islower() and not code:
        return True
    if before.endswith(("..", "!", "?", "…")):
        return False
    found = _WORD_BEFORE.search(before[:-1])
    word = found.group() if found else ""
    return _is_abbreviation(word, following) or (word.isdecimal() and word == before[:-1].strip())


def _is_abbreviation(word: str, following: str) -> bool:
    lower = word.lower()
    if lower in _ABBREVIATIONS:
        return True
    if lower in _BEFORE_NUMBERS:
        return following[:1].isdecimal()
    if lower in _AMBIGUOUS or _DOTTED.fullmatch(word) or (len(word) == 1 and word.isupper()):
        next_word = _FIRST_WORD.match(following)
        return next_word is None or next_word.group() not in _STARTERS
    return False


def _join_short(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, end in ranges:
        if joined and _is_short(joined[-1]):
            start = joined.pop()[0]  # noqa: PLW2901 - the range grows
        joined.append((start, end))
    if len(joined) > 1 and _is_short(joined[-1]):
        _, end = joined.pop()
        joined[-1] = (joined[-1][0], end)
    return joined


def _is_short(part: Range) -> bool:
    return part[1] - part[0] < _MIN_SENTENCE


def _merge(ranges: Iterable[Range]) -> list[Range]:
    """Union of ranges, ascending and disjoint."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _trim(text: str, start: int, end: int) -> Range:
    start = min(_skip_space(text, start), end)
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
