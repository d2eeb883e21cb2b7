"""Turns: opened with the question, closed with the answer. Each method is part of one short unit of work."""

import uuid
from datetime import datetime, timedelta

from sqlalchemy import and_, case, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.agent_client.events import TurnId
from edge_api.auth.schemas import UserId
from edge_api.conversations.models import Message, Session, Turn
from edge_api.conversations.repository.sessions import USAGE_COLUMNS
from edge_api.conversations.schemas import Draft, MessageId, NewMessage, OpenTurn, Remark, SessionId
from edge_api.errors import TooManyTurnsError, TurnRunningError

RETRY_AFTER_S = 2.0
"""When a user with too many running turns may try again. Seconds; about the length of a short answer."""

# Bounds of ChatRequest.history in the protocol.
MAX_HISTORY_MESSAGES = 200
MAX_MESSAGE_CHARACTERS = 32_000


class TurnRepository:
    """Turns within one unit of work, at one moment."""

    def __init__(self, session: AsyncSession, *, now: datetime) -> None:
        self._session = session
        self._now = now

    async def require_room(self, user_id: UserId, *, most: int) -> None:
        """See that one more turn of this user may run. The user's row must be locked.

        Raises:
            TooManyTurnsError: `most` are running.
        """
        running = select(func.count()).where(
            Turn.user_id == user_id, Turn.status == "running", Turn.deadline_at > self._now
        )
        if (await self._session.execute(running)).scalar_one() >= most:
            raise TooManyTurnsError(f"{most} answers are being made for you", retry_after_s=RETRY_AFTER_S)

    async def require_idle(self, session_id: SessionId) -> None:
        """See that no turn of this session runs; one whose time is long over is given up. The session must be locked.

        Raises:
            TurnRunningError: its last message is still being answered.
        """
        await self.give_up(session_id=session_id)
        running = select(Turn).where(Turn.session_id == session_id, Turn.status == "running")
        if (found := (await self._session.execute(running)).scalar_one_or_none()) is not None:
            raise TurnRunningError(found.agent_turn_id or found.id)

    async def running(self, session_id: SessionId) -> MessageId | None:
        """The turn of a session that is being answered, by our own name."""
        wanted = select(Turn.id).where(Turn.session_id == session_id, Turn.status == "running")
        found = (await self._session.execute(wanted)).scalar_one_or_none()
        return None if found is None else MessageId(found)

    async def open(self, session: Session, message: NewMessage, *, created: bool, budget: timedelta) -> OpenTurn:
        """Store a person's message and a running turn.

        Args:
            session: locked; idle.
            message: what was said.
            created: whether the session began with it.
            budget: after this nobody can still be making the answer.
        """
        session_id = SessionId(session.id)
        question_id, message_id = _new_id(), _new_id()
        said = Message(
            id=question_id,
            session_id=session_id,
            position=await self._next_position(session_id),
            role="user",
            content=message.content,
            status="completed",
            details=dict(message.metadata),
            created_at=self._now,
        )
        turn = Turn(
            id=message_id,
            session_id=session_id,
            user_id=session.user_id,
            question_id=question_id,
            status="running",
            created_at=self._now,
            deadline_at=self._now + budget,
        )
        session.last_active_at = max(session.last_active_at, self._now)
        self._session.add_all((said, turn))
        await self._session.flush()
        return OpenTurn(session_id, message_id, question_id, created, (), b"")

    async def history(self, session_id: SessionId, *, characters: int) -> list[Remark]:
        """The newest messages, oldest first: those that fit into `characters`, and one more that is cut off there."""
        length = func.length(Message.content)
        sent = case((length > MAX_MESSAGE_CHARACTERS, MAX_MESSAGE_CHARACTERS), else_=length)
        before = func.sum(sent).over(order_by=Message.position.desc(), rows=(None, -1))
        sized = (
            select(Message.role, Message.content, Message.agent, Message.position, before.label("before"))
            .where(Message.session_id == session_id)
            .order_by(Message.position.desc())
            .limit(MAX_HISTORY_MESSAGES)
            .subquery()
        )
        wanted = (
            select(sized.c.role, sized.c.content, sized.c.agent)
            .where(func.coalesce(sized.c.before, 0) < characters)
            .order_by(sized.c.position)
        )
        return [Remark(role, content, agent) for role, content, agent in await self._session.execute(wanted)]

    async def state(self, session_id: SessionId) -> bytes:
        """What the last answer left for the next one; empty in a new conversation."""
        # By position and not by time: the clocks of two edges differ.
        wanted = (
            select(Turn.state)
            .join(Message, Message.id == Turn.id)
            .where(Turn.session_id == session_id, Turn.state.is_not(None))
            .order_by(Message.position.desc())
            .limit(1)
        )
        return (await self._session.execute(wanted)).scalar_one_or_none() or b""

    async def name(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """Write down which turn of the agent service answers."""
        await self._session.execute(update(Turn).where(Turn.id == turn.message_id).values(agent_turn_id=turn_id))

    async def close(self, turn: OpenTurn, answer: Draft) -> bool:
        """Store the answer as far as it came, once.

        Returns:
            False where nothing was stored: the turn was closed already, its session forgotten, or it was given up and
            the conversation has gone on.
        """
        await self._lock(turn.session_id)
        asked_at = select(Message.position).where(Message.id == turn.question_id).scalar_subquery()
        # A turn that was given up while the database was away is still its answer's, as long as nothing came after it.
        overtaken = exists().where(Message.session_id == turn.session_id, Message.position > asked_at)
        ended = (
            update(Turn)
            .where(Turn.id == turn.message_id, or_(Turn.status == "running", and_(Turn.status == "failed", ~overtaken)))
            .values(
                status=answer.status,
                state=answer.state,
                agent_turn_id=func.coalesce(Turn.agent_turn_id, answer.turn_id),
                ended_at=self._now,
            )
            .returning(Turn.id)
        )
        if (await self._session.execute(ended)).scalar_one_or_none() is None:
            return False
        said = Message(
            id=turn.message_id,
            session_id=turn.session_id,
            position=await self._next_position(turn.session_id),
            role="assistant",
            content=answer.content,
            status=answer.status,
            outcome=answer.outcome,
            agent=answer.agent,
            strategy=answer.strategy,
            citations=answer.citations,
            usage=answer.usage,
            trace=answer.trace,
            created_at=self._now,
        )
        self._session.add(said)
        spent = {column: getattr(Session, column) + answer.usage.get(column, 0) for column in USAGE_COLUMNS}
        await self._session.execute(
            update(Session)
            .where(Session.id == turn.session_id)
            .values(turns=Session.turns + 1, last_active_at=_later(self._now), **spent)
        )
        return True

    async def withdraw(self, turn: OpenTurn) -> None:
        """Forget a turn that never began, with its message, and its session where it began with it."""
        await self._lock(turn.session_id)
        gone = delete(Turn).where(Turn.id == turn.message_id, Turn.status == "running").returning(Turn.id)
        if (await self._session.execute(gone)).scalar_one_or_none() is None:
            return
        await self._session.execute(delete(Message).where(Message.id == turn.question_id))
        if turn.created:
            await self._session.execute(delete(Session).where(Session.id == turn.session_id))
            return
        # A title that was made from this message goes with it.
        said = exists().where(Message.session_id == turn.session_id)
        untitled = update(Session).where(Session.id == turn.session_id, Session.named.is_(False), ~said)
        await self._session.execute(untitled.values(title=""))

    async def give_up(self, *, session_id: SessionId | None = None, all_running: bool = False) -> int:
        """End turns that nobody is answering any more as failed, their questions kept. Returns how many.

        Args:
            session_id: only in this session. Default: everywhere.
            all_running: not only those whose deadline is over: this process is the only one and has just started.
        """
        orphans = update(Turn).where(Turn.status == "running")
        if session_id is not None:
            orphans = orphans.where(Turn.session_id == session_id)
        if not all_running:
            orphans = orphans.where(Turn.deadline_at <= self._now)
        ended = orphans.values(status="failed", ended_at=self._now).returning(Turn.id)
        return len((await self._session.execute(ended)).all())

    async def _lock(self, session_id: SessionId) -> None:
        """Always the session before its turns: two that lock in different orders wait for each other for ever."""
        await self._session.execute(select(Session.id).where(Session.id == session_id).with_for_update())

    async def _next_position(self, session_id: SessionId) -> int:
        newest = select(func.coalesce(func.max(Message.position), 0)).where(Message.session_id == session_id)
        return int((await self._session.execute(newest)).scalar_one()) + 1


def _later(now: datetime) -> object:
    """The clocks of two edges differ: activity never goes back."""
    return case((Session.last_active_at > now, Session.last_active_at), else_=now)


def _new_id() -> MessageId:
    return MessageId(str(uuid.uuid4()))
