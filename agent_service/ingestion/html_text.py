"""The readable text of an HTML block. Tags, comments, scripts and styles are dropped; nothing is ever executed."""

import html
import re

from agent_service.ingestion.inline import Plain
from agent_service.ingestion.prose import PARAGRAPH_SEPARATOR

_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<(?P<dropped>script|style)\b.*?(?:</(?P=dropped)\s*>|\Z)|<[!?/]?(?P<tag>[a-z][\w-]*)[^<>]{0,4000}>"
    r"|(?P<entity>&(?:#\w{1,8}|[a-z]\w{1,31});)",
    re.IGNORECASE | re.DOTALL,
)
# Every other tag ends the sentence.
_INLINE_TAGS = re.compile(
    "a|abbr|b|bdi|cite|code|data|del|dfn|em|font|i|img|ins|kbd|mark|q|s|samp|small|span|strong|sub|sup|time|tt|u|var",
    re.IGNORECASE,
)


def plain_html(source: str) -> Plain:
    """The text of an HTML block, with entities decoded; block tags become paragraph separators."""
    texts: list[str] = []
    at: list[int] = []

    def append(text: str, positions: range | tuple[int, ...]) -> None:
        texts.append(text)
        at.extend(positions)

    end = 0
    for match in _MARKUP.finditer(source):
        append(source[end : match.start()], range(end, match.start()))
        end = match.end()
        if match["entity"]:
            decoded = html.unescape(match["entity"])
            append(decoded, (match.start(),) * len(decoded))
        elif not _INLINE_TAGS.fullmatch(match["tag"] or ""):
            # Two characters: one where the tag begins, one where it ends.
            append(PARAGRAPH_SEPARATOR + " ", (match.start(), end - 1))
    append(source[end:], range(end, len(source)))
    return Plain("".join(texts), at)
