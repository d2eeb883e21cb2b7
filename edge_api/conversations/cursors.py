"""Places in a list, as opaque texts that clients hand back. Pure functions."""

import base64
import binascii
from datetime import UTC, datetime

from edge_api.conversations.schemas import SessionId
from edge_api.errors import InvalidCursorError

MAX_CURSOR_CHARACTERS = 200
# What both databases can hold and compare.
MAX_PLACE = 2**31 - 1


def session_cursor(last_active_at: datetime, session_id: SessionId) -> str:
    """The place after this session in a list of sessions, newest first."""
    return _packed(f"{last_active_at.astimezone(UTC).isoformat()} {session_id}")


def read_session_cursor(cursor: str) -> tuple[datetime, SessionId]:
    """The last session before the page asked for.

    Raises:
        InvalidCursorError: it is none of ours.
    """
    moment, _, session_id = _unpacked(cursor).partition(" ")
    try:
        parsed = datetime.fromisoformat(moment)
        utc = parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidCursorError("is no cursor of this list") from None
    if parsed.tzinfo is None or not session_id:
        raise InvalidCursorError("is no cursor of this list")
    return utc, SessionId(session_id)


def message_cursor(place: int) -> str:
    """The place after this message in a list of messages."""
    return _packed(f"m{place}")


def read_message_cursor(cursor: str) -> int:
    """The place of the last message before the page asked for.

    Raises:
        InvalidCursorError: it is none of ours.
    """
    text = _unpacked(cursor)
    if not text.startswith("m") or not text[1:].isascii() or not text[1:].isdecimal():
        raise InvalidCursorError("is no cursor of this list")
    place = int(text[1:12])
    if place > MAX_PLACE:
        raise InvalidCursorError("is no cursor of this list")
    return place


def _packed(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _unpacked(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidCursorError("is no cursor of this list") from None
