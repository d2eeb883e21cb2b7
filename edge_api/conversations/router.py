"""Sessions: their state and messages, renamed, emptied, deleted, listed; and feedback on answers."""

import asyncio
import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query

from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.dependencies import Agent
from edge_api.auth.dependencies import ChatRoute, CurrentPrincipal
from edge_api.bodies import require_json
from edge_api.conversations.bodies import (
    FeedbackBody,
    MessageBody,
    MessageList,
    Rate,
    Rename,
    SessionBody,
    SessionList,
    feedback_body,
    message_body,
    session_body,
)
from edge_api.conversations.cursors import MAX_CURSOR_CHARACTERS
from edge_api.conversations.dependencies import Library
from edge_api.conversations.schemas import MessageId, OpenTurn, SessionId
from edge_api.errors import UpstreamError
from edge_api.problem import problem_responses

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 3.0
"""What ending an answer may add to emptying or deleting its session."""

STOP_PAUSE_S = 0.1

router = APIRouter(tags=["sessions"], route_class=ChatRoute)

READING = problem_responses(404, 422, 503)
WRITING = problem_responses(404, 413, 415, 422, 503)
JSON_BODY = [Depends(require_json)]

AnySession = Annotated[SessionId, Path(min_length=1, max_length=128)]
Cursor = Annotated[str | None, Query(max_length=MAX_CURSOR_CHARACTERS, description="`next_cursor` of the page before.")]


@router.get("/api/sessions", summary="List my sessions", response_model=SessionList, responses=READING)
async def list_sessions(
    library: Library,
    principal: CurrentPrincipal,
    q: Annotated[str, Query(max_length=200, description="Words of a title or a message.")] = "",
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most sessions to return.")] = 20,
) -> Any:
    """The caller's sessions, the most recently active first."""
    page = await library.page(principal, query=q.strip(), cursor=cursor, limit=limit)
    return {"sessions": [session_body(each) for each in page.items], "next_cursor": page.next_cursor}


@router.get(
    "/sessions/{session_id}",
    name="get_session_short",
    summary="State of a session",
    response_model=SessionBody,
    responses=READING,
)
@router.get("/api/session/{session_id}", summary="State of a session", response_model=SessionBody, responses=READING)
async def get_session(library: Library, principal: CurrentPrincipal, session_id: AnySession) -> Any:
    """When it was used, when it expires, what it cost, and what is being answered."""
    return session_body(await library.info(principal, session_id))


@router.get(
    "/api/session/{session_id}/messages",
    summary="Messages of a session",
    response_model=MessageList,
    responses=READING,
)
async def list_messages(
    library: Library,
    principal: CurrentPrincipal,
    session_id: AnySession,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Most messages to return.")] = 50,
    order: Annotated[Literal["asc", "desc"], Query(description="`asc`: oldest first.")] = "asc",
) -> Any:
    """What was said, with citations, usage and trace. Go on with the same `order`."""
    page = await library.messages(principal, session_id, cursor=cursor, limit=limit, newest_first=order == "desc")
    return {"messages": [message_body(each) for each in page.items], "next_cursor": page.next_cursor}


@router.patch(
    "/api/session/{session_id}",
    summary="Rename a session",
    response_model=SessionBody,
    responses=WRITING,
    dependencies=JSON_BODY,
)
async def rename_session(library: Library, principal: CurrentPrincipal, session_id: AnySession, body: Rename) -> Any:
    """Gives it another title."""
    return session_body(await library.rename(principal, session_id, body.title))


@router.post(
    "/api/session/{session_id}/reset", summary="Empty a session", response_model=SessionBody, responses=READING
)
async def reset_session(library: Library, agent: Agent, principal: CurrentPrincipal, session_id: AnySession) -> Any:
    """Forgets its messages and keeps the session. What is being answered is ended first."""
    await _stop(agent, await library.running(principal, session_id))
    session, running = await library.reset(principal, session_id)
    # One that had not reached the agent before.
    await _stop(agent, running)
    return session_body(session)


@router.delete(
    "/sessions/{session_id}",
    name="delete_session_short",
    summary="Delete a session",
    status_code=204,
    responses=READING,
)
@router.delete("/api/session/{session_id}", summary="Delete a session", status_code=204, responses=READING)
async def delete_session(library: Library, agent: Agent, principal: CurrentPrincipal, session_id: AnySession) -> None:
    """Deletes it with all that was said. What is being answered is ended first."""
    await _stop(agent, await library.running(principal, session_id))
    await _stop(agent, await library.delete(principal, session_id))


@router.get("/api/messages/{message_id}", summary="A message", response_model=MessageBody, responses=READING)
async def get_message(
    library: Library, principal: CurrentPrincipal, message_id: Annotated[MessageId, Path(min_length=1, max_length=128)]
) -> Any:
    """One of the caller's messages or answers, also one that is an alternative by now."""
    return message_body(await library.message(principal, message_id))


@router.post(
    "/api/messages/{message_id}/feedback",
    summary="Rate an answer",
    response_model=FeedbackBody,
    responses=WRITING,
    dependencies=JSON_BODY,
)
async def rate_message(
    library: Library,
    principal: CurrentPrincipal,
    message_id: Annotated[MessageId, Path(min_length=1, max_length=128)],
    body: Rate,
) -> Any:
    """Keeps what the caller thinks of one of their answers, in place of what they thought before."""
    return feedback_body(await library.rate(principal, message_id, body.rating, body.comment))


async def _stop(agent: AgentClient, running: OpenTurn | None) -> None:
    """Abort what is being answered, wherever that is; what cannot be aborted finds its session gone at its end."""
    if running is not None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await _stop_when_known(agent, running)
        except (UpstreamError, TimeoutError) as err:
            log.warning("an answer could not be stopped", extra={"message_id": running.message_id, "cause": str(err)})


async def _stop_when_known(agent: AgentClient, running: OpenTurn) -> None:
    while True:
        try:
            await agent.stop(running.name, running.caller)
            return
        except UpstreamError as err:
            # It may be on its way to the agent.
            if err.reason != "UNKNOWN_TURN":
                raise
        await asyncio.sleep(STOP_PAUSE_S)
