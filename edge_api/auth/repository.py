"""Accounts and refresh tokens. Each method is part of one short unit of work."""

import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.auth.models import RefreshToken, User
from edge_api.auth.schemas import OWN_ISSUER, NewAccount, Principal, UserId
from edge_api.errors import InvalidRefreshTokenError, UnauthenticatedError, UsernameTakenError

# Asked with every question, and so made once: building a statement costs more than running it.
OF_ID = select(User).where(User.id == bindparam("user_id")).with_for_update()


class AccountRepository:
    """Accounts within one unit of work."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def require(self, principal: Principal, *, now: datetime) -> None:
        """See that the caller's account may be used, and lock it until the unit of work ends.

        An external user's is made here, with their first session.

        Raises:
            UnauthenticatedError: it is gone, disabled or expired.
        """
        user = (await self._session.execute(OF_ID, {"user_id": principal.user_id})).scalar_one_or_none()
        if user is None and principal.issuer != OWN_ISSUER:
            user = await self._add_external(principal, now)
        if user is None or not _usable(user, now):
            raise UnauthenticatedError("this account is not in use")

    async def add(self, account: NewAccount, *, now: datetime) -> User:
        """A new account, or guest.

        Raises:
            UsernameTakenError: somebody has an account of that name.
        """
        user_id = str(uuid.uuid4())
        user = User(
            id=user_id,
            issuer=OWN_ISSUER,
            subject=user_id,
            tenant=account.tenant,
            groups=list(account.groups),
            scopes=list(account.scopes),
            username=account.username,
            username_key=account.username_key,
            password_hash=account.password_hash,
            guest=account.guest,
            created_at=now,
            expires_at=account.expires_at,
        )
        try:
            async with self._session.begin_nested():
                self._session.add(user)
        except IntegrityError:
            raise UsernameTakenError("somebody has an account of that name") from None
        return user

    async def by_name(self, username_key: str) -> User | None:
        """The built-in account of that name, in the form that names are compared in."""
        wanted = select(User).where(User.username_key == username_key)
        return (await self._session.execute(wanted)).scalar_one_or_none()

    async def unchanged(self, user: User) -> User | None:
        """The account, locked until the unit of work ends; None: disabled, gone, or with another password since."""
        wanted = (
            select(User)
            .where(User.id == user.id, User.password_hash == user.password_hash, User.disabled.is_(False))
            .with_for_update()
        )
        return (await self._session.execute(wanted)).scalar_one_or_none()

    async def by_id(self, user_id: UserId) -> User | None:
        """The account."""
        return await self._session.get(User, user_id)

    async def named(self) -> Sequence[User]:
        """The built-in accounts with a name, ordered by it. For operators."""
        wanted = select(User).where(User.username_key.is_not(None)).order_by(User.username_key)
        return (await self._session.execute(wanted)).scalars().all()

    async def forget_expired(self, *, now: datetime, limit: int) -> int:
        """Delete guests whose time is over, with all they said, and refresh tokens. Returns how many guests.

        Several edges may do this at once: each takes others. `limit`: most guests; ten times as many
        refresh tokens.
        """
        old = select(RefreshToken.id).where(RefreshToken.expires_at <= now).limit(10 * limit)
        await self._session.execute(delete(RefreshToken).where(RefreshToken.id.in_(old)))
        over = select(User.id).where(User.guest, User.expires_at <= now).limit(limit)
        ended = (await self._session.execute(over.with_for_update(skip_locked=True))).scalars().all()
        await self._session.execute(delete(User).where(User.id.in_(ended)))
        return len(ended)

    async def _add_external(self, principal: Principal, now: datetime) -> User | None:
        user = User(
            id=principal.user_id,
            issuer=principal.issuer,
            subject=principal.subject,
            tenant=principal.tenant,
            guest=False,
            created_at=now,
        )
        try:
            async with self._session.begin_nested():
                self._session.add(user)
        except IntegrityError:
            # Another request of theirs was faster.
            wanted = select(User).where(User.id == principal.user_id).with_for_update()
            return (await self._session.execute(wanted)).scalar_one_or_none()
        return user


class RefreshTokenRepository:
    """Refresh tokens within one unit of work. Only digests are stored: the tokens have 256 random bits."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, user: User, token: str, *, family_id: str, now: datetime, expires_at: datetime) -> None:
        """Keep a token that was just made."""
        self._session.add(
            RefreshToken(
                id=str(uuid.uuid4()),
                family_id=family_id,
                user_id=user.id,
                digest=_digest(token),
                created_at=now,
                expires_at=expires_at,
            )
        )

    async def use(self, token: str, *, now: datetime) -> tuple[User | None, str]:
        """Use a token up.

        Returns:
            The account and the family. No account: the token was used before, and its family was revoked. A thief and
            the owner hold the same chain then, and nobody can tell who is who.

        Raises:
            InvalidRefreshTokenError: it is unknown, expired or revoked, or its account is not in use.
        """
        wanted = select(RefreshToken).where(RefreshToken.digest == _digest(token))
        found = (await self._session.execute(wanted)).scalar_one_or_none()
        if found is None:
            raise InvalidRefreshTokenError("sign in again")
        # One use at a time for a user: else a chain could grow while another request revokes it.
        owner = select(User).where(User.id == found.user_id).with_for_update()
        user = (await self._session.execute(owner)).scalar_one_or_none()
        # Read again: the lock may have been waited for, and the token swept away meanwhile.
        found = (await self._session.execute(wanted.execution_options(populate_existing=True))).scalar_one_or_none()
        if found is None or found.revoked_at is not None or found.expires_at <= now:
            raise InvalidRefreshTokenError("sign in again")
        if user is None or not _usable(user, now):
            raise InvalidRefreshTokenError("sign in again")
        if found.used_at is not None:
            await self._revoke(found.family_id, now)
            return None, found.family_id
        found.used_at = now
        return user, found.family_id

    async def revoke(self, token: str, *, now: datetime) -> None:
        """End the chain that a token is of; an unknown one ends nothing."""
        wanted = select(RefreshToken.user_id, RefreshToken.family_id).where(RefreshToken.digest == _digest(token))
        found = (await self._session.execute(wanted)).one_or_none()
        if found is not None:
            # As in `use`: a refresh that is under way would add a token that this update cannot see.
            await self._session.execute(select(User.id).where(User.id == found.user_id).with_for_update())
            await self._revoke(found.family_id, now)

    async def revoke_all(self, user_id: UserId, *, now: datetime) -> None:
        """End every chain of a user."""
        living = update(RefreshToken).where(RefreshToken.user_id == user_id, RefreshToken.revoked_at.is_(None))
        await self._session.execute(living.values(revoked_at=now))

    async def _revoke(self, family_id: str, now: datetime) -> None:
        living = update(RefreshToken).where(RefreshToken.family_id == family_id, RefreshToken.revoked_at.is_(None))
        await self._session.execute(living.values(revoked_at=now))


def _usable(user: User, now: datetime) -> bool:
    return not user.disabled and (user.expires_at is None or user.expires_at > now)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
