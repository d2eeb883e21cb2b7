"""Sessions: found for their owner, listed, renamed, emptied, expired."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.auth.schemas import UserId
from edge_api.conversations.models import Message, Session, Turn
from edge_api.conversations.schemas import SessionId, SessionInfo
from edge_api.db import PlainText
from edge_api.errors import NotYourSessionError, SessionExpiredError, SessionNotFoundError

USAGE_COLUMNS = ("requests", "input_tokens", "cached_input_tokens", "output_tokens", "total_tokens")


CREATE = insert(Session.metadata.tables[Session.__tablename__])


class SessionRepository:
    """Sessions within one unit of work, at one moment."""

    def __init__(self, session: AsyncSession, *, now: datetime, ttl: timedelta) -> None:
        """`ttl`: how long a session may be idle."""
        self._session = session
        self._now = now
        self._ttl = ttl

    async def create(self, user_id: UserId, title: str) -> Session:
        """A new session."""
        made = {
            "id": str(uuid.uuid4()),
            "user_id": user_id,
            "title": title,
            "created_at": self._now,
            "last_active_at": self._now,
        }
        await self._session.execute(CREATE, made)
        # Not the unit of work's: what is changed in it is not stored.
        return Session(**made)

    async def own(self, session_id: SessionId, user_id: UserId, *, lock: bool = False) -> Session:
        """A session of this user. `lock`: nobody else changes it until the unit of work ends.

        Raises:
            SessionNotFoundError: there is no such session.
            NotYourSessionError: it is somebody else's, expired or not.
            SessionExpiredError: it was idle for too long.
        """
        wanted = select(Session).where(Session.id == session_id)
        # SQLite needs no lock of a row: its transactions are one after the other.
        found = (await self._session.execute(wanted.with_for_update() if lock else wanted)).scalar_one_or_none()
        if found is None:
            raise SessionNotFoundError("there is no such session")
        if found.user_id != user_id:
            raise NotYourSessionError("this session belongs to somebody else")
        if found.expired_at is not None or found.last_active_at <= self._now - self._ttl:
            raise SessionExpiredError("this session was idle for too long and has expired; start a new one")
        return found

    async def info(self, session: Session) -> SessionInfo:
        """The session as its owner sees it."""
        return (await self._infos([session]))[0]

    async def page(
        self, user_id: UserId, *, query: str, after: tuple[datetime, SessionId] | None, limit: int
    ) -> list[SessionInfo]:
        """Living sessions of a user, the most recently active first.

        Args:
            user_id: whose.
            query: words of the title or of a message, in any case; empty: all sessions.
            after: activity and id of the last session of the page before.
            limit: most sessions to return.
        """
        wanted = select(Session).where(
            Session.user_id == user_id,
            Session.expired_at.is_(None),
            Session.last_active_at > self._now - self._ttl,
        )
        if query:
            said = exists().where(Message.session_id == Session.id, _contains(Message.content, query))
            wanted = wanted.where(or_(_contains(Session.title, query), said))
        if after is not None:
            moment, session_id = after
            older = and_(Session.last_active_at == moment, Session.id < session_id)
            wanted = wanted.where(or_(Session.last_active_at < moment, older))
        wanted = wanted.order_by(Session.last_active_at.desc(), Session.id.desc()).limit(limit)
        return await self._infos((await self._session.execute(wanted)).scalars().all())

    async def empty(self, session: Session) -> None:
        """Forget what was said and what it cost; the session stays."""
        await self._session.execute(delete(Message).where(Message.session_id == session.id))
        await self._session.execute(delete(Turn).where(Turn.session_id == session.id))
        session.turns = 0
        session.title = session.title if session.named else ""
        for column in USAGE_COLUMNS:
            setattr(session, column, 0)

    async def remove(self, session: Session) -> None:
        """Delete a session with all it holds."""
        await self._session.execute(delete(Session).where(Session.id == session.id))

    async def expire(self, *, limit: int) -> int:
        """Take the content of sessions that were idle for too long; what stays tells their owners so. Returns how many.

        Several edges may do this at once: each takes others.
        """
        running = exists().where(Turn.session_id == Session.id, Turn.status == "running")
        idle = (
            select(Session)
            .where(Session.expired_at.is_(None), Session.last_active_at <= self._now - self._ttl, ~running)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        found = (await self._session.execute(idle)).scalars().all()
        for session in found:
            await self.empty(session)
            session.title, session.expired_at = "", self._now
        return len(found)

    async def forget_expired(self, *, before: datetime, limit: int) -> None:
        """Delete what is left of sessions that expired before then, at most `limit` of them."""
        old = select(Session.id).where(Session.expired_at < before).limit(limit)
        await self._session.execute(delete(Session).where(Session.id.in_(old)))

    async def _infos(self, sessions: Sequence[Session]) -> list[SessionInfo]:
        running = select(Turn.session_id, func.coalesce(Turn.agent_turn_id, Turn.id)).where(
            Turn.session_id.in_([each.id for each in sessions]),
            Turn.status == "running",
            Turn.deadline_at > self._now,
        )
        turns = {row[0]: row[1] for row in await self._session.execute(running)} if sessions else {}
        return [
            SessionInfo(
                SessionId(each.id),
                each.title,
                each.created_at,
                each.last_active_at,
                each.last_active_at + self._ttl,
                each.turns,
                {column: getattr(each, column) for column in USAGE_COLUMNS},
                turns.get(each.id),
            )
            for each in sessions
        ]


def _contains(column: object, query: str) -> ColumnElement[bool]:
    escaped = query.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    # Bound as what it is compared with: the type of `lower()` knows nothing of U+0000.
    return func.lower(column).like(literal(f"%{escaped}%", PlainText), escape="\\")
