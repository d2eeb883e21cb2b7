"""Asking: one answer as JSON or as a stream of events, and who answers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse

from edge_api.agent_client.dependencies import Agent
from edge_api.auth.dependencies import ChatRoute, CurrentCaller
from edge_api.bodies import require_json
from edge_api.chat.accept import EVENT_STREAM, prefers_event_stream
from edge_api.chat.dependencies import AnyTurn, BegunTurn, SessionTurn, StreamPace
from edge_api.chat.schemas import AgentList, ChatReply
from edge_api.chat.stream import EventStream, turn_frames
from edge_api.problem import problem_responses

router = APIRouter(tags=["chat"], route_class=ChatRoute)

EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": "^[1-9][0-9]*$", "description": "Its number; an `error` has none."},
        "event": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"type": "string"}, "sequence": {"type": "integer", "minimum": 1}},
            },
        },
    },
}
"""One event, as OpenAPI 3.2 and FastAPI describe them: a schema of the whole stream would say no more than "text"."""

STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {
    **problem_responses(404, 409, 413, 415, 422, 502, 503, 504),
    200: {
        "description": (
            "The answer. As a stream: the events `start`, `agent`, `sources`, `tool` and `token`, then one `complete` "
            "or one `error` (a problem document). Each has one line of JSON data with `type` and `sequence`, which is "
            "also its id. Skip types you do not know."
        ),
        "content": {EVENT_STREAM: {"itemSchema": EVENT}},
    },
}
JSON_BODY = [Depends(require_json)]
Accept = Annotated[str, Header(include_in_schema=False)]


@router.post("/api/chat", summary="Ask", response_model=ChatReply, responses=STREAM_RESPONSE, dependencies=JSON_BODY)
async def ask(request: Request, turn: AnyTurn, pace: StreamPace, accept: Accept = "") -> Any:
    """Ask in a new session, or in the one the body names. `Accept: text/event-stream` streams the answer."""
    return await _answered(request, turn, pace, accept)


@router.post(
    "/api/chat/{session_id}",
    summary="Ask in a session",
    response_model=ChatReply,
    responses=STREAM_RESPONSE,
    dependencies=JSON_BODY,
)
async def ask_in_session(request: Request, turn: SessionTurn, pace: StreamPace, accept: Accept = "") -> Any:
    """The next message of a session. `Accept: text/event-stream` streams the answer."""
    return await _answered(request, turn, pace, accept)


@router.post(
    "/chat",
    summary="Ask, always as a stream",
    response_class=StreamingResponse,
    responses=STREAM_RESPONSE,
    dependencies=JSON_BODY,
)
async def stream_chat(request: Request, turn: AnyTurn, pace: StreamPace) -> EventStream:
    """As `POST /api/chat`, streamed whatever `Accept` says."""
    return _streamed(request, turn, pace)


@router.get(
    "/api/agents", summary="List the agents", response_model=AgentList, responses=problem_responses(502, 503, 504)
)
async def list_agents(agent: Agent, caller: CurrentCaller) -> Any:
    """The team that answers, the entry first."""
    return {"agents": await agent.agents(caller)}


def _streamed(request: Request, begun: BegunTurn, pace: StreamPace) -> EventStream:
    return EventStream(turn_frames(begun.turn, begun.started, instance=request.url.path), pace=pace)


async def _answered(request: Request, begun: BegunTurn, pace: StreamPace, accept: str) -> EventStream | dict[str, Any]:
    if prefers_event_stream(accept):
        return _streamed(request, begun, pace)
    async for _ in begun.turn.events():
        # The draft collects them.
        pass
    opened, draft = begun.turn.opened, begun.turn.draft
    return {
        "session_id": opened.session_id,
        "conversation_id": opened.session_id,
        "turn_id": begun.started.turn_id,
        "message_id": opened.message_id,
        "status": draft.status,
        "outcome": draft.outcome,
        "answer": draft.content,
        "agent": draft.agent,
        "strategy": draft.strategy,
        "citations": draft.citations,
        "usage": draft.usage,
        "trace": draft.trace,
    }
