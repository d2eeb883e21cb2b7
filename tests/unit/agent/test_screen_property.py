"""The screen over an answer, whatever the text and however it comes in pieces."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.team.links import link_rule
from agent_service.team.screen import MOST_HELD, AnswerScreen
from tests.support.attacks import EVIL, LINKS, Attack, foreign_links

ALLOWED = link_rule(["rosterlund.example", "app.example.org"])
KNOWLEDGE = sorted(Path(__file__).parents[3].joinpath("examples/knowledge").rglob("*.md"))

SNIPPETS = st.sampled_from(
    [
        *("a", "the ", "items", "x", "1", " ", "  ", "\n", ".", ",", ";", ":", "!", "*", "_", "|", "-", "=", '"', "'"),
        *("[", "]", "(", ")", "![", "](", "<", ">", "`", "```", "[9]", "[1]", "[12]", "[1", "9]", "[id]: "),
        *("http", "https:", "//", "/", "\\", "ht", "tps", "www.", EVIL, "rosterlund.example", "@", "?", "#", ":8080"),
        *(
            "&#58;",
            "&colon;",
            "&#x2F;",
            "&#47;",
            "&amp;",
            "&",
            "javascript:",
            "data:text/html,",
            "<img src=",
            "<a href=",
        ),
        *("\u200b", "\uff41", "\uff1a", "\uff0f", "\u3002", "\U0001f600", "\u00e9", "%2e", "{", "}"),
    ]
)
TEXTS = st.lists(SNIPPETS, max_size=14).map("".join)


def screened(pieces: Iterable[str]) -> tuple[str, int, int]:
    """What is shown of the pieces, the markers dropped and the links removed."""
    screen = AnswerScreen(lambda marker: marker in {1, 2}, ALLOWED)
    shown = "".join([*(screen.feed(piece) for piece in pieces), screen.end()])
    return shown, screen.dropped_markers, screen.removed_links


@given(TEXTS, st.lists(st.integers(0, 80), max_size=6))
def test_how_a_text_is_cut_makes_no_difference(text: str, places: list[int]) -> None:
    cuts = [0, *sorted(places), len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]

    assert screened(pieces) == screened([text])
    assert screened(text) == screened([text])


@pytest.mark.parametrize("attack", LINKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_no_cut_lets_a_foreign_link_through(attack: Attack, size: int) -> None:
    text = attack.says
    shown, _, removed = screened([text[at : at + size] for at in range(0, len(text), size)])

    assert attack.leads_away
    assert foreign_links(shown) == []
    assert removed >= 1


@pytest.mark.parametrize("path", KNOWLEDGE, ids=lambda path: path.stem)
def test_documents_of_the_house_pass_as_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    shown, dropped, removed = screened([text[at : at + 5] for at in range(0, len(text), 5)])

    assert (shown, dropped, removed) == (text, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "and/or, 1/2, 12:30, a < b, List<int>, Map<String, List<int>>, x > y",
        "// comment\nint a; /* b */",
        "data: nothing, note: see, JavaScript: the good parts",
        "C:\\path\\file, ada@rosterlund.example, std::vector<int>",
        "AT&T, R&D, a && b, &c",
        "https:// and http://, then nothing",
        "See https://api.rosterlund.example/v2?a=1&b=2#c, or http://ROSTERLUND.example:8443/.",
        '{"url":"https://app.example.org","x":1}',
        "[Plans](plans.md#prices), [page](../billing/refunds.md)",
        "[docs](https://api.rosterlund.example/v2 'API')",
        "<https://api.rosterlund.example/v2>",
        "https://api.rosterlund.example/v2?a=1&amp;b=2, `https://api.rosterlund.example/v2`\\",
        "`items[9]`, items[9].price, f[9](x)",
        "```\nx = [9]\n```",
        "[12a], [], [1234], [-1], [x]",
    ],
)
def test_what_is_harmless_passes_as_it_is(text: str) -> None:
    assert screened([text]) == (text, 0, 0)
    assert screened(text) == (text, 0, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It costs 40 EUR [9].", "It costs 40 EUR."),
        ("It costs 40 EUR[9].", "It costs 40 EUR."),
        ("It costs 40 EUR [9] and more.", "It costs 40 EUR and more."),
        ("It costs 40 EUR [1][9].", "It costs 40 EUR [1]."),
        ("It costs 40 EUR [9]", "It costs 40 EUR"),
        ("(see [9])", "(see)"),
    ],
)
def test_a_marker_without_a_source_goes_with_the_space_before_it(text: str, shown: str) -> None:
    assert screened([text]) == (shown, 1, 0)
    assert screened(text) == (shown, 1, 0)


def test_a_source_that_comes_while_the_answer_is_written_counts_from_then_on() -> None:
    sources: set[int] = set()
    screen = AnswerScreen(sources.__contains__, ALLOWED)

    first = screen.feed("Forty [3]. ")
    sources.add(3)
    second = screen.feed("Fifty [3].") + screen.end()

    assert (first + second, screen.dropped_markers) == ("Forty. Fifty [3].", 1)


@pytest.mark.parametrize("word", ["It", " costs", "a", "plain", "40", "EUR", "na\u00efve", "\u4ef7\u683c"])
def test_a_plain_word_is_shown_at_once(word: str) -> None:
    assert AnswerScreen(lambda _: False, ALLOWED).feed(word) == word


@pytest.mark.parametrize("endless", ["https://", "[x](", "<a ", "&", "[", "`[9", "//", "x" * 8, "\u4f60"])
def test_what_is_held_is_bounded(endless: str) -> None:
    screen = AnswerScreen(lambda _: False, ALLOWED)
    fed = shown = 0
    for piece in [endless, *(["y"] * 4 * MOST_HELD)]:
        fed += len(piece)
        shown += len(screen.feed(piece))
        assert fed - shown <= 2 * MOST_HELD + len(endless)
        if screen.removed_links:
            break
