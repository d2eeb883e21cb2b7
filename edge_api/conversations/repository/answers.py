"""What was answered: stored beside what was answered before, and read again. All within one short unit of work."""

from datetime import datetime

from sqlalchemy import and_, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.conversations.models import Message
from edge_api.conversations.repository.questions import STORE_NEXT
from edge_api.conversations.schemas import Draft, EndedTurn, OpenTurn

# Needed for every answer, and so made once: building a statement costs more than running it.
_messages = Message.metadata.tables[Message.__tablename__]
_shown = _messages.alias("shown")
ASKED = (
    select(_messages.c.place, _shown.c.id, _shown.c.status, func.length(_shown.c.content))
    .select_from(
        _messages.outerjoin(
            _shown,
            and_(
                _shown.c.session_id == _messages.c.session_id,
                _shown.c.place == _messages.c.place + 1,
                _shown.c.active,
            ),
        )
    )
    .where(_messages.c.id == bindparam("question"))
)
"""The place of a question, and the answer that is shown behind it."""


class AnswerRepository:
    """Answers within one unit of work, at one moment."""

    def __init__(self, session: AsyncSession, *, now: datetime) -> None:
        self._session = session
        self._now = now

    async def add(self, turn: OpenTurn, answer: Draft) -> None:
        """Store an answer. The one before steps back, unless this one says nothing. The session must be locked."""
        asked = await self._session.execute(ASKED, {"question": turn.question_id})
        place, shown_id, *before = asked.one()
        active = shown_id is None or _says(answer.status, len(answer.content)) or not _says(*before)
        if active and shown_id is not None:
            await self._session.execute(update(Message).where(Message.id == shown_id).values(active=False))
        said = {
            "id": turn.message_id,
            "session_id": turn.session_id,
            "of_session": turn.session_id,
            "place": place + 1,
            "active": active,
            "role": "assistant",
            "content": answer.content,
            "status": answer.status,
            "outcome": answer.outcome,
            "agent": answer.agent,
            "strategy": answer.strategy,
            "citations": answer.citations,
            "usage": answer.usage,
            "trace": answer.trace,
            "created_at": self._now,
        }
        await self._session.execute(STORE_NEXT, said)

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
