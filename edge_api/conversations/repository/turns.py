"""Turns: opened with a question, closed with an answer. Each method is part of one short unit of work."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    delete,
    exists,
    false,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate

from edge_api.agent_client.events import TurnId
from edge_api.agent_client.signing import DEFAULT_TENANT, Caller
from edge_api.auth.schemas import UserId
from edge_api.conversations.models import IdempotencyKey, Message, Session, Turn
from edge_api.conversations.repository.answers import AnswerRepository
from edge_api.conversations.repository.questions import QuestionRepository
from edge_api.conversations.repository.sessions import USAGE_COLUMNS
from edge_api.conversations.repository.turn_statements import (
    END_RUNNING,
    GROW,
    OPEN,
    OPEN_NEXT,
    RUNNING_OF_USER,
    ending,
)
from edge_api.conversations.schemas import Closed, Draft, EndedTurn, Failure, MessageId, OpenTurn, SessionId
from edge_api.errors import TooManyTurnsError, TurnRunningError

RETRY_AFTER_S = 2.0
"""When a user with too many running turns may try again. Seconds; about the length of a short answer."""

MISTAKEN = ("TURN_LOST", "")
"""Reasons of failures that an edge saw for itself, and not the agent that makes the answer."""

OVERDUE = Failure("DEADLINE_EXCEEDED")
"""What a turn failed with that nobody has ended in time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a question is answered.

    Attributes:
        caller: on whose behalf the agent service is asked.
        edge_id: who stores the answer.
        budget: after this nobody can still be making it.
        replaced_id: the answer that stepped back with the question that this one replaces.
        created: whether the session began with it.
    """

    caller: Caller
    edge_id: str
    budget: timedelta
    replaced_id: MessageId | None = None
    created: bool = False


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
        running = await self._session.execute(RUNNING_OF_USER, {"user": user_id, "now": self._now})
        if running.scalar_one() >= most:
            raise TooManyTurnsError(f"{most} answers are being made for you", retry_after_s=RETRY_AFTER_S)

    async def require_idle(self, session_id: SessionId) -> None:
        """See that no turn of this session runs; one whose time is long over is given up. The session must be locked.

        Raises:
            TurnRunningError: its last message is still being answered.
        """
        found = await self._read(select(Turn).where(Turn.session_id == session_id, Turn.status == "running"))
        if isinstance(found, OpenTurn):
            raise TurnRunningError(found.name)
        if found is not None:
            await self.give_up(session_id=session_id)

    async def running(self, session_id: SessionId) -> OpenTurn | None:
        """The turn of a session that is being answered."""
        found = await self._read(
            select(Turn).where(Turn.session_id == session_id, Turn.status == "running", Turn.deadline_at > self._now)
        )
        return found if isinstance(found, OpenTurn) else None

    async def by_id(self, message_id: MessageId) -> OpenTurn | EndedTurn | None:
        """A turn by our own name."""
        return await self._read(select(Turn).where(Turn.id == message_id))

    async def by_name(self, session_id: SessionId, turn_id: str) -> OpenTurn | EndedTurn | None:
        """A turn of a session by our name or the agent service's."""
        named = or_(Turn.id == turn_id, Turn.agent_turn_id == turn_id)
        return await self._read(select(Turn).where(Turn.session_id == session_id, named))

    async def newest(self, session_id: SessionId) -> OpenTurn | EndedTurn | None:
        """The turn of a session that was opened last: the running one, where there is one."""
        return await self._read(select(Turn).where(Turn.session_id == session_id))

    async def open(self, session: Session, question: Message, attempt: Attempt) -> OpenTurn:
        """Begin to answer a stored question: the last one of a session that is locked and idle."""
        caller = attempt.caller
        turn = {
            "id": str(uuid.uuid4()),
            "session_id": session.id,
            "user_id": session.user_id,
            "question_id": question.id,
            "replaced_id": attempt.replaced_id,
            "created": attempt.created,
            "edge_id": attempt.edge_id or None,
            "caller": {"subject": caller.subject, "tenant": caller.tenant, "groups": list(caller.groups)},
            "status": "running",
            "created_at": self._now,
            "deadline_at": self._now + attempt.budget,
        }
        session.last_active_at = max(session.last_active_at, self._now)
        if attempt.created:
            await self._session.execute(OPEN, {**turn, "number": 1})
        else:
            await self._session.execute(OPEN_NEXT, {**turn, "of_session": session.id})
        return open_turn(Turn(**turn))

    async def question_to_repeat(self, turn: EndedTurn) -> Message | None:
        """The question of a failed turn, where it is the last one and nothing but failures came after the turn.

        The session must be locked.
        """
        later, newer = aliased(Turn), aliased(Message)
        gone_on = exists().where(
            later.session_id == Turn.session_id, later.number > Turn.number, later.status != "failed"
        )
        asked_on = exists().where(
            newer.session_id == Message.session_id, newer.active, newer.role == "user", newer.place > Message.place
        )
        wanted = (
            select(Message)
            .join(Turn, Turn.question_id == Message.id)
            .where(Turn.id == turn.message_id, Message.active, ~gone_on, ~asked_on)
        )
        return (await self._session.execute(wanted)).scalar_one_or_none()

    async def name(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """Write down which turn of the agent service answers."""
        await self._session.execute(update(Turn).where(Turn.id == turn.message_id).values(agent_turn_id=turn_id))

    async def close(self, turn: OpenTurn, answer: Draft) -> Closed:
        """Store the answer as far as it came, once."""
        await self._lock(turn.session_id)
        was_stored = False
        if not await self._end(turn, answer, END_RUNNING):
            stored = (
                await self._session.execute(select(Message.status).where(Message.id == turn.message_id))
            ).one_or_none()
            was_stored = stored is not None
            newer = aliased(Turn)
            overtaken = exists().where(newer.session_id == Turn.session_id, newer.number > Turn.number)
            # A turn that was given up, or taken for lost by an edge that could not see it, is still its answer's, as
            # long as nothing came after it.
            mistaken: ColumnElement[bool] = true() if stored is None else Turn.failure_reason.in_(MISTAKEN)
            if stored is not None and answer.status == "failed":
                mistaken = false()
            if not await self._end(turn, answer, ending(and_(Turn.status == "failed", mistaken, ~overtaken))):
                return "already" if stored is not None and stored.status == answer.status else "gone"
        if was_stored:
            await self._session.execute(delete(Message).where(Message.id == turn.message_id))
        await AnswerRepository(self._session, now=self._now).add(turn, answer)
        spent = {f"more_{column}": answer.usage.get(column, 0) for column in USAGE_COLUMNS}
        more_turns = 0 if was_stored else 1
        grown = {"session": turn.session_id, "now": self._now, "more_turns": more_turns, **spent}
        await self._session.execute(GROW, grown)
        return "stored"

    async def _end(self, turn: OpenTurn, answer: Draft, ending: ReturningUpdate[str]) -> bool:
        failure = answer.failure if answer.status == "failed" else None
        ended = {
            "turn": turn.message_id,
            "new_status": answer.status,
            "new_state": answer.state,
            "named": answer.turn_id,
            "now": self._now,
            "new_last_sequence": answer.last_sequence,
            "new_failure_code": failure.code if failure else None,
            "new_failure_reason": failure.reason if failure else None,
        }
        return (await self._session.execute(ending, ended)).scalar_one_or_none() is not None

    async def withdraw(self, turn: OpenTurn) -> None:
        """Forget a turn that never began, with its message, and its session where it began with it.

        What stepped back for the message is as it was. A key by which a failed turn was started again names that one.
        """
        await self._lock(turn.session_id)
        wanted = select(Turn).where(Turn.id == turn.message_id, Turn.status == "running").with_for_update()
        found = (await self._session.execute(wanted)).scalar_one_or_none()
        if found is None:
            return
        if turn.created:
            await self._session.execute(delete(Session).where(Session.id == turn.session_id))
            return
        keys = update(IdempotencyKey).where(
            IdempotencyKey.turn_id == turn.message_id, IdempotencyKey.failed_turn_id.is_not(None)
        )
        await self._session.execute(keys.values(turn_id=IdempotencyKey.failed_turn_id, failed_turn_id=None))
        await self._session.execute(delete(Turn).where(Turn.id == turn.message_id))
        await QuestionRepository(self._session, now=self._now).take_back(turn, replaced_id=found.replaced_id)
        # A title that was made from this message goes with it.
        said = exists().where(Message.session_id == turn.session_id)
        untitled = update(Session).where(Session.id == turn.session_id, Session.named.is_(False), ~said)
        await self._session.execute(untitled.values(title=""))

    async def give_up(self, *, session_id: SessionId | None = None) -> int:
        """End turns whose time is over as failed, their questions kept. Returns how many.

        Args:
            session_id: only in this session. Default: everywhere.
        """
        orphans = update(Turn).where(Turn.status == "running", Turn.deadline_at <= self._now)
        if session_id is not None:
            orphans = orphans.where(Turn.session_id == session_id)
        ended = orphans.values(
            status="failed", ended_at=self._now, failure_code=OVERDUE.code, failure_reason=OVERDUE.reason
        )
        return len((await self._session.execute(ended.returning(Turn.id))).all())

    async def _read(self, wanted: Select[Turn]) -> OpenTurn | EndedTurn | None:
        # What this unit of work has read before may have changed while it waited for a lock.
        newest = wanted.order_by(Turn.number.desc()).limit(1).execution_options(populate_existing=True)
        found = (await self._session.execute(newest)).scalar_one_or_none()
        if found is None:
            return None
        if found.status == "running" and found.deadline_at > self._now:
            return open_turn(found)
        return _ended_turn(found)

    async def _lock(self, session_id: SessionId) -> None:
        """Always the session before its turns: two that lock in different orders wait for each other for ever."""
        # SQLite has one writer, who waits for nobody.
        if self._session.get_bind().dialect.name == "sqlite":
            return
        await self._session.execute(select(Session.id).where(Session.id == session_id).with_for_update())


def open_turn(turn: Turn) -> OpenTurn:
    """A row as a turn whose answer is being made."""
    return OpenTurn(
        SessionId(turn.session_id),
        MessageId(turn.id),
        MessageId(turn.question_id),
        turn.created,
        _caller(turn),
        turn.deadline_at,
        TurnId(turn.agent_turn_id) if turn.agent_turn_id else None,
    )


def _ended_turn(turn: Turn) -> EndedTurn:
    failure = Failure(turn.failure_code, turn.failure_reason or "") if turn.failure_code else None
    # One that nobody has given up yet.
    overdue = turn.status == "running"
    return EndedTurn(
        SessionId(turn.session_id),
        MessageId(turn.id),
        _caller(turn),
        TurnId(turn.agent_turn_id or turn.id),
        "failed" if overdue else turn.status,
        turn.last_sequence,
        OVERDUE if overdue else failure,
    )


def _caller(turn: Turn) -> Caller:
    if turn.caller is None:
        return Caller(turn.user_id, DEFAULT_TENANT)
    return Caller(turn.caller["subject"], turn.caller["tenant"], tuple(turn.caller["groups"]))
