"""What was answered: stored beside what was answered before, and read again. All within one short unit of work."""

from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.conversations.models import Message
from edge_api.conversations.repository.questions import next_position
from edge_api.conversations.schemas import Draft, EndedTurn, OpenTurn


class AnswerRepository:
    """Answers within one unit of work, at one moment."""

    def __init__(self, session: AsyncSession, *, now: datetime) -> None:
        self._session = session
        self._now = now

    async def add(self, turn: OpenTurn, answer: Draft) -> None:
        """Store an answer. The one before steps back, unless this one says nothing. The session must be locked."""
        asked_at = select(Message.place).where(Message.id == turn.question_id)
        place = (await self._session.execute(asked_at)).scalar_one() + 1
        there = (Message.session_id == turn.session_id, Message.place == place, Message.active)
        shown = select(Message.status, func.length(Message.content)).where(*there)
        before = (await self._session.execute(shown)).one_or_none()
        active = before is None or _says(answer.status, len(answer.content)) or not _says(*before)
        if active:
            await self._session.execute(update(Message).where(*there).values(active=False))
        said = Message(
            id=turn.message_id,
            session_id=turn.session_id,
            position=await next_position(self._session, turn.session_id),
            place=place,
            active=active,
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
        await self._session.flush()

    async def draft_of(self, turn: EndedTurn) -> Draft:
        """The stored answer of a turn; an empty one with its status where none was stored."""
        draft = Draft(status=turn.status, turn_id=turn.turn_id, last_sequence=turn.last_sequence, failure=turn.failure)
        said = await self._session.get(Message, turn.message_id)
        if said is not None:
            draft.outcome, draft.agent, draft.strategy = said.outcome, said.agent, said.strategy
            draft.citations, draft.usage, draft.trace = said.citations, said.usage, said.trace
            draft.write(said.content)
        return draft


def _says(status: str, characters: int) -> bool:
    """Whether an answer is one to show: an attempt that failed or was ended before its first word is not."""
    return status == "completed" or characters > 0
