"""Where conversations are kept."""

import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edge_api.agent_client.events import TurnId
from edge_api.conversations.schemas import Draft, Message, MessageId, NewMessage, OpenTurn, SessionId
from edge_api.errors import SessionExpiredError, SessionNotFoundError, TurnRunningError

MAX_SESSIONS = 10_000
MAX_MESSAGES = 200
# As much as a turn can send to the agent.
MAX_CHARACTERS = 256_000


class ConversationRepository(Protocol):
    """Sessions, their messages and turns. Each method is one short unit of work; none is held across a stream."""

    async def open_turn(self, message: NewMessage) -> OpenTurn:
        """Store a person's message and mark the session's turn as running, in one step.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionExpiredError: it was idle for too long.
            TurnRunningError: its last message is still being answered.
        """
        ...

    async def name_turn(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """Write down which turn of the agent service answers."""
        ...

    async def close_turn(self, turn: OpenTurn, answer: Draft) -> None:
        """Store the answer as far as it came, and its state for the next turn. A turn is closed once."""
        ...

    async def withdraw_turn(self, turn: OpenTurn) -> None:
        """Forget a turn that never began, with its message, and its session where it began with it."""
        ...


@dataclass(slots=True)
class _Session:
    last_active_s: float
    messages: deque[Message] = field(default_factory=deque)
    state: bytes = b""
    running: MessageId | None = None
    turn_id: TurnId | None = None

    def add(self, message: Message) -> None:
        """Append, and drop the oldest over the bounds; the newest always stays."""
        self.messages.append(message)
        characters = sum(len(each.content) for each in self.messages)
        while len(self.messages) > 1 and (len(self.messages) > MAX_MESSAGES or characters > MAX_CHARACTERS):
            characters -= len(self.messages.popleft().content)


class InMemoryConversations:
    """Conversations of this process, gone with it. The least recently used session makes room for a new one."""

    def __init__(self, *, ttl_s: float, clock: Callable[[], float], max_sessions: int = MAX_SESSIONS) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._max_sessions = max_sessions
        # Least recently used first, so that what has expired stands at the front.
        self._sessions: OrderedDict[SessionId, _Session] = OrderedDict()
        # Names of expired sessions, to tell them from sessions that never were.
        self._expired: OrderedDict[SessionId, None] = OrderedDict()

    async def open_turn(self, message: NewMessage) -> OpenTurn:
        """See `ConversationRepository`."""
        self._expire()
        session_id, session = self._find(message.session_id) if message.session_id else self._create()
        if session.running:
            raise TurnRunningError(session.turn_id)
        before = tuple(session.messages)
        session.add(Message(_new_id(), "user", message.content, metadata=message.metadata))
        session.running, session.turn_id = _new_id(), None
        self._touch(session_id, session)
        return OpenTurn(session_id, session.running, message.session_id is None, before, session.state)

    async def name_turn(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """See `ConversationRepository`."""
        if session := self._running(turn):
            session.turn_id = turn_id

    async def close_turn(self, turn: OpenTurn, answer: Draft) -> None:
        """See `ConversationRepository`."""
        if session := self._running(turn):
            session.running = session.turn_id = None
            session.add(Message(turn.message_id, "assistant", answer.content, answer.status, answer.agent))
            if answer.state is not None:
                session.state = answer.state
            self._touch(turn.session_id, session)

    async def withdraw_turn(self, turn: OpenTurn) -> None:
        """See `ConversationRepository`."""
        if session := self._running(turn):
            session.running = session.turn_id = None
            session.messages.pop()
            if turn.created:
                del self._sessions[turn.session_id]

    def _find(self, session_id: SessionId) -> tuple[SessionId, _Session]:
        if session := self._sessions.get(session_id):
            return session_id, session
        if session_id in self._expired:
            raise SessionExpiredError("this session was idle for too long and has expired; start a new one")
        raise SessionNotFoundError("there is no such session")

    def _create(self) -> tuple[SessionId, _Session]:
        session_id = SessionId(str(uuid.uuid4()))
        session = self._sessions[session_id] = _Session(self._clock())
        if len(self._sessions) > self._max_sessions:
            self._sessions.popitem(last=False)
        return session_id, session

    def _running(self, turn: OpenTurn) -> _Session | None:
        """The session while `turn` is its running turn; it may have been dropped to make room meanwhile."""
        session = self._sessions.get(turn.session_id)
        return session if session and session.running == turn.message_id else None

    def _touch(self, session_id: SessionId, session: _Session) -> None:
        session.last_active_s = self._clock()
        self._sessions.move_to_end(session_id)

    def _expire(self) -> None:
        oldest_s = self._clock() - self._ttl_s
        while self._sessions:
            session_id, session = next(iter(self._sessions.items()))
            if session.last_active_s > oldest_s or session.running:
                return
            del self._sessions[session_id]
            self._expired[session_id] = None
            if len(self._expired) > self._max_sessions:
                self._expired.popitem(last=False)


def _new_id() -> MessageId:
    return MessageId(str(uuid.uuid4()))
