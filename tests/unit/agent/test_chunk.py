"""Chunks tile a document, begin at its headings and keep its sentences whole."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_service.ingestion.blocks import Lines, parse
from agent_service.ingestion.chunk import MAX_CHARACTERS, Chunk, chunk
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
        assert 0 < len(each.text) <= MAX_CHARACTERS
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


def texts(text: str) -> list[str]:
    return [each.text for each in chunk(text)]


def paragraph(length: int) -> str:
    """A paragraph of sentences, with the blank line behind it."""
    return ("Some words of it end here. " * (length // 27 + 1))[: length - 3] + ".\n\n"


def test_section_that_is_hardly_longer_than_the_target_stays_whole() -> None:
    document = "## A\n\n" + paragraph(500) + paragraph(600)

    assert texts(document) == [document]


def test_long_section_is_cut_between_blocks_near_the_target() -> None:
    blocks = [paragraph(400) for _ in range(6)]

    assert texts("".join(blocks)) == ["".join(blocks[:2]), "".join(blocks[2:4]), "".join(blocks[4:])]


def test_block_up_to_the_maximum_stays_whole() -> None:
    blocks = [paragraph(300), paragraph(1_500), paragraph(300)]

    assert texts("".join(blocks)) == blocks


def test_words_that_introduce_code_stay_with_it() -> None:
    blocks = [paragraph(850), "Run this:\n\n", "```\n" + "code()\n" * 60 + "```\n"]

    assert texts("".join(blocks)) == [blocks[0], "".join(blocks[1:])]


def test_long_paragraph_is_cut_between_sentences() -> None:
    found = texts(paragraph(4_000))

    assert all(500 <= len(each) <= MAX_CHARACTERS for each in found)
    assert all(each.startswith("Some") for each in found)


def test_long_list_is_cut_between_items() -> None:
    found = texts("".join(f"- Item {number} of a list.\n\n  It has two paragraphs.\n" for number in range(80)))

    assert len(found) > 3
    assert all(each.startswith("- Item") for each in found)


def test_long_code_is_cut_between_its_pieces() -> None:
    found = texts("```\n" + "".join(f"line_{number:03} = {number}\n" for number in range(300)) + "```\n")

    assert len(found) > 3
    assert all(each.startswith("line_") for each in found[1:])


def test_long_quote_is_cut_with_its_marks() -> None:
    found = texts("".join(f"> {line}\n>\n" for line in paragraph(3_000).strip().split(". ")))

    assert len(found) > 2
    assert all(each.startswith("> ") for each in found)


def test_table_row_longer_than_a_chunk_is_cut_somewhere() -> None:
    document = "| A | B |\n|---|---|\n| " + "word " * 1_000 + "| x |\n| y | z |\n"

    found = chunk(document)

    assert_sound(document, found)
    assert len(found) > 3
    assert found[-1].sentences[-1].text == "A: y; B: z"


def test_comment_longer_than_a_chunk_is_cut_at_a_line() -> None:
    found = texts("<!--\n" + "a comment that nobody quotes\n" * 100 + "-->\n\nText.\n")

    assert len(found) == 2
    assert all(each.endswith("\n") for each in found)
