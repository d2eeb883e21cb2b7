"""Where an answer may lead: to the hosts that the roster names and their subdomains, and nowhere that only looks so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.team.links import link_rule

MAY_LEAD_TO = link_rule(["rosterlund.example", "app.example.org", "xn--rster-fua.example", "localhost"])


@pytest.mark.parametrize(
    "url",
    [
        "https://rosterlund.example",
        "http://rosterlund.example",
        "https://rosterlund.example/",
        "https://rosterlund.example/a/b.html?c=d&e=%20#f",
        "https://rosterlund.example?a=b",
        "https://rosterlund.example#a",
        "https://docs.rosterlund.example/a",
        "https://a.b.c.rosterlund.example",
        "https://rosterlund.example:443/a",
        "https://rosterlund.example:8443",
        "https://rosterlund.example./a",
        "https://rosterlund.example.:443/a",
        "HTTPS://ROSTERLUND.EXAMPLE/A",
        "https://Docs.Rosterlund.Example",
        "https://app.example.org/turns",
        "https://xn--rster-fua.example/",
        "http://localhost:3000/",
        "https://rosterlund.example/@evil.example",
        "https://rosterlund.example/?to=https://evil.example/",
        "https://rosterlund.example//evil.example",
        "https://rosterlund.example/größe_(a)",
    ],
)
def test_an_answer_may_lead_to_a_named_host(url: str) -> None:
    assert MAY_LEAD_TO(url)


@pytest.mark.parametrize(
    "url",
    [
        # Other hosts.
        "https://evil.example",
        "https://example.org",
        "https://example",
        "https://rosterlund",
        "https://evilrosterlund.example",
        "https://rosterlund.example.evil.example",
        "https://rosterlund.examples",
        "https://rosterlund-example",
        "https://rosterlund.example-evil.example",
        "https://evil.example/rosterlund.example",
        "https://evil.example?rosterlund.example",
        "https://evil.example#.rosterlund.example",
        # With a user.
        "https://rosterlund.example@evil.example",
        "https://rosterlund.example:443@evil.example/",
        "https://evil.example@rosterlund.example",
        "https://user:password@rosterlund.example/",
        "https://@rosterlund.example",
        # What browsers mend.
        "https://evil.example\\@rosterlund.example",
        "https://evil.example\\.rosterlund.example",
        "https://rosterlund.example\\a",
        "https://rosterlund.example/a\\b",
        "https:\\\\rosterlund.example",
        "https:rosterlund.example",
        "https:/rosterlund.example",
        "https:///rosterlund.example",
        "//rosterlund.example",
        "/\\rosterlund.example",
        "https://rosterlund.example\t.evil.example",
        "https://rosterlund.example\n",
        "https://rosterlund.example/\n",
        "https://rosterlund.example/a b",
        "https://rosterlund.example/\x00",
        "https://rosterlund.example/\x7f",
        "ht\ttps://rosterlund.example",
        " https://rosterlund.example",
        "https://rosterlund.example ",
        "https:// rosterlund.example",
        "https://rosterlund.example%2eevil.example",
        "https://%72osterlund.example",
        "https://evil.example%2f.rosterlund.example",
        # What ends an address in HTML.
        'https://rosterlund.example/"onload="x',
        "https://rosterlund.example/'x",
        "https://rosterlund.example/<b>",
        "https://rosterlund.example/`",
        # Other writings of a host.
        "https://rösterlund.example",
        "https://rosterlund。example",
        "https://rosterlund.example\uff0fevil.example",
        "https://\uff52osterlund.example",
        "https://rosterl\u200bund.example",
        "https://rosterlund.exampl\u0435",
        "https://[::1]",
        "https://[::ffff:127.0.0.1]/",
        "https://rosterlund.example[::1]",
        "https://127.0.0.1",
        "https://2130706433",
        # No host.
        "https://",
        "https:///",
        "https://.",
        "https://:443",
        "https://?rosterlund.example",
        "https://.rosterlund.example",
        "https://..rosterlund.example",
        "https://rosterlund..example",
        "https://rosterlund.example..",
        # No port.
        "https://rosterlund.example:",
        "https://rosterlund.example:x",
        "https://rosterlund.example:443x",
        "https://rosterlund.example:443:80",
        "https://rosterlund.example:123456",
        # Other schemes.
        "ftp://rosterlund.example",
        "ws://rosterlund.example",
        "javascript://rosterlund.example/%0aalert(1)",
        "data:text/html,https://rosterlund.example",
        "file://rosterlund.example/a",
        "blob:https://rosterlund.example/a",
        "view-source:https://rosterlund.example",
        "mailto:a@rosterlund.example",
        "httpss://rosterlund.example",
        "rosterlund.example",
        "docs/a.md",
        "#a",
        "",
    ],
)
def test_an_answer_may_not_lead_anywhere_else(url: str) -> None:
    assert not MAY_LEAD_TO(url)


def test_a_roster_without_hosts_lets_answers_lead_nowhere() -> None:
    may_lead_to = link_rule([])

    assert not may_lead_to("https://rosterlund.example")
    assert not may_lead_to("https://")


def test_a_subdomain_that_is_named_does_not_name_its_domain() -> None:
    may_lead_to = link_rule(["app.example.org"])

    assert may_lead_to("https://x.app.example.org")
    assert not may_lead_to("https://example.org")
    assert not may_lead_to("https://xapp.example.org")


@given(st.text(alphabet="abc.:/@\\#?[]%-0189é\t\n ", max_size=30))
def test_whatever_stands_before_a_named_host_is_no_part_of_another(text: str) -> None:
    """Where the rule lets an address pass, what is behind the slashes is a named host, as a browser reads it."""
    url = f"https://{text}rosterlund.example/"
    if MAY_LEAD_TO(url):
        host = url.removeprefix("https://").split("/")[0].split("?")[0].split("#")[0]
        assert "@" not in host
        assert host == "rosterlund.example" or host.endswith(".rosterlund.example")


@given(st.text(alphabet="abc.:/@\\#?[]%-0189é\t\n ", max_size=30))
def test_whatever_stands_behind_a_named_host_makes_it_no_other(text: str) -> None:
    url = f"https://rosterlund.example{text}"
    if MAY_LEAD_TO(url):
        assert not text or text[0] in "/?#:."
        assert not set(text) & set("\\\t\n ")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("unit", ["a", "a.", ".", "-", "/", ":", "1", "a-", "https://"])
def test_no_address_takes_long_to_judge(unit: str) -> None:
    assert not MAY_LEAD_TO("https://" + unit * 50_000 + "\\")
