"""Idempotency keys. Each method is part of one short unit of work."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.auth.schemas import Principal
from edge_api.conversations.models import IdempotencyKey, Turn
from edge_api.conversations.schemas import MessageId, OpenTurn, RequestKey, SessionId
from edge_api.errors import KeyReusedError

KEY_LIFE = timedelta(hours=24)
"""How long a key stands for its request."""


class KeyRepository:
    """Keys of one user within one unit of work, at one moment. The user's row must be locked.

    That lock makes requests with one key go one after the other: who waits for it sees what the one before committed,
    or nothing where it was rolled back.
    """

    def __init__(self, session: AsyncSession, owner: Principal, *, now: datetime) -> None:
        self._session = session
        self._owner = owner
        self._now = now

    async def session_of(self, key: RequestKey) -> SessionId | None:
        """The session that the request with this key was made in; None: there was none, or its time is over.

        Raises:
            KeyReusedError: the key stands for another request.
        """
        wanted = (
            select(IdempotencyKey.fingerprint, Turn.session_id)
            .join(Turn, Turn.id == IdempotencyKey.turn_id)
            .where(*self._is(key), IdempotencyKey.created_at > self._now - KEY_LIFE)
        )
        found = (await self._session.execute(wanted)).one_or_none()
        if found is None:
            return None
        if found.fingerprint != key.fingerprint:
            raise KeyReusedError("this Idempotency-Key stands for another request")
        return SessionId(found.session_id)

    async def turn_of(self, key: RequestKey) -> MessageId | None:
        """The turn that the request with this key has opened; None: it was withdrawn. The session must be locked."""
        found = (await self._session.execute(select(IdempotencyKey.turn_id).where(*self._is(key)))).scalar_one_or_none()
        return None if found is None else MessageId(found)

    async def keep(self, key: RequestKey, turn: OpenTurn) -> None:
        """Write down which turn a request has opened. One of that key whose time is over is forgotten."""
        await self._session.execute(delete(IdempotencyKey).where(*self._is(key)))
        self._session.add(
            IdempotencyKey(
                tenant=self._owner.tenant,
                user_id=self._owner.user_id,
                key=key.key,
                fingerprint=key.fingerprint,
                turn_id=turn.message_id,
                created_at=self._now,
            )
        )
        await self._session.flush()

    async def move(self, key: RequestKey, failed: MessageId, turn: OpenTurn) -> None:
        """Write down which turn was started in place of a failed one. The key lives no longer for it."""
        moved = update(IdempotencyKey).where(*self._is(key), IdempotencyKey.turn_id == failed)
        await self._session.execute(moved.values(turn_id=turn.message_id, failed_turn_id=failed))

    def _is(self, key: RequestKey) -> tuple[ColumnElement[bool], ...]:
        return (
            IdempotencyKey.tenant == self._owner.tenant,
            IdempotencyKey.user_id == self._owner.user_id,
            IdempotencyKey.key == key.key,
        )


async def forget_keys(session: AsyncSession, *, now: datetime, limit: int) -> int:
    """Delete keys whose time is over, at most `limit`. Returns how many. Several edges may do this at once."""
    columns = (IdempotencyKey.tenant, IdempotencyKey.user_id, IdempotencyKey.key)
    over = select(*columns).where(IdempotencyKey.created_at <= now - KEY_LIFE).limit(limit)
    found = (await session.execute(over.with_for_update(skip_locked=True))).all()
    if found:
        await session.execute(delete(IdempotencyKey).where(tuple_(*columns).in_([tuple(each) for each in found])))
    return len(found)
