"""Which media type a client would rather have."""

import pytest

from edge_api.chat.accept import prefers_event_stream


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("text/event-stream;q=0.5", True),
        ("application/json, text/event-stream", True),
        ("text/event-stream, */*;q=0.1", True),
        ("text/event-stream;q=0.4, application/json;q=0.5", False),
        ("text/event-stream;q=0.4, application/*;q=0.5", False),
        ("text/event-stream;q=0.4, application/json;q=0.1, */*", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=much", False),
        ("application/json", False),
        ("text/*", False),
        ("*/*", False),
        ("", False),
        (",;q=,", False),
    ],
)
def test_the_event_stream_is_preferred_only_where_it_is_named_and_not_outweighed(accept: str, expected: bool) -> None:
    assert prefers_event_stream(accept) is expected
