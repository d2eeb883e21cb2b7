"""Asking: one answer as JSON or as a stream of events, and who answers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response, StreamingResponse

from edge_api.agent_client.dependencies import Agent
from edge_api.auth.dependencies import ChatRoute, CurrentCaller, CurrentPrincipal
from edge_api.bodies import require_json
from edge_api.chat.accept import EVENT_STREAM, prefers_event_stream
from edge_api.chat.dependencies import (
    AnyTurn,
    Followed,
    Hub,
    ResumedTurn,
    SessionInPath,
    SessionTurn,
    StreamPace,
    TurnAgain,
)
from edge_api.chat.schemas import AgentList, ChatReply, StopReply
from edge_api.chat.stream import EventStream
from edge_api.conversations.dependencies import Conversations
from edge_api.conversations.schemas import EndedTurn, OpenTurn
from edge_api.errors import UpstreamError
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
FOLLOW_RESPONSE: dict[int | str, dict[str, Any]] = {
    **problem_responses(404, 410, 422, 502, 503, 504),
    200: {**STREAM_RESPONSE[200], "description": "The events after `Last-Event-ID`, as those of a new answer."},
    204: {"description": "The turn has ended, and there is nothing after that event."},
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
    "/api/chat/{session_id}/stream",
    summary="Follow or resume an answer",
    response_class=StreamingResponse,
    responses=FOLLOW_RESPONSE,
)
async def follow_turn(request: Request, turn: ResumedTurn, pace: StreamPace) -> Response:
    """The events of a turn after `Last-Event-ID`, as they come; through any edge, as often as it takes."""
    return Response(status_code=204) if turn is None else _streamed(request, turn, pace)


@router.post(
    "/api/chat/{session_id}/stop",
    summary="Stop the running answer",
    response_model=StopReply,
    responses=problem_responses(404, 422, 502, 503, 504),
)
async def stop_turn(
    hub: Hub, conversations: Conversations, principal: CurrentPrincipal, session_id: SessionInPath
) -> Any:
    """Aborts the model call, wherever it runs. What was written is kept; stopping what has ended is no error."""
    abort_ms = 0.0
    turn = await conversations.find(principal, session_id, None)
    if not isinstance(turn, EndedTurn):
        try:
            answer, stopped = await hub.stop(turn)
            abort_ms = stopped.abort_ms
        except UpstreamError as err:
            # The agent does not know it any more: it may have ended meanwhile.
            turn = await conversations.find(principal, session_id, turn.message_id)
            if err.reason != "UNKNOWN_TURN" or not isinstance(turn, EndedTurn):
                raise
    if isinstance(turn, EndedTurn):
        answer = await conversations.answer_of(turn)
    return {
        **_ids(turn),
        "turn_id": answer.turn_id or turn.message_id,
        "status": answer.status,
        "usage": answer.usage or None,
        "abort_ms": abort_ms,
    }


@router.post(
    "/api/chat/{session_id}/regenerate",
    summary="Answer again",
    response_model=ChatReply,
    responses=STREAM_RESPONSE,
    dependencies=JSON_BODY,
)
async def regenerate(request: Request, turn: TurnAgain, pace: StreamPace, accept: Accept = "") -> Any:
    """Answers the last message again, or an edited one in its place. What was there stays as an alternative."""
    return await _answered(request, turn, pace, accept)


@router.get(
    "/api/agents", summary="List the agents", response_model=AgentList, responses=problem_responses(502, 503, 504)
)
async def list_agents(agent: Agent, caller: CurrentCaller) -> Any:
    """The team that answers, the entry first."""
    return {"agents": await agent.agents(caller)}


def _streamed(request: Request, turn: Followed, pace: StreamPace) -> EventStream:
    return EventStream(turn.frames(instance=request.url.path), pace=pace)


async def _answered(request: Request, turn: Followed, pace: StreamPace, accept: str) -> EventStream | dict[str, Any]:
    if prefers_event_stream(accept):
        return _streamed(request, turn, pace)
    answer = await turn.answer()
    return {
        **_ids(turn.turn),
        "turn_id": answer.turn_id,
        "status": answer.status,
        "outcome": answer.outcome,
        "answer": answer.content,
        "agent": answer.agent,
        "strategy": answer.strategy,
        "citations": answer.citations,
        "usage": answer.usage,
        "trace": answer.trace,
    }


def _ids(turn: OpenTurn | EndedTurn) -> dict[str, str]:
    return {"session_id": turn.session_id, "conversation_id": turn.session_id, "message_id": turn.message_id}
