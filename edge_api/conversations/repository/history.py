"""What was said before a question, as far as its answer needs it."""

import itertools
from collections.abc import Sequence

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.agent_client.events import Said
from edge_api.conversations.models import Message, Turn
from edge_api.conversations.schemas import Remark, SessionId

# Bounds of ChatRequest.history in the protocol.
MAX_HISTORY_MESSAGES = 200
MAX_MESSAGE_CHARACTERS = 32_000


class HistoryRepository:
    """The active messages of sessions, within one unit of work."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def remarks(self, session_id: SessionId, *, before: int, characters: int) -> list[Remark]:
        """The newest messages, oldest first: those that fit into `characters`, and one more that is cut off there.

        Args:
            session_id: whose.
            before: the place of the question.
            characters: most of all of them together.
        """
        length = func.length(Message.content)
        sent = case((length > MAX_MESSAGE_CHARACTERS, MAX_MESSAGE_CHARACTERS), else_=length)
        newer = func.sum(sent).over(order_by=Message.place.desc(), rows=(None, -1))
        sized = (
            select(Message.role, Message.content, Message.agent, Message.place, newer.label("newer"))
            .where(Message.session_id == session_id, Message.active, Message.place < before)
            .order_by(Message.place.desc())
            .limit(MAX_HISTORY_MESSAGES)
            .subquery()
        )
        wanted = (
            select(sized.c.role, sized.c.content, sized.c.agent)
            .where(func.coalesce(sized.c.newer, 0) < characters)
            .order_by(sized.c.place)
        )
        return [Remark(role, content, agent) for role, content, agent in await self._session.execute(wanted)]

    async def state(self, session_id: SessionId, *, before: int) -> bytes:
        """What the last answer before that place left for the next one; empty in a new conversation."""
        # By place and not by time: the clocks of two edges differ.
        wanted = (
            select(Turn.state)
            .join(Message, Message.id == Turn.id)
            .where(Message.session_id == session_id, Message.active, Message.place < before, Turn.state.is_not(None))
            .order_by(Message.place.desc())
            .limit(1)
        )
        return (await self._session.execute(wanted)).scalar_one_or_none() or b""


def history_of(messages: Sequence[Remark], *, characters: int) -> tuple[Said, ...]:
    """The newest questions with their answers, whole pairs, within the protocol's bounds.

    A question without an answer is left out: two questions in a row would read as one.

    Args:
        messages: as stored, oldest first.
        characters: most characters of all of them together.

    Returns:
        Question, answer, question, answer, oldest first; may be empty.
    """
    pairs = [
        (question, answer)
        for question, answer in itertools.pairwise(messages)
        if question.role == "user" and answer.role == "assistant" and answer.content
    ]
    kept: list[Said] = []
    for question, answer in reversed(pairs[-MAX_HISTORY_MESSAGES // 2 :]):
        said = [_said(answer), _said(question)]
        characters -= sum(len(each.content) for each in said)
        if characters < 0:
            break
        kept += said
    return tuple(reversed(kept))


def _said(remark: Remark) -> Said:
    return Said(remark.role, remark.content[:MAX_MESSAGE_CHARACTERS], remark.agent)
