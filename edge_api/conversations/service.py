"""Turns of a conversation: opened before the agent is asked, closed with what it answered."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from edge_api.agent_client.events import Question, Said, TurnId
from edge_api.auth.repository import AccountRepository
from edge_api.auth.schemas import Principal
from edge_api.conversations.repository.sessions import SessionRepository
from edge_api.conversations.repository.turns import MAX_HISTORY_MESSAGES, MAX_MESSAGE_CHARACTERS, TurnRepository
from edge_api.conversations.schemas import Draft, NewMessage, OpenTurn, Remark, SessionId
from edge_api.conversations.titles import title_of
from edge_api.db import Clock, Database, utc_now

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English; the agent counts what it really sends."""

TURN_MARGIN_S = 10.0
"""What storing an answer may take after the agent's deadline."""


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
    """What the chat does with conversations. Every method is one short transaction; none is held across a stream."""

    def __init__(self, database: Database, rules: TurnRules, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._rules = rules
        self._clock = clock

    async def open(self, owner: Principal, message: NewMessage) -> tuple[OpenTurn, Question]:
        """Store a person's message, and make the question that the agent is asked.

        Raises:
            SessionNotFoundError: there is no such session.
            NotYourSessionError: it is somebody else's.
            SessionExpiredError: it was idle for too long.
            TurnRunningError: its last message is still being answered.
            TooManyTurnsError: the user has as many running turns as allowed.
            UnauthenticatedError: the account is gone or disabled.
            StorageUnavailableError: nothing was stored; or, where only the confirmation was lost, the message without
                an answer.
        """
        now, rules = self._clock(), self._rules
        async with self._database.unit_of_work() as unit:
            await AccountRepository(unit).require(owner, now=now)
            sessions = SessionRepository(unit, now=now, ttl=timedelta(seconds=rules.session_ttl_s))
            turns = TurnRepository(unit, now=now)
            if message.session_id is None:
                session = await sessions.create(owner.user_id, title_of(message.content))
            else:
                session = await sessions.own(message.session_id, owner.user_id, lock=True)
                await turns.require_idle(message.session_id)
            if rules.max_user_turns is not None:
                await turns.require_room(owner.user_id, most=rules.max_user_turns)
            session.title = session.title or title_of(message.content)
            characters = rules.history_tokens * CHARACTERS_PER_TOKEN
            session_id = SessionId(session.id)
            before: list[Remark] = []
            state = b""
            if message.session_id is not None:
                before = await turns.history(session_id, characters=characters)
                state = await turns.state(session_id)
            budget = timedelta(seconds=rules.turn_timeout_s + TURN_MARGIN_S)
            turn = await turns.open(session, message, created=message.session_id is None, budget=budget)
        question = Question(
            request_id=turn.message_id,
            message=message.content,
            history=history_of(before, characters=characters),
            agent=message.agent or "",
            state=state,
        )
        return replace(turn, before=before, state=state), question

    async def name(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """Write down which turn of the agent service answers."""
        async with self._database.unit_of_work() as unit:
            await TurnRepository(unit, now=self._clock()).name(turn, turn_id)

    async def close(self, turn: OpenTurn, answer: Draft) -> bool:
        """Store the answer as far as it came. False: the turn was closed already, or its session forgotten."""
        async with self._database.unit_of_work() as unit:
            return await TurnRepository(unit, now=self._clock()).close(turn, answer)

    async def withdraw(self, turn: OpenTurn) -> None:
        """Forget a message whose turn never began: its sender was told so and will send it again."""
        async with self._database.unit_of_work() as unit:
            await TurnRepository(unit, now=self._clock()).withdraw(turn)


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
