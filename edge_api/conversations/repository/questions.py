"""What people asked: stored, replaced, taken back. Each method is part of one short unit of work."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.conversations.models import Message, Turn
from edge_api.conversations.schemas import MessageId, OpenTurn, SessionId
from edge_api.db import PlainText

# Needed for every message, and so made once: building a statement costs more than running it.
_messages = Message.metadata.tables[Message.__tablename__]
STORE = insert(_messages)
STORE_NEXT = STORE.values(
    position=select(func.coalesce(func.max(_messages.c.position), 0) + 1)
    .where(_messages.c.session_id == bindparam("of_session", type_=PlainText))
    .scalar_subquery()
)
"""Stores a message behind those of `of_session`: the database finds its position. The session must be locked."""


class QuestionRepository:
    """Messages of people within one unit of work, at one moment. Their session must be locked."""

    def __init__(self, session: AsyncSession, *, now: datetime) -> None:
        self._session = session
        self._now = now

    async def last(self, session_id: SessionId) -> Message | None:
        """The last question of a session."""
        wanted = (
            select(Message)
            .where(Message.session_id == session_id, Message.active, Message.role == "user")
            .order_by(Message.place.desc())
            .limit(1)
        )
        return (await self._session.execute(wanted)).scalar_one_or_none()

    async def add(
        self, session_id: SessionId, content: str, details: Mapping[str, Any], *, is_first: bool = False
    ) -> Message:
        """Store a question after all others. `is_first`: the session was made for it."""
        if is_first:
            return await self._store(session_id, 1, content, details, position=1)
        last = await self.last(session_id)
        # Between two questions there is a place for an answer.
        return await self._store(session_id, 1 if last is None else last.place + 2, content, details)

    async def replace(self, old: Message, content: str, details: Mapping[str, Any]) -> tuple[Message, MessageId | None]:
        """Store a question in the place of the last one, which steps back with its answer.

        Returns:
            The question, and the answer that stepped back, if there was one.
        """
        session_id = SessionId(old.session_id)
        stepped_back = (
            update(Message)
            .where(Message.session_id == session_id, Message.place == old.place + 1, Message.active)
            .values(active=False)
            .returning(Message.id)
        )
        replaced_id = (await self._session.execute(stepped_back)).scalar_one_or_none()
        await self._session.execute(update(Message).where(Message.id == old.id).values(active=False))
        question = await self._store(session_id, old.place, content, details)
        return question, None if replaced_id is None else MessageId(replaced_id)

    async def take_back(self, turn: OpenTurn, *, replaced_id: str | None) -> None:
        """Delete the question of a turn that is gone, unless it is another turn's too.

        The one that it replaced is in its place again, with that one's answer `replaced_id`.
        """
        asked = exists().where(Turn.session_id == turn.session_id, Turn.question_id == turn.question_id)
        gone = delete(Message).where(Message.id == turn.question_id, ~asked).returning(Message.place)
        place = (await self._session.execute(gone)).scalar_one_or_none()
        if place is None:
            return
        before = (
            select(Message.id)
            .where(Message.session_id == turn.session_id, Message.place == place, Message.role == "user")
            .order_by(Message.position.desc())
            .limit(1)
        )
        back = [(await self._session.execute(before)).scalar_one_or_none(), replaced_id]
        await self._session.execute(update(Message).where(Message.id.in_(filter(None, back))).values(active=True))

    async def _store(
        self,
        session_id: SessionId,
        place: int,
        content: str,
        details: Mapping[str, Any],
        *,
        position: int | None = None,
    ) -> Message:
        question = {
            "id": str(uuid.uuid4()),
            "session_id": session_id,
            "place": place,
            "role": "user",
            "content": content,
            "status": "completed",
            "details": dict(details),
            "created_at": self._now,
        }
        if position is None:
            await self._session.execute(STORE_NEXT, {**question, "of_session": session_id})
        else:
            await self._session.execute(STORE, {**question, "position": position})
        return Message(**question)
