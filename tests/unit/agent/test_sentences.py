"""The quotable sentences: where they end, what they say alone, and that their quotes stand in the document."""
# ruff: noqa: RUF001 - dashes and quotation marks as people type them

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_service.ingestion.chunk import chunk
from agent_service.ingestion.inline import plain
from agent_service.ingestion.outline import Outline
from agent_service.ingestion.prose import sentence_ranges
from agent_service.ingestion.sentences import MAX_SENTENCE, quotes


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_ranges(text)]


def lines(*each: str) -> str:
    return "".join(f"{line}\n" for line in each)


def texts(document: str) -> list[str]:
    return [sentence.text for each in chunk(document) for sentence in each.sentences]


def quoted(document: str) -> list[str]:
    found = [sentence.span for each in chunk(document) for sentence in each.sentences]
    return [document[span.start : span.end] for span in found]


@pytest.mark.parametrize(
    "sentences",
    [
        ["We sell three plans.", "All of them are monthly."],
        ["Is it free of charge?", "No, it is not free!", "Really, it is not…", "You pay for it."],
        ["It costs EUR 99.95 a month.", "That is version v2.1 of api.example.com/v1.", "See config.yaml. it is there."],
        ["Use a card, e.g. Visa, i.e. a Credit card vs. Cash.", "Others are refused."],
        ["Ask Dr. Smith or Prof. Jones of Acme Inc. about No. 5 in Fig. 3.", "They know it all."],
        ["We are Acme Inc. in Berlin.", "We were Acme Ltd.", "The name was changed."],
        ["Plan B is for J. Smith.", "Plan C is in the U.S. Senate.", "This is by 5 p.m.", "If not, call."],
        ["The answer is no. 5 is too many.", "The answer is no.", "You cannot do it."],
        ["She said “Stop. Go on.” to him.", "He said “Never.”", "They left (see p. 4. Or do not).", "That was it."],
        ['He wrote "Wait. Then go." and left.', '5" and 6" screens.', "That is all there is."],
        ["“Is it new?” asks everybody.", "“It is new!” we answer.", "«Non. Oui.» dit-il."],
        ["Wait... what is this?", "Nothing at all..."],
        ["1. Open the settings.", "Click on the button."],
        ["Yes. You can do that.", "Your data stays. Good."],
        ["Read https://example.com/a.b?c=d. for more.", "Then write to foo@example.com."],
        ["これは日本語の文章です、はい。", "これは次の文章です、いいえ。"],
    ],
    ids=lambda sentences: sentences[0][:24],
)
def test_prose_is_split_where_sentences_end(sentences: list[str]) -> None:
    joiner = "" if sentences[0].endswith("。") else " "

    assert split(joiner.join(sentences)) == sentences


@pytest.mark.parametrize("text", ["", "  \n", "\u2028"])
def test_prose_of_white_space_has_no_sentences(text: str) -> None:
    assert split(text) == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="aB1 .!?…\"'“”()。\n\u2029\u2028", max_size=120) | st.text(max_size=80))
