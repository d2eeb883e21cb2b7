"""A user's sessions beside the chat: looked at, listed, renamed, emptied, deleted, rated; and cleaned up in time."""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from edge_api.auth.repository import AccountRepository
from edge_api.auth.schemas import Principal
from edge_api.conversations.cursors import message_cursor, read_message_cursor, read_session_cursor, session_cursor
from edge_api.conversations.repository.keys import forget_keys
from edge_api.conversations.repository.messages import MessageRepository, ReadMessage
from edge_api.conversations.repository.sessions import SessionRepository
from edge_api.conversations.repository.turns import TurnRepository
from edge_api.conversations.schemas import MessageId, OpenTurn, Rating, SessionId, SessionInfo, Verdict
from edge_api.db import Clock, Database, UnitOfWork, utc_now
from edge_api.errors import StorageUnavailableError
from edge_api.migrations import schema

log = logging.getLogger(__name__)

TOMBSTONE = timedelta(days=30)
"""How long an expired session is told from one that never was."""

SWEEP_S = 60.0
SWEEP_BATCH = 100
"""Sessions of one transaction: short enough for a chat to wait for."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a list; `next_cursor` None: the last."""

    items: Sequence[Item]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has removed."""

    sessions: int
    turns: int
    accounts: int
    keys: int


class SessionLibrary:
    """What owners do with their sessions. Every method is one short transaction."""

    def __init__(self, database: Database, *, session_ttl_s: float, clock: Clock = utc_now) -> None:
        self._database = database
        self._ttl = timedelta(seconds=session_ttl_s)
        self._clock = clock

    async def info(self, owner: Principal, session_id: SessionId) -> SessionInfo:
        """One session.

        Raises:
            SessionNotFoundError, NotYourSessionError, SessionExpiredError: as all of these methods do.
            StorageUnavailableError: likewise.
        """
        async with self._database.unit_of_work() as unit:
            sessions = self._sessions(unit)
            return await sessions.info(await sessions.own(session_id, owner.user_id))

    async def page(self, owner: Principal, *, query: str, cursor: str | None, limit: int) -> Page[SessionInfo]:
        """The user's sessions, the most recently active first. `query`: words of titles or messages; empty: all.

        Raises:
            InvalidCursorError: no page of this list gave it.
        """
        after = read_session_cursor(cursor) if cursor else None
        async with self._database.unit_of_work() as unit:
            # One more than asked for tells whether there is a next page.
            found = await self._sessions(unit).page(owner.user_id, query=query, after=after, limit=limit + 1)
        more = session_cursor(found[limit - 1].last_active_at, found[limit - 1].id) if len(found) > limit else None
        return Page(found[:limit], more)

    async def messages(
        self, owner: Principal, session_id: SessionId, *, cursor: str | None, limit: int, newest_first: bool
    ) -> Page[ReadMessage]:
        """Messages of a session in order, each with what was said in its place before.

        Raises:
            InvalidCursorError: no page of this list gave it.
        """
        after = read_message_cursor(cursor) if cursor else None
        async with self._database.unit_of_work() as unit:
            await self._sessions(unit).own(session_id, owner.user_id)
            found = await MessageRepository(unit).page(
                session_id, after=after, limit=limit + 1, newest_first=newest_first
            )
        more = message_cursor(found[limit - 1].row.place) if len(found) > limit else None
        return Page(found[:limit], more)

    async def message(self, owner: Principal, message_id: MessageId) -> ReadMessage:
        """One message, also one that is an alternative by now.

        Raises:
            MessageNotFoundError: there is no such message.
        """
        async with self._database.unit_of_work() as unit:
            messages = MessageRepository(unit)
            await self._sessions(unit).own(await messages.session_of(message_id), owner.user_id)
            return await messages.one(message_id)

    async def rename(self, owner: Principal, session_id: SessionId, title: str) -> SessionInfo:
        """Give a session another title."""
        async with self._database.unit_of_work() as unit:
            sessions = self._sessions(unit)
            session = await sessions.own(session_id, owner.user_id, lock=True)
            session.title, session.named = title, True
            return await sessions.info(session)

    async def running(self, owner: Principal, session_id: SessionId) -> OpenTurn | None:
        """The turn of a session that is being answered."""
        async with self._database.unit_of_work() as unit:
            await self._sessions(unit).own(session_id, owner.user_id)
            return await TurnRepository(unit, now=self._clock()).running(session_id)

    async def reset(self, owner: Principal, session_id: SessionId) -> tuple[SessionInfo, OpenTurn | None]:
        """Forget the messages and keep the session. Also returns the turn that was running, which must be stopped."""
        async with self._database.unit_of_work() as unit:
            sessions = self._sessions(unit)
            session = await sessions.own(session_id, owner.user_id, lock=True)
            running = await TurnRepository(unit, now=self._clock()).running(session_id)
            await sessions.empty(session)
            return await sessions.info(session), running

    async def delete(self, owner: Principal, session_id: SessionId) -> OpenTurn | None:
        """Delete a session with all it holds. Returns the turn that was running, which must be stopped."""
        async with self._database.unit_of_work() as unit:
            sessions = self._sessions(unit)
            session = await sessions.own(session_id, owner.user_id, lock=True)
            running = await TurnRepository(unit, now=self._clock()).running(session_id)
            await sessions.remove(session)
            return running

    async def rate(self, owner: Principal, message_id: MessageId, rating: Rating, comment: str) -> Verdict:
        """Keep what the owner thinks of an answer.

        Raises:
            MessageNotFoundError: there is no such answer.
        """
        async with self._database.unit_of_work() as unit:
            messages = MessageRepository(unit)
            await self._sessions(unit).own(await messages.session_of(message_id), owner.user_id, lock=True)
            return await messages.rate(message_id, rating, comment, now=self._clock())

    async def sweep(self) -> Swept:
        """Remove what has expired, a batch at a time. Several edges may do this at once."""
        now = self._clock()
        async with self._database.unit_of_work() as unit:
            turns = await TurnRepository(unit, now=now).give_up()
        sessions = await self._expire()
        async with self._database.unit_of_work() as unit:
            await self._sessions(unit).forget_expired(before=now - TOMBSTONE, limit=10 * SWEEP_BATCH)
        return Swept(sessions, turns, await self._forget_accounts(), await self._forget_keys())

    async def sweep_for_ever(self) -> None:
        """Sweep about once a minute, where the schema is ours; edges that started together do not stay together."""
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing
            try:
                if await schema.state(self._database) != "ok":
                    continue
                swept = await self.sweep()
            except StorageUnavailableError:
                continue
            except Exception:
                log.exception("a sweep failed")
                continue
            removed = asdict(swept)
            if any(removed.values()):
                log.info("swept", extra=removed)

    async def _expire(self) -> int:
        total = 0
        while True:
            async with self._database.unit_of_work() as unit:
                found = await self._sessions(unit).expire(limit=SWEEP_BATCH)
            total += found
            if found < SWEEP_BATCH:
                return total

    async def _forget_accounts(self) -> int:
        total = 0
        while True:
            async with self._database.unit_of_work() as unit:
                found = await AccountRepository(unit).forget_expired(now=self._clock(), limit=SWEEP_BATCH)
            total += found
            if found < SWEEP_BATCH:
                return total

    async def _forget_keys(self) -> int:
        total = 0
        while True:
            async with self._database.unit_of_work() as unit:
                found = await forget_keys(unit, now=self._clock(), limit=SWEEP_BATCH)
            total += found
            if found < SWEEP_BATCH:
                return total

    def _sessions(self, unit: UnitOfWork) -> SessionRepository:
        return SessionRepository(unit, now=self._clock(), ttl=self._ttl)
