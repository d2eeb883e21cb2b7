"""Chunks tile a document, begin at its headings and keep its sentences whole."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_service.ingestion.blocks import Lines, parse
from agent_service.ingestion.chunk import MAX, Chunk, chunk
from agent_service.ingestion.outline import Outline
from agent_service.ingestion.sentences import MAX_SENTENCE

# Every word in here has once been trouble to some reader of Markdown.
WORDS = st.sampled_from(
    (
        *("Pro", "costs", "EUR 9.95.", "e.g.", "v2.1", "naïve", "😀", "Yes.", "…", "日本語。次", "“Q. R.”", "(p. q)"),
        *("`x. Y`", "**bold.**", "*it*", '[l](u "t. U")', "![alt. A](i)", "[l]", "[^1]", "https://a.b/c.d?", "a|b"),
        *("<b>t</b>", "<br>", "<!-- c. -->", "&amp;", "\\*", "_", "[", "]", "**", "`", "~~x~~"),
        *("\u2028", "\u00a0", "\x0b", "\x85", "\t", "\0", "\ufeff"),
    )
)
LINE = st.lists(WORDS, max_size=8).map(" ".join)
LONG_LINE = st.builds(str.__mul__, st.sampled_from(("x", "ab ", "A b. ", "😀", "| c ")), st.integers(300, 2_000))
PREFIX = st.sampled_from(
    (
        *(
            "",
            "",
            "",
            "# ",
            "## ",
            "### ",
            "- ",
            "  - ",
            "    ",
            "1. ",
            "> ",
            "> - ",
            "> > ",
            "\t",
            "- [ ] ",
            "| ",
            "   ",
        ),
        "> [!NOTE] ",
    )
)
MARKS = st.sampled_from(
    (
        *("", "", "", "---", "===", "***", "...", "```", "~~~ py", "> ```", "- ```", "# A {#a}", "## B ##", "title: x"),
        *("|---|---|", "|a|b|", "<div>", "</div>", "<!--", "-->", "<script>", "</script>", "<pre>", "[l]: /u 't'"),
        "[^1]: note",
    )
)
LINES = st.lists(st.one_of(st.builds(str.__add__, PREFIX, LINE), MARKS, LONG_LINE), max_size=25)
BREAKS = st.sampled_from(("\n", "\n", "\n", "\n\n", "\r\n", "\r"))
MARKDOWN = LINES.flatmap(
    lambda lines: st.lists(BREAKS, min_size=len(lines), max_size=len(lines)).map(
        lambda breaks: "".join(line + end for line, end in zip(lines, breaks, strict=True))
    )
)
DOCUMENTS = st.one_of(
    MARKDOWN,
    MARKDOWN.map(str.rstrip),
    MARKDOWN.map("\ufeff".__add__),
    MARKDOWN.map("---\ntitle: x\n---\n".__add__),
    st.text(max_size=400),
    st.text(alphabet="#-|>`*_[]()<!&;:. \n\r\tAb1\u2028😀", max_size=200),
)


def assert_sound(text: str, found: list[Chunk]) -> None:
    """What holds of the chunks of every text."""
    assert "".join(each.text for each in found) == text
    assert [each.span.start for each in found] == [0, *(each.span.end for each in found)][: len(found)]
    for each in found:
        assert text[each.span.start : each.span.end] == each.text
        assert 0 < len(each.text) <= MAX
        end = each.span.start
        for sentence in each.sentences:
            assert end <= sentence.span.start < sentence.span.end <= each.span.end
            end = sentence.span.end
            quote = text[sentence.span.start : sentence.span.end]
            assert quote == quote.strip()
            assert len(quote) <= MAX_SENTENCE
            assert sentence.heading == each.heading
            assert any(map(str.isalnum, sentence.text))
            assert sentence.text.strip("\n") == sentence.text


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(DOCUMENTS)
@example("\ufeff# T\r\n\r\nA b.\r\nC d.")
@example("> " * 30 + "deep")
@example("---\ntitle: x\n---")
@example("A. B " * 2_000)
@example("x" * 10_000)
@example("\r\n" * 3_000)
@example("- " + " " * 1_500 + "a\n" + " " * 1_590 + "b" * 1_300)
def test_chunks_tile_any_text_and_keep_sentences_whole(text: str) -> None:
    assert_sound(text, chunk(text))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(DOCUMENTS)
def test_chunks_begin_at_every_heading_behind_something_quotable(text: str) -> None:
    found = chunk(text)
    starts = {each.span.start for each in found}
    ends = [sentence.span.end for each in found for sentence in each.sentences]
    headings = [0, *(heading.start for heading in Outline(text).headings)]
    for before, start in pairwise(headings):
        if any(before < end <= start for end in ends):
            assert start in starts


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(DOCUMENTS, st.integers(1, 200))
def test_blocks_are_the_same_however_much_is_parsed_at_a_time(text: str, window: int) -> None:
    source = text.replace("\0", "\ufffd")

    parsed = list(parse(source, Lines(source), 0, {}, window))

    assert parsed == list(parse(source, Lines(source), 0, {}))


def test_chunk_of_nothing_is_nothing() -> None:
    assert chunk("") == []


def headings(text: str) -> list[str]:
    return [each.heading for each in chunk(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Just text.", [""]),
        ("# Title\n\nIntro.", ["Title"]),
        ("# Title\n\nIntro.\n\n## A\n\nText.\n\n### B\n\nText.\n\n## C\n\nText.", ["Title", "A", "A > B", "C"]),
        ("Before.\n\n# Title\n\nText.\n\n# Other\n\nText.\n\n## Deep\n\nText.", ["", "Title", "Other", "Other > Deep"]),
        ("Title\n=====\n\nText.\n\nA *b* `c`\n---\n\nText.\n", ["Title", "A b c"]),
        ("## A {#anchor}\n\nText.\n\n## [B](x.md) ##\n\nText.", ["A", "B"]),
        ("# T\n\n## A\n\n### B\n\nText.", ["A > B"]),
        ("#\n\n# T\n\nText.\n\n##\n\nText.", ["T", "T"]),
        ("# T\n\nText.\n\n# T\n\nText.", ["T", "T"]),
        ("### A\n\nText.\n\n# T\n\nText.\n\n## B\n\nText.", ["A", "T", "B"]),
        ("```\n# no heading\n```\n\n> # nor this\n>\n> Text.", [""]),
        ("- # nor this\n\n      code", [""]),
        ("\ufeff# T\n\nText.", ["T"]),
        ("---\ntitle: x\ntags: [a]\n---\n# T\n\nText.", ["T"]),
        ("\ufeff---\r\ntitle: x\r\n...\r\n\r\n# T\r\n\r\nText.", ["T"]),
        ("---\ntitle: x\n\nnever closed\n\n# T\n\nText.", ["", "T"]),
        ("---\n\nText\n---\n\nMore.", ["Text"]),
        ("# T\n\nText.\n\n## Last\n", ["T", "Last"]),
        ("## A\n\n<!-- empty -->\n\n## B\n\nText.", ["B"]),
    ],
)
def test_chunk_headings(text: str, expected: list[str]) -> None:
    assert headings(text) == expected
