"""What a reader's page makes of an answer: every address that it would link to or load, judged as strictly as can be.

For tests of the screen, and so without its patterns: the text is rendered as Markdown with all HTML on, searched for
bare addresses as linkifiers do it (before and after rendering), and taken as HTML. Addresses are read as browsers do.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote

from markdown_it import MarkdownIt

HOLDS_ADDRESS = frozenset(
    {"href", "src", "action", "formaction", "data", "poster", "background", "xlink:href", "ping", "cite", "manifest"}
)
RUNS_OR_LOADS = frozenset(
    {"script", "style", "svg", "math", "form", "iframe", "object", "embed", "base", "meta", "link"}
)
LOADS_BY_STYLE = re.compile(r"url|image|import|//|\\", re.IGNORECASE)

BARE = re.compile(
    r"(?:https?|ftps?|wss?):[/\\]{2}[^\s<>\"]+|(?<![\w:/\\])//[\w-]+\.[^\s<>\"]+|(?<![^\W_])www\.[^\s<>\"]+"
    r"|\b(?:javascript|vbscript):\S+|\bdata:\w+/\S+",
    re.IGNORECASE | re.ASCII,
)
AFTER = ".,;:!?*_)]}|~'`"
"""What linkifiers leave to the sentence."""

UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
MARKER = re.compile(r"\[(\d{1,9})\]", re.ASCII)


def links_beyond(text: str, hosts: Collection[str], addresses: Collection[str] = ()) -> list[str]:
    """The addresses in a text that lead to none of these hosts and are none of these addresses, or that run something.

    A relative address leads nowhere else. One with a scheme other than http and https always counts.
    """
    return [found for found in _found(text) if found not in addresses and not _stays(found, hosts)]


def markers(text: str) -> set[int]:
    """The numbers in a text that stand there like markers."""
    return {int(number) for number in MARKER.findall(text)}


def _found(text: str) -> Iterator[str]:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    # This renderer would refuse some by itself; others do not.
    markdown.validateLink = lambda url: True  # type: ignore[method-assign]
    rendered, taken = _Page(markdown.render(text)), _Page(text)
    yield from (*rendered.addresses, *taken.addresses)
    seen = UNSEEN.sub("", unicodedata.normalize("NFKC", unescape(text)))
    for place in (text, seen, *rendered.texts):
        for bare in BARE.findall(place):
            address = bare.rstrip(AFTER)
            if not re.fullmatch(r"\w+:[/\\]*", address):
                yield f"https://{address}" if address.lower().startswith("www.") else address


def _stays(address: str, hosts: Collection[str]) -> bool:
    """Whether a browser that follows an address stays on the page's host or goes to one of these."""
    # As of a renderer that does not encode.
    address = re.sub("%5c", r"\\", re.sub("%09|%0a|%0d", "\t", address, flags=re.IGNORECASE), flags=re.IGNORECASE)
    address = re.sub(r"[\t\n\r]", "", address.strip("".join(map(chr, range(0x21)))))
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", address, re.IGNORECASE | re.ASCII)
    if scheme is None and not re.match(r"[/\\]{2}", address):
        return True
    if scheme is not None and scheme[1].lower() not in {"http", "https"}:
        return False
    rest = address[scheme.end() if scheme else 0 :].lstrip("/\\")
    host = re.sub(r":\d*\Z", "", re.split(r"[/\\?#]", rest)[0].rpartition("@")[2])
    host = UNSEEN.sub("", unicodedata.normalize("NFKC", unquote(host))).replace("\u3002", ".").lower().rstrip(".")
    return any(host == allowed or host.endswith(f".{allowed}") for allowed in hosts)


class _Page(HTMLParser):
    """The addresses and the texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.addresses: list[str] = []
        self.texts: list[str] = []
        # The parser of this Python's version gives up on what browsers take for a comment.
        self.feed(html.replace("<![", "<!-["))
        self.close()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag in RUNS_OR_LOADS:
            self.addresses.append(f"javascript:<{tag}>")
        for name, value in attrs:
            given = value or ""
            if name.startswith("on") or (name == "style" and LOADS_BY_STYLE.search(given)):
                self.addresses.append(f"javascript:{name}={given}")
            elif name == "srcset":
                self.addresses += [part.split()[0] for part in given.split(",") if part.split()]
            elif name in HOLDS_ADDRESS:
                self.addresses.append(given)
