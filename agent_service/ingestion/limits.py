"""What a document must be to be taken. The rules are those of `Document` in `knowledge_service.proto`."""

import re
from collections.abc import Iterator

from agent_service.errors import FieldViolation, InvalidRequestError
from agent_service.types import Access, SourceDocument

MAX_TEXT_BYTES = 2 * 1024 * 1024
# Of 2 MiB text it takes lines of less than 20 characters to have more; each may cost the parser a kilobyte or three.
MAX_LINES = 100_000
MAX_TITLE = 300
MAX_URI = 1_024
MAX_GROUPS = 32

COLLECTION = re.compile(r"[a-z0-9_-]{1,64}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GROUP = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_NOT_TEXT_RULE = "must not hold NUL characters or lone surrogates"


def check(document: SourceDocument) -> None:
    """Check all rules at once.

    Raises:
        InvalidRequestError: names every field that breaks a rule, as the protocol names it ("document.uri").
    """
    broken = [*_names(document), *_text(document.text), *_access(document.access)]
    if broken:
        raise InvalidRequestError(*(FieldViolation(f"document.{field}", rule) for field, rule in broken))


def _names(document: SourceDocument) -> Iterator[tuple[str, str]]:
    if not 1 <= len(document.uri) <= MAX_URI:
        yield "uri", f"must have 1 to {MAX_URI:,} characters"
    if not COLLECTION.fullmatch(document.collection):
        yield "collection", "must be 1 to 64 characters of [a-z0-9_-]"
    if len(document.title) > MAX_TITLE:
        yield "title", f"must have at most {MAX_TITLE} characters"
    for field, text in (("uri", document.uri), ("title", document.title)):
        if not _is_text(text):
            yield field, _NOT_TEXT_RULE


def _text(text: str) -> Iterator[tuple[str, str]]:
    # A character has at least one byte: texts that are much too long need not be encoded to be refused.
    if not 1 <= len(text) <= MAX_TEXT_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        yield "text", "must have 1 byte to 2 MiB"
    if max(map(text.count, "\n\r")) > MAX_LINES:
        yield "text", f"must have at most {MAX_LINES:,} lines"
    if not _is_text(text):
        yield "text", _NOT_TEXT_RULE


def _access(access: Access) -> Iterator[tuple[str, str]]:
    if not _TENANT.fullmatch(access.tenant):
        yield "access.tenant", "must be 1 to 64 characters of [A-Za-z0-9._-]"
    if len(access.groups) > MAX_GROUPS:
        yield "access.groups", f"must be at most {MAX_GROUPS}"
    if not all(_GROUP.fullmatch(group) for group in access.groups):
        yield "access.groups", "must each be 1 to 64 characters of [A-Za-z0-9._:-]"


def _is_text(text: str) -> bool:
    # Lone surrogates have no UTF-8 form; NUL ends strings in too many places.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
