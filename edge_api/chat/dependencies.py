"""From a request to a turn that is followed: everything that can still be refused with a status is done here."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import orjson
from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel
from starlette.types import Receive

from edge_api.agent_client.dependencies import Agent
from edge_api.auth.dependencies import CurrentCaller, CurrentPrincipal
from edge_api.chat.feed import Reader
from edge_api.chat.hub import TurnHub
from edge_api.chat.replay import Replay
from edge_api.chat.schemas import AgainPost, ChatPost
from edge_api.chat.stream import Pace
from edge_api.conversations.dependencies import Conversations
from edge_api.conversations.schemas import Again, Asked, AskedNow, EndedTurn, NewMessage, RequestKey, SessionId
from edge_api.errors import ConflictingIdsError

Followed: TypeAlias = Reader | Replay
"""A turn that has begun, or has ended: from here on a stream may be promised."""

AS_IT_WAS = AgainPost()

SessionInPath: TypeAlias = Annotated[SessionId, Path(min_length=1, max_length=128)]

IdempotencyKey: TypeAlias = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description=(
            "Your name for this request, kept for 24 hours: sent again with it, the same turn comes back and nothing "
            "is asked twice. With another path or body it is refused."
        ),
    ),
]


async def get_hub(request: Request) -> TurnHub:
    """The turns that this edge follows."""
    hub: TurnHub = request.app.state.hub
    return hub


Hub = Annotated[TurnHub, Depends(get_hub)]


@dataclass(frozen=True, slots=True)
class Follower:
    """The request that wants to follow a turn, and those who serve it."""

    request: Request
    agent: Agent
    conversations: Conversations
    hub: Hub
    principal: CurrentPrincipal
    caller: CurrentCaller

    def key(self, value: str | None, body: BaseModel) -> RequestKey | None:
        """The request's name of itself, with a digest of its path and what its body says."""
        if value is None:
            return None
        said = orjson.dumps(body.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(self.request.url.path.encode() + b"\n" + said, digest_size=32)
        return RequestKey(value, digest.hexdigest())

    @asynccontextmanager
    async def following(self, asked: Asked) -> AsyncIterator[Followed]:
        """Follow what was asked now, or before, until the block is left or the client hangs up."""
        if isinstance(asked, AskedNow):
            async with self.reading(self.hub.ask(asked.turn, asked.question).reader()) as reader:
                yield reader
        elif isinstance(asked.turn, EndedTurn):
            async with self.replaying(asked.turn) as replay:
                yield replay
        else:
            async with self.reading(self.hub.join(asked.turn).reader()) as reader:
                yield reader

    @asynccontextmanager
    async def reading(self, reader: Reader) -> AsyncIterator[Reader]:
        """A reader, who leaves with the block or with the client."""
        try:
            async with _until_client_leaves(self.request.receive, reader.leave):
                await reader.begin()
                yield reader
        finally:
            reader.leave()

    @asynccontextmanager
    async def replaying(self, turn: EndedTurn) -> AsyncIterator[Replay]:
        """An ended turn for a request that was sent again: its log where that is kept, else the stored answer."""
        # Nothing of it can be refused any more: only a stream asks the agent, when it is read.
        replay = Replay(turn, await self.conversations.answer_of(turn), agent=self.agent)
        try:
            yield replay
        finally:
            await replay.close()


async def get_follower(
    request: Request,
    agent: Agent,
    conversations: Conversations,
    hub: Hub,
    principal: CurrentPrincipal,
    caller: CurrentCaller,
) -> Follower:
    """The request that wants to follow a turn."""
    return Follower(request, agent, conversations, hub, principal, caller)


AnyFollower = Annotated[Follower, Depends(get_follower)]


async def begin_turn(post: ChatPost, who: AnyFollower, key: IdempotencyKey = None) -> AsyncIterator[Followed]:
    """The turn of a post whose body may name a session."""
    async with who.following(await _opened(post, who, key)) as followed:
        yield followed


async def begin_turn_in_session(
    post: ChatPost, session_id: SessionInPath, who: AnyFollower, key: IdempotencyKey = None
) -> AsyncIterator[Followed]:
    """The turn of a post whose path names the session."""
    if post.session not in {None, session_id}:
        raise ConflictingIdsError("the path and the body name different sessions")
    async with who.following(await _opened(post.model_copy(update={"session_id": session_id}), who, key)) as followed:
        yield followed


async def begin_again(
    session_id: SessionInPath, who: AnyFollower, post: AgainPost = AS_IT_WAS, key: IdempotencyKey = None
) -> AsyncIterator[Followed]:
    """The turn that answers a session's last message again."""
    again = Again(session_id, post.message, post.agent, post.metadata)
    named = who.key(key, post)
    asked = await who.conversations.again(who.principal, again, caller=who.caller, key=named)
    async with who.following(asked) as followed:
        yield followed


async def resume_turn(
    session_id: SessionInPath,
    who: AnyFollower,
    turn_id: Annotated[
        str | None, Query(min_length=1, max_length=128, description="Which turn. Default: the newest.")
    ] = None,
    after: Annotated[
        int | None,
        Header(alias="Last-Event-ID", ge=0, lt=2**53, description="The last event that arrived. Default: none."),
    ] = None,
) -> AsyncIterator[Followed | None]:
    """A turn after a place in its log; None where there is nothing after it."""
    after = after or 0
    turn = await who.conversations.find(who.principal, session_id, turn_id)
    if not isinstance(turn, EndedTurn):
        async with who.reading(who.hub.join(turn).reader(after)) as reader:
            yield reader
        return
    # Of a turn that nobody could follow to its end the last number is not known.
    if turn.last_sequence and after >= turn.last_sequence:
        yield None
        return
    replay = Replay(turn, await who.conversations.answer_of(turn))
    await replay.open(who.agent, after=after)
    try:
        yield None if replay.is_empty else replay
    finally:
        await replay.close()


async def _opened(post: ChatPost, who: Follower, key: str | None) -> Asked:
    session = SessionId(post.session) if post.session else None
    message = NewMessage(session, post.message, post.agent, post.metadata or {})
    # By one name: a session has two.
    named = who.key(key, post.model_copy(update={"session_id": post.session, "conversation_id": None}))
    return await who.conversations.open(who.principal, message, caller=who.caller, key=named)


@asynccontextmanager
async def _until_client_leaves(receive: Receive, leave: Callable[[], None]) -> AsyncIterator[None]:
    """Leave as soon as the client hangs up, also while the agent is silent and nothing is written."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def get_pace(request: Request) -> Pace:
    """How streams of this process are paced."""
    pace: Pace = request.app.state.pace
    return pace


StreamPace = Annotated[Pace, Depends(get_pace)]
AnyTurn = Annotated[Followed, Depends(begin_turn)]
SessionTurn = Annotated[Followed, Depends(begin_turn_in_session)]
TurnAgain = Annotated[Followed, Depends(begin_again)]
ResumedTurn = Annotated[Followed | None, Depends(resume_turn)]
