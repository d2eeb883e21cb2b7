"""Server-sent events out of bytes: every line end, every split, no end, and far too much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.llm.sse import MAX_EVENT_BYTES, EventParser, OversizedEventError


def events(*pieces: bytes) -> list[bytes]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)] + list(parser.end())


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CR LF", "CR"])
def test_events_end_with_an_empty_line_of_any_kind(end: bytes) -> None:
    body = end.join([b"event: x", b"data: one", b"", b": a comment", b"data:two", b"data: lines", b"", b""])

    assert events(body) == [b"one", b"two\nlines"]


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"data: [DONE]\n\n", [b"[DONE]"]),
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
        (b"data: last", [b"last"]),
        (b"data: last\r", [b"last"]),
        (b"data\n\n", [b""]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"id: 1\nretry: 5\n: ping\n\n\n\n", []),
        (b"datum: x\n\n", []),
        (b"", []),
    ],
)
def test_fields_are_read_as_the_standard_has_them(body: bytes, data: list[bytes]) -> None:
    assert events(body) == data


def test_an_event_is_there_as_soon_as_its_line_is_closed() -> None:
    parser = EventParser()

    assert list(parser.feed(b"data: one\r\n\r")) == [b"one"]
    assert list(parser.feed(b"\ndata: two\n")) == []
    assert list(parser.feed(b"\n")) == [b"two"]


LINES = st.lists(
    st.sampled_from(["data: one", "data: zwei \U0001f642 é", "data:", "data", "", "", ": ping", "event: x", "x"])
)


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_no_split_changes_the_events(lines: list[str], end: str, data: st.DataObject) -> None:
    body = end.join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    assert events(*pieces) == events(body) == events(*(bytes([byte]) for byte in body))


@pytest.mark.parametrize(
    "piece", [b"x" * 4096, b"data: " + b"x" * 4096 + b"\n"], ids=["a line without end", "an event without end"]
)
def test_what_never_ends_is_given_up(piece: bytes) -> None:
    with pytest.raises(OversizedEventError):
        events(*([piece] * (MAX_EVENT_BYTES // len(piece) + 2)))
