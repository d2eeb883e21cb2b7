"""Turns of a conversation: opened before the agent is asked, closed with what it answered."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from edge_api.agent_client.events import Question, TurnId
from edge_api.agent_client.signing import Caller
from edge_api.auth.repository import AccountRepository
from edge_api.auth.schemas import Principal
from edge_api.conversations.models import Message, Session
from edge_api.conversations.repository.answers import AnswerRepository
from edge_api.conversations.repository.history import HistoryRepository, history_of
from edge_api.conversations.repository.keys import KeyRepository
from edge_api.conversations.repository.questions import QuestionRepository
from edge_api.conversations.repository.sessions import SessionRepository
from edge_api.conversations.repository.turns import Attempt, TurnRepository
from edge_api.conversations.schemas import (
    Again,
    Asked,
    AskedBefore,
    AskedNow,
    Closed,
    Draft,
    EndedTurn,
    Failure,
    NewMessage,
    OpenTurn,
    RequestKey,
    SessionId,
)
from edge_api.conversations.titles import title_of
from edge_api.db import Clock, Database, UnitOfWork, utc_now
from edge_api.errors import MessageNotFoundError, SessionExpiredError, SessionNotFoundError, TurnNotFoundError

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English; the agent counts what it really sends."""

TURN_MARGIN_S = 10.0
"""What storing an answer may take after the agent's deadline."""

