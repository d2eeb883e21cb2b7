"""Stored messages, page by page, and what their readers think of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.conversations.models import Feedback, Message
from edge_api.conversations.schemas import MessageId, Rating, SessionId, Verdict
from edge_api.errors import MessageNotFoundError

MAX_ALTERNATIVES = 20
"""Most messages that are shown beside the active one of their place."""


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A stored message with what its reader thinks of it, and what else was said in its place, oldest first."""

    row: Message
    verdict: Verdict | None
    alternatives: "Sequence[ReadMessage]" = ()


class MessageRepository:
    """Messages within one unit of work."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(
        self, session_id: SessionId, *, after: int | None, limit: int, newest_first: bool
    ) -> Sequence[ReadMessage]:
        """Active messages of a session in order. `after`: the place of the last message of the page before."""
        wanted = select(Message, Feedback).outerjoin(Feedback).where(Message.session_id == session_id, Message.active)
        if after is not None:
            wanted = wanted.where(Message.place < after if newest_first else Message.place > after)
        order = Message.place.desc() if newest_first else Message.place
        found = (await self._session.execute(wanted.order_by(order).limit(limit))).all()
        others = await self._alternatives(session_id, [message.place for message, _ in found])
        return [ReadMessage(message, _verdict(feedback), others.get(message.place, ())) for message, feedback in found]

    async def _alternatives(self, session_id: SessionId, places: Sequence[int]) -> dict[int, list[ReadMessage]]:
        """The newest inactive messages of each place, oldest first."""
        if not places:
            return {}
        age = func.row_number().over(partition_by=Message.place, order_by=Message.position.desc())
        aged = (
            select(Message.id, age.label("age"))
            .where(Message.session_id == session_id, ~Message.active, Message.place.between(min(places), max(places)))
            .subquery()
        )
        wanted = (
            select(Message, Feedback)
            .outerjoin(Feedback)
            .join(aged, aged.c.id == Message.id)
            .where(aged.c.age <= MAX_ALTERNATIVES)
            .order_by(Message.position)
        )
        others: dict[int, list[ReadMessage]] = {}
        for message, feedback in await self._session.execute(wanted):
            others.setdefault(message.place, []).append(ReadMessage(message, _verdict(feedback)))
        return others

    async def one(self, message_id: MessageId) -> ReadMessage:
        """A message, active or not, without what stands beside it.

        Raises:
            MessageNotFoundError: there is no such message.
        """
        wanted = select(Message, Feedback).outerjoin(Feedback).where(Message.id == message_id)
        found = (await self._session.execute(wanted)).one_or_none()
        if found is None:
            raise MessageNotFoundError("there is no such message")
        return ReadMessage(found[0], _verdict(found[1]))

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
