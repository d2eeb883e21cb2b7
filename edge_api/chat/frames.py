"""Server-sent events of a turn: one frame for each step."""

import logging
from collections.abc import Mapping
from typing import Any

import orjson

from edge_api.agent_client.events import (
    AgentSelected,
    Completed,
    SourcesOffered,
    Started,
    TokenAdded,
    ToolCalled,
    TurnEvent,
)
from edge_api.conversations.schemas import EndedTurn, OpenTurn
from edge_api.errors import EdgeError
from edge_api.problem import problem_of

log = logging.getLogger(__name__)


def frame(kind: str, data: Mapping[str, Any], sequence: int | None = None) -> bytes:
    """One event, ready to send. JSON escapes every line end, so `data:` is one line whatever the text holds."""
    body = orjson.dumps({"type": kind, **data} if sequence is None else {"type": kind, "sequence": sequence, **data})
    name = kind.encode()
    if sequence is None:
        return b"event: %b\ndata: %b\n\n" % (name, body)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (sequence, name, body)


def event_frame(event: TurnEvent, turn: OpenTurn | EndedTurn) -> bytes:
    """The frame of one step; its id is the step's sequence number."""
    match event:
        case TokenAdded(sequence, content):
            return frame("token", {"content": content}, sequence)
        case Started(sequence, turn_id):
            ids = {"session_id": turn.session_id, "conversation_id": turn.session_id, "turn_id": turn_id}
            return frame("start", {**ids, "message_id": turn.message_id}, sequence)
        case AgentSelected(sequence, agent, strategy):
            return frame("agent", {"agent": agent, "strategy": strategy}, sequence)
        case SourcesOffered(sequence, sources):
            return frame("sources", {"sources": sources}, sequence)
        case ToolCalled(sequence, name, call_id, phase):
            return frame("tool", {"name": name, "call_id": call_id, "phase": phase}, sequence)
        case Completed():
            return frame("complete", _complete(event, turn), event.sequence)


def _complete(event: Completed, turn: OpenTurn | EndedTurn) -> dict[str, Any]:
    return {
        "message_id": turn.message_id,
        "status": event.status,
        "outcome": event.outcome,
        "agent": event.agent,
        "strategy": event.strategy,
        "citations": event.citations,
        "usage": event.usage,
        "trace": event.trace,
    }


def error_frame(error: Exception, instance: str) -> bytes:
    """The terminal frame of a turn that failed: the body that a refusal would have had. It has no number."""
    if not isinstance(error, EdgeError):
        log.error("a stream failed", exc_info=error)
    return frame("error", problem_of(error).document(instance))
