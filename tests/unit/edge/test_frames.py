"""Frames of the event stream."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_api.agent_client.events import (
    AgentSelected,
    Completed,
    SourcesOffered,
    Started,
    TokenAdded,
    ToolCalled,
    TurnEvent,
    TurnId,
)
from edge_api.agent_client.signing import Caller
from edge_api.chat.frames import event_frame, frame
from edge_api.conversations.schemas import MessageId, OpenTurn, SessionId
from tests.unit.edge.sse_parser import parse

CALLER = Caller("u", "default")
OPENED = OpenTurn(
    SessionId("s"), MessageId("m"), MessageId("q"), created=True, caller=CALLER, deadline_at=datetime.now(UTC)
)
COMPLETED = Completed(
    sequence=7,
    status="completed",
    outcome="answered",
    agent="billing",
    strategy="hybrid",
    citations=[],
    usage={"requests": 1},
    trace={"agent": "billing"},
    state=b"secret state",
)


@given(st.text())
def test_any_text_survives_the_stream_as_one_event_of_one_line(text: str) -> None:
    sent = event_frame(TokenAdded(3, text), OPENED)

    (event,) = parse(sent.decode())

    assert (event.type, event.id) == ("token", "3")
    assert event.json == {"type": "token", "sequence": 3, "content": text}
    assert sent.count(b"\n") == 4
    assert b"\r" not in sent


@given(st.lists(st.text(), max_size=5))
def test_frames_never_run_together(texts: list[str]) -> None:
    sent = b"".join(event_frame(TokenAdded(number, text), OPENED) for number, text in enumerate(texts, start=1))

    assert [event.json["content"] for event in parse(sent.decode())] == texts


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (Started(1, TurnId("t")), {"session_id": "s", "conversation_id": "s", "turn_id": "t", "message_id": "m"}),
        (AgentSelected(2, "billing", "rag"), {"agent": "billing", "strategy": "rag"}),
        (AgentSelected(2, "orchestrator", None), {"agent": "orchestrator", "strategy": None}),
        (SourcesOffered(3, [{"marker": 1}]), {"sources": [{"marker": 1}]}),
        (ToolCalled(4, "f", "c", "failed"), {"name": "f", "call_id": "c", "phase": "failed"}),
        (
            COMPLETED,
            {
                "message_id": "m",
                "status": "completed",
                "outcome": "answered",
                "agent": "billing",
                "strategy": "hybrid",
                "citations": [],
                "usage": {"requests": 1},
                "trace": {"agent": "billing"},
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_step_has_its_frame_and_never_the_state(event: TurnEvent, data: dict[str, object]) -> None:
    (sent,) = parse(event_frame(event, OPENED).decode())

    assert sent.id == str(event.sequence)
    assert sent.json == {"type": sent.type, "sequence": event.sequence, **data}


def test_a_frame_without_a_number_has_no_id() -> None:
    assert frame("error", {"status": 503}) == b'event: error\ndata: {"type":"error","status":503}\n\n'
