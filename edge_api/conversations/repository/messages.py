"""Stored messages, page by page, and what their readers think of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.conversations.models import Feedback, Message
from edge_api.conversations.schemas import MessageId, Rating, SessionId, Verdict
from edge_api.errors import MessageNotFoundError


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A stored message with what its reader thinks of it."""

    row: Message
    verdict: Verdict | None


class MessageRepository:
    """Messages within one unit of work."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(
        self, session_id: SessionId, *, after: int | None, limit: int, newest_first: bool
    ) -> Sequence[ReadMessage]:
        """Messages of a session in order. `after`: the position of the last message of the page before."""
        wanted = select(Message, Feedback).outerjoin(Feedback).where(Message.session_id == session_id)
        if after is not None:
            wanted = wanted.where(Message.position < after if newest_first else Message.position > after)
        order = Message.position.desc() if newest_first else Message.position
        rows = await self._session.execute(wanted.order_by(order).limit(limit))
        return [ReadMessage(message, _verdict(feedback)) for message, feedback in rows]

    async def session_of(self, message_id: MessageId) -> SessionId:
        """The session that a message is in.

        Raises:
            MessageNotFoundError: there is no such message.
        """
        wanted = select(Message.session_id).where(Message.id == message_id)
        found = (await self._session.execute(wanted)).scalar_one_or_none()
        if found is None:
            raise MessageNotFoundError("there is no such message")
        return SessionId(found)

    async def rate(self, message_id: MessageId, rating: Rating, comment: str, *, now: datetime) -> Verdict:
        """Keep what the owner thinks of an answer, in place of what they thought before. The session must be locked.

        Raises:
            MessageNotFoundError: there is no such answer.
        """
        role = (await self._session.execute(select(Message.role).where(Message.id == message_id))).scalar_one_or_none()
        if role != "assistant":
            raise MessageNotFoundError("there is no such answer")
        feedback = Feedback(message_id=message_id, rating=rating, comment=comment, created_at=now)
        return cast("Verdict", _verdict(await self._session.merge(feedback)))


def _verdict(feedback: Feedback | None) -> Verdict | None:
    if feedback is None:
        return None
    return Verdict(
        MessageId(feedback.message_id), cast("Rating", feedback.rating), feedback.comment, feedback.created_at
    )
