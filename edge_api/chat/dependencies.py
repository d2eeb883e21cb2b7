"""From a request to a turn that has begun: everything that can still be refused with a status is done here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from starlette.types import Receive

from edge_api.agent_client.answer import Answer
from edge_api.agent_client.dependencies import Agent
from edge_api.agent_client.events import Started
from edge_api.auth.dependencies import CurrentCaller, CurrentPrincipal
from edge_api.chat.schemas import ChatPost
from edge_api.chat.service import Asker, Turn, turn_for
from edge_api.chat.stream import Pace
from edge_api.conversations.dependencies import Conversations
from edge_api.conversations.schemas import NewMessage, SessionId
from edge_api.errors import ClientLeftError, ConflictingIdsError


@dataclass(frozen=True, slots=True)
class BegunTurn:
    """A turn whose first step has arrived: from here on a stream may be promised."""

    turn: Turn
    started: Started


def get_asker(
    request: Request, agent: Agent, conversations: Conversations, principal: CurrentPrincipal, caller: CurrentCaller
) -> Asker:
    """Who asks whom, and where it is kept."""
    return Asker(agent, conversations, request.app.state.recorder, principal, caller)


AnyAsker = Annotated[Asker, Depends(get_asker)]


async def begin_turn(request: Request, post: ChatPost, asker: AnyAsker) -> AsyncIterator[BegunTurn]:
    """The turn of a post whose body may name a session."""
    async with _begun(request, post, asker) as turn:
        yield turn


async def begin_turn_in_session(
    request: Request,
    post: ChatPost,
    session_id: Annotated[str, Path(min_length=1, max_length=128)],
    asker: AnyAsker,
) -> AsyncIterator[BegunTurn]:
    """The turn of a post whose path names the session."""
    if post.session not in {None, session_id}:
        raise ConflictingIdsError("the path and the body name different sessions")
    async with _begun(request, post.model_copy(update={"session_id": session_id}), asker) as turn:
        yield turn


@asynccontextmanager
async def _begun(request: Request, post: ChatPost, asker: Asker) -> AsyncIterator[BegunTurn]:
    message = NewMessage(
        SessionId(post.session) if post.session else None, post.message, post.agent, post.metadata or {}
    )
    async with (
        turn_for(message, asker) as turn,
        _until_client_leaves(request.receive, turn.answer),
    ):
        yield BegunTurn(turn, await turn.start())


@asynccontextmanager
async def _until_client_leaves(receive: Receive, answer: Answer) -> AsyncIterator[None]:
    """End the answer as soon as the client hangs up, also while the agent is silent and nothing is written."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answer.abort(ClientLeftError("the client closed the connection"))

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def get_pace(request: Request) -> Pace:
    """How streams of this process are paced."""
    pace: Pace = request.app.state.pace
    return pace


StreamPace = Annotated[Pace, Depends(get_pace)]
AnyTurn = Annotated[BegunTurn, Depends(begin_turn)]
SessionTurn = Annotated[BegunTurn, Depends(begin_turn_in_session)]