PASSING = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "UNKNOWN"})
PASSING_REASONS = frozenset({"MODEL_FAILED"})
"""Failures that may pass: what our callers are told is retryable."""


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Bounds of turns.

    Attributes:
        session_ttl_s: how long a session may be idle. Seconds.
        turn_timeout_s: longest answer. Seconds.
        history_tokens: most of the conversation that goes with a question, about.
        max_user_turns: most running turns of one user; None: any number.
    """

    session_ttl_s: float
    turn_timeout_s: float = 120.0
    history_tokens: int = 16_000
    max_user_turns: int | None = None


class ConversationService:
    """What the chat does with conversations. Every method is one short transaction; none is held across a stream.

    Args:
        database: where they are kept.
        rules: bounds.
        edge_id: names this process in the turns that it opens; see `leases.py`.
        clock: the time.
    """

    def __init__(self, database: Database, rules: TurnRules, *, edge_id: str = "", clock: Clock = utc_now) -> None:
        self._database = database
        self._rules = rules
        self._edge_id = edge_id
        self._clock = clock

    async def open(
        self, owner: Principal, message: NewMessage, *, caller: Caller, key: RequestKey | None = None
    ) -> Asked:
        """Store a person's message, and make the question that the agent is asked.

        The same again under the same `key` stores nothing, unless the turn has failed and may be tried again.

        Raises:
            SessionNotFoundError: there is no such session.
            NotYourSessionError: it is somebody else's.
            SessionExpiredError: it was idle for too long.
            KeyReusedError: the key stands for another request.
            TurnRunningError: its last message is still being answered.
            TooManyTurnsError: the user has as many running turns as allowed.
            UnauthenticatedError: the account is gone or disabled.
            StorageUnavailableError: nothing was stored; or, where only the confirmation was lost, the message without
                an answer.
        """
        async with self._database.unit_of_work() as unit:
            asking = _Asking(unit, self._rules, self._clock(), owner)
            request = _Request(Attempt(caller, self._edge_id, asking.budget), message.agent or "", key)
            await asking.require_account()
            session = None if message.session_id is None else await asking.own(message.session_id)
            before = await asking.asked_before(request)
            if before is not None:
                return before
            is_new = session is None
            if session is None:
                session = await asking.sessions.create(owner.user_id, title_of(message.content))
                request = replace(request, attempt=replace(request.attempt, created=True))
            else:
                await asking.turns.require_idle(SessionId(session.id))
            question = await asking.questions.add(
                SessionId(session.id), message.content, message.metadata, is_first=is_new
            )
            return await asking.start(session, question, request)

    async def again(self, owner: Principal, request: Again, *, caller: Caller, key: RequestKey | None = None) -> Asked:
        """Make the last question again, or store an edited one in its place. What was said before stays beside it.

        An answer steps back when the new one is stored; with an edited question at once, until that is withdrawn.

        Raises:
            MessageNotFoundError: nothing was asked yet.
            EdgeError: as `open` does.
        """
        async with self._database.unit_of_work() as unit:
            asking = _Asking(unit, self._rules, self._clock(), owner)
            wanted = _Request(Attempt(caller, self._edge_id, asking.budget), request.agent or "", key)
            await asking.require_account()
            session = await asking.own(request.session_id)
            before = await asking.asked_before(wanted)
            if before is not None:
                return before
            await asking.turns.require_idle(request.session_id)
            question = await asking.questions.last(request.session_id)
            if question is None:
                raise MessageNotFoundError("this session has no message yet")
            if request.content is not None:
                details = question.details if request.metadata is None else request.metadata
                question, replaced_id = await asking.questions.replace(question, request.content, details)
                wanted = replace(wanted, attempt=replace(wanted.attempt, replaced_id=replaced_id))
            return await asking.start(session, question, wanted)

    async def find(self, owner: Principal, session_id: SessionId, turn_id: str | None) -> OpenTurn | EndedTurn:
        """A turn of a session, by our name or the agent service's. `turn_id` None: the one that was opened last.

        One whose time is over has failed, also where that is not written down yet.

        Raises:
            TurnNotFoundError: there is no such turn in the session.
            SessionNotFoundError, NotYourSessionError, SessionExpiredError, StorageUnavailableError: as `open` does.
        """
        now = self._clock()
        async with self._database.unit_of_work() as unit:
            sessions = SessionRepository(unit, now=now, ttl=timedelta(seconds=self._rules.session_ttl_s))
            await sessions.own(session_id, owner.user_id)
            turns = TurnRepository(unit, now=now)
            newest = turn_id is None
            found = await turns.newest(session_id) if newest else await turns.by_name(session_id, str(turn_id))
        if found is None:
            raise TurnNotFoundError("there is no such turn in this session")
        return found

    async def answer_of(self, turn: EndedTurn) -> Draft:
        """The stored answer of a turn; an empty one with the turn's status where it left none.

        Raises:
            TurnNotFoundError: its session was emptied or deleted meanwhile.
        """
        now = self._clock()
        async with self._database.unit_of_work() as unit:
            found = await TurnRepository(unit, now=now).by_id(turn.message_id)
            if found is None:
                raise TurnNotFoundError("this turn was forgotten with its session")
            # A late answer may have come since.
            ended = found if isinstance(found, EndedTurn) else turn
            return await AnswerRepository(unit, now=now).draft_of(ended)

    async def name(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """Write down which turn of the agent service answers."""
        async with self._database.unit_of_work() as unit:
            await TurnRepository(unit, now=self._clock()).name(turn, turn_id)

    async def close(self, turn: OpenTurn, answer: Draft) -> Closed:
        """Store the answer as far as it came, once, whoever else tries."""
        async with self._database.unit_of_work() as unit:
            return await TurnRepository(unit, now=self._clock()).close(turn, answer)

    async def withdraw(self, turn: OpenTurn) -> None:
        """Forget a turn that never began, with its message: its sender was told so and will send it again.

        What stepped back for it is as it was.
        """
        async with self._database.unit_of_work() as unit:
            await TurnRepository(unit, now=self._clock()).withdraw(turn)


@dataclass(frozen=True, slots=True)
class _Request:
    """A question besides its text. `agent`: ask this one; empty: the agent service chooses."""

    attempt: Attempt
    agent: str
    key: RequestKey | None


class _Asking:
    """One unit of work in which a question is asked. Locks are taken in this order: user, session, turns."""

    def __init__(self, unit: UnitOfWork, rules: TurnRules, now: datetime, owner: Principal) -> None:
        self._rules = rules
        self._now = now
        self._owner = owner
        self._accounts = AccountRepository(unit)
        self._keys = KeyRepository(unit, owner, now=now)
        self._history = HistoryRepository(unit)
        self.sessions = SessionRepository(unit, now=now, ttl=timedelta(seconds=rules.session_ttl_s))
        self.questions = QuestionRepository(unit, now=now)
        self.turns = TurnRepository(unit, now=now)
        self.budget = timedelta(seconds=rules.turn_timeout_s + TURN_MARGIN_S)

    async def require_account(self) -> None:
        await self._accounts.require(self._owner, now=self._now)

    async def own(self, session_id: SessionId) -> Session:
        return await self.sessions.own(session_id, self._owner.user_id, lock=True)

    async def asked_before(self, request: _Request) -> Asked | None:
        """What the same request came to before; a failed turn that may be tried again is started anew."""
        key = request.key
        session_id = None if key is None else await self._keys.session_of(key)
        if key is None or session_id is None:
            return None
        try:
            session = await self.own(session_id)
        except (SessionNotFoundError, SessionExpiredError):
            # The key is forgotten with its session.
            return None
        # Only now: the lock may have been waited for, and the key moved or gone meanwhile.
        message_id = await self._keys.turn_of(key)
        turn = None if message_id is None else await self.turns.by_id(message_id)
        if turn is None:
            return None
        if isinstance(turn, EndedTurn) and turn.status == "failed" and may_start_again(turn.failure):
            await self.turns.give_up(session_id=turn.session_id)
            question = await self.turns.question_to_repeat(turn)
            if question is not None:
                return await self.start(session, question, request, instead_of=turn)
        return AskedBefore(turn)

    async def start(
        self, session: Session, question: Message, request: _Request, *, instead_of: EndedTurn | None = None
    ) -> AskedNow:
        """Open a turn on a stored question."""
        session_id = SessionId(session.id)
        if self._rules.max_user_turns is not None:
            await self.turns.require_room(self._owner.user_id, most=self._rules.max_user_turns)
        session.title = session.title or title_of(question.content)
        turn = await self.turns.open(session, question, request.attempt)
        if request.key is not None and instead_of is None:
            await self._keys.keep(request.key, turn)
        elif request.key is not None and instead_of is not None:
            await self._keys.move(request.key, instead_of.message_id, turn)
        asked = Question(request_id=turn.message_id, message=question.content, agent=request.agent)
        if question.place == 1:
            return AskedNow(turn, asked)
        characters = self._rules.history_tokens * CHARACTERS_PER_TOKEN
        before = await self._history.remarks(session_id, before=question.place, characters=characters)
        state = await self._history.state(session_id, before=question.place)
        return AskedNow(turn, replace(asked, history=history_of(before, characters=characters), state=state))


def may_start_again(failure: Failure | None) -> bool:
    """Whether the same question may fare better than a turn that failed with this. None: nobody knows why."""
    return failure is None or failure.code in PASSING or failure.reason in PASSING_REASONS