def test_prose_is_covered_by_its_sentences(text: str) -> None:
    ranges = sentence_ranges(text)

    assert ranges == sorted(ranges)
    covered = "".join(text[start:end] for start, end in ranges)
    assert "".join(covered.split()) == "".join(text.split())
    assert all(text[start:end] == text[start:end].strip() for start, end in ranges)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab *_`[]()<>!\\&;\n#^", max_size=60))
def test_plain_text_knows_where_each_character_comes_from(content: str) -> None:
    made = plain(content, {})

    assert len(made.text) == len(made.at)
    assert list(made.at) == sorted(made.at)
    for character, at in zip(made.text, made.at, strict=True):
        # Breaks, tags and entities become other characters.
        assert character == content[at] or character == " " or content[at] in "&\\"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a **b** *c* __d__ _e_ `f` snake_case", "a b c d e f snake_case"),
        ('[the *docs*](http://x.y/z "t"), ![alt *x*](i.png) and <https://a.b>', "the docs, alt x and https://a.b"),
        ("[a][r], [r][], [r] and [s]", "a, r, r and [s]"),
        ("`` a`b `` and ` c `, ` `, `a\nb`", "a`b and c,  , a b"),
        ("&amp; &copy; &#x41; &nosuch; \\* \\a", "& © A &nosuch; * \\a"),
        ("a<br>b<!-- c --><b>d</b>", "a  bd"),
        ("a  \nb\\\nc\nd", "a b c d"),
        ("note[^1] and `x[^2]`[^3].", "note and x."),
        ("~~EUR 10~~ EUR 8", "~~EUR 10~~ EUR 8"),
        ("*" * 12_000, "*" * 12_000),
        ("[" * 60 + "*a*", "[" * 60 + "*a*"),
    ],
)
def test_plain_text_is_free_of_markup(content: str, expected: str) -> None:
    assert plain(content, {"references": {"R": {"href": "/u", "title": ""}}}).text == expected


def test_paragraph_is_split_into_sentences_without_markup() -> None:
    document = lines(
        "We sell **plans.** See [the",
        '*price* page](p.md "All. Prices") for',
        "more. **Bold one. Bold two** ends. `a. B` is code.",
    )

    assert texts(document) == [
        "We sell plans.",
        "See the price page for more.",
        "Bold one. Bold two ends.",
        "a. B is code.",
    ]
    assert quoted(document) == [
        "We sell **plans.**",
        'See [the\n*price* page](p.md "All. Prices") for\nmore.',
        "**Bold one. Bold two** ends.",
        "`a. B` is code.",
    ]


def test_bold_beginning_stays_with_its_paragraph() -> None:
    assert texts("**Refund period.** We refund within 14 days. Later we do not.") == [
        "Refund period. We refund within 14 days.",
        "Later we do not.",
    ]


def test_break_tags_part_sentences() -> None:
    document = "One sentence here.<br>Another sentence<br/>goes on here."

    assert quoted(document) == ["One sentence here.", "Another sentence<br/>goes on here."]
    assert texts(document)[1] == "Another sentence goes on here."


def test_table_rows_name_their_columns() -> None:
    document = lines(
        "| Plan | Price | SSO |",
        "|:-----|------:|:---:|",
        "| **Enterprise** | EUR 49 | yes |",
        "|Pro \\| Team||[no](x.md)|",
        "| - | – | |",
        "| Basic |",
    )

    assert texts(document) == [
        "Plan: Enterprise; Price: EUR 49; SSO: yes",
        "Plan: Pro | Team; SSO: no",
        "Plan: -; Price: –",
        "Plan: Basic",
    ]
    assert quoted(document)[:2] == ["| **Enterprise** | EUR 49 | yes |", "|Pro \\| Team||[no](x.md)|"]


def test_table_with_an_unnamed_first_column_has_its_cells_for_subjects() -> None:
    document = lines("> |  | Basic | |", "> |---|---|---|", "> | SSO | no | soon |", "> | Seats | | |", "> || 5 | |")

    assert texts(document) == ["SSO – Basic: no; soon", "Seats", "Basic: 5"]
    assert quoted(document)[0] == "| SSO | no | soon |"


def test_table_rows_begin_with_the_words_that_introduce_the_table() -> None:
    document = lines("Prices a *month*:", "", "| Plan | Price |", "|---|---|", "| Basic | EUR 9 |", "| Pro | EUR 29 |")

    assert texts(document) == ["Prices a month: Plan: Basic; Price: EUR 9", "Prices a month: Plan: Pro; Price: EUR 29"]
    assert quoted(document) == [document[: document.index("\n| Pro")], "| Pro | EUR 29 |"]


def test_question_does_not_introduce_a_table() -> None:
    assert texts("How much?\n\n| Price |\n|---|\n| EUR 9 |\n") == ["How much?", "Price: EUR 9"]


def test_introduction_of_an_empty_table_or_list_stands_alone() -> None:
    assert texts("Prices a month:\n\n| Price |\n|---|\n\nWe accept:\n\n-\n") == ["Prices a month:", "We accept:"]


def test_table_without_rows_has_no_sentences() -> None:
    assert texts("| Plan | Price |\n|---|---|\n") == []


def test_rows_of_a_split_table_still_name_their_columns() -> None:
    rows = "".join(f"| Region {number} | EUR {number}.00 and some more words about it |\n" for number in range(60))
    document = f"# T\n\n## Prices\n\n| Region | Monthly price |\n|---|---|\n{rows}"

    found = chunk(document)

    assert len(found) > 2
    assert all(sentence.text.startswith("Region: Region ") for each in found for sentence in each.sentences)
    assert [each.context for each in found] == ["", *["Region Monthly price"] * (len(found) - 1)]
    assert {each.heading for each in found} == {"Prices"}


def test_list_items_begin_with_the_words_that_introduce_the_list() -> None:
    document = lines(
        *("We accept these. They are listed:", "", "- Credit cards (Visa,", "  Mastercard),", "- *SEPA* debit; and"),
        *("- bank transfer.", "", "Others not."),
    )

    assert texts(document) == [
        "We accept these.",
        "They are listed: Credit cards (Visa, Mastercard)",
        "They are listed: SEPA debit",
        "They are listed: bank transfer.",
        "Others not.",
    ]
    assert quoted(document)[1:3] == ["They are listed:\n\n- Credit cards (Visa,\n  Mastercard),", "*SEPA* debit; and"]


def test_list_without_an_introduction_stands_alone() -> None:
    assert texts("Some words.\n\n1. Open it. Then close it.\n2) Done here\n\n* [ ] To do\n* [x] Well done") == [
        "Some words.",
        "Open it. Then close it.",
        "Done here",
        "To do",
        "Well done",
    ]


def test_nested_items_stand_apart_and_know_the_item_above() -> None:
    document = lines(
        *("- Basic", "  - 5 seats", "- Pro:", "  - 10 seats", "  - SSO", "- Enterprise is big.", "  - no limit"),
        *("- Need more?", "  - Call us"),
    )

    assert texts(document) == [
        "Basic",
        "Basic: 5 seats",
        "Pro: 10 seats",
        "Pro: SSO",
        "Enterprise is big.",
        "no limit",
        "Need more?",
        "Need more? Call us",
    ]


def test_long_introduction_is_not_repeated() -> None:
    introduction = "This is a sentence that goes on for a long while before it comes to an end " * 3 + "here:"

    assert texts(f"{introduction}\n\n- one item\n- two items") == [introduction, "one item", "two items"]


def test_introduction_stays_where_the_first_item_has_no_words() -> None:
    assert texts("We accept:\n\n- ```\n  code\n  ```\n- cash") == ["We accept:", "code", "We accept: cash"]


def test_introduction_far_from_its_list_is_not_joined_to_it() -> None:
    assert quoted("We accept:" + "\n" * 1_300 + "- cash") == ["We accept:", "cash"]


def test_long_items_are_split_into_sentences() -> None:
    first, second = "First " + "word " * 40 + "end.", "Second " + "word " * 40 + "end."

    assert texts(f"Rules:\n\n- {first} {second}\n\n  Third paragraph.\n") == [
        f"Rules: {first}",
        second,
        "Third paragraph.",
    ]


def test_code_block_is_one_sentence_and_keeps_its_lines() -> None:
    document = lines(
        *("Run:", "", "> ```sh", "> curl -X POST \\", ">   -d 'a. B'", "> ```", "", "    x = 1", "", "    y = 2", ""),
        *("```", "", "```"),
    )

    assert texts(document) == ["Run:", "curl -X POST \\\n  -d 'a. B'", "x = 1\n\ny = 2"]
    assert quoted(document)[1:] == ["curl -X POST \\\n>   -d 'a. B'", "x = 1\n\n    y = 2"]


def test_unclosed_code_block_ends_with_the_document() -> None:
    assert texts("~~~\na = 1") == ["a = 1"]


def test_long_code_block_is_split_at_blank_lines_then_at_lines() -> None:
    short = "def f():\n    return 1"
    long = "\n".join(f"value_{number} = {number}" for number in range(60))
    endless = "x" * 700

    parts = texts(f"```\n{short}\n\n\n{long}\n\n{endless}\n```")

    assert parts[0] == short
    assert "\n".join(parts[1:-1]) == long
    assert all(len(part) <= 600 for part in parts[:-1])
    assert parts[-1] == endless


def test_html_is_read_as_text_and_never_as_markup() -> None:
    document = lines(
        '<div class="x"><p>First &amp; foremost, a sentence. Then <b>another</b> one.</p><ul>',
        *(
            "<li>An item of a list</li>",
            "</ul>",
            "<!-- not this --></div>",
            "",
            "<script>",
            "alert('no')",
            "",
            "not this",
            "</script>",
            "",
        ),
        *("<style>p {}</style>", "", "<!-- a", "", "b -->"),
    )

    assert texts(document) == ["First & foremost, a sentence.", "Then another one.", "An item of a list"]
    assert quoted(document) == ["First &amp; foremost, a sentence.", "Then <b>another</b> one.", "An item of a list"]


def test_quotes_lose_their_marks_in_the_text_only() -> None:
    document = lines("> [!WARNING]", "> Data is lost. It **cannot", "> be** restored.", ">", "> - Keep a", "copy")

    assert texts(document) == ["Data is lost.", "It cannot be restored.", "Keep a copy"]
    assert quoted(document) == ["Data is lost.", "It **cannot\n> be** restored.", "Keep a\ncopy"]


def test_what_says_nothing_is_no_sentence() -> None:
    document = lines(
        *("---", "title: x", "---", "# H", "", "***", "", "[a]: /u 'Title'", "", "…", "", "![](x.png)", "", "---", ""),
        *("> # Quoted heading", "", "Text.[^1]", "", "[^1]: A note on it."),
    )

    assert texts(document) == ["Text.", "A note on it."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spans_hold_with_every_line_end(end: str) -> None:
    document = "\ufeff# T\n\nOne 😀 two\u2028three.\nFour five\n  six seven.\n\n-\ttab item\n- other\n".replace(
        "\n", end
    )

    assert quoted(document) == ["One 😀 two\u2028three.", f"Four five{end}  six seven.", "tab item", "other"]
    assert texts(document) == ["One 😀 two three.", "Four five six seven.", "tab item", "other"]


def test_lines_of_rare_white_space_shift_nothing() -> None:
    document = "1. \u2028\n.\nPro costs EUR 9.\n\n> \u2003\nTeam costs EUR 19.\n"

    assert quoted(document) == [".\nPro costs EUR 9.", "Team costs EUR 19."]


@pytest.mark.parametrize(
    "document",
    [
        "word " * 2_000,
        "x" * 5_000,
        "| a | b |\n|---|---|\n| " + "cell words " * 500 + "| x |\n",
        "```\n" + "x" * 5_000 + "\n```\n",
        "- [a](" + "u" * 3_000 + ") b\n",
        "<p>" + "word " * 1_000 + "</p>\n",
    ],
    ids=["words", "letters", "row", "code", "link", "html"],
)
def test_sentences_without_an_end_are_cut(document: str) -> None:
    found = quotes(Outline(document))

    assert len(found) > 2
    assert all(0 < quote.span.end - quote.span.start <= MAX_SENTENCE for quote in found)
    joined = "".join(document[quote.span.start : quote.span.end] for quote in found)
    assert len("".join(joined.split())) > 0.9 * len("".join(document.split()))


def test_sentences_carry_the_heading_of_their_passage() -> None:
    found = chunk("# T\n\nA b.\n\n## S\n\n### U\n\nC d.\n")

    assert [[sentence.heading for sentence in each.sentences] for each in found] == [["T"], ["S > U"]]
