"""Signing in and out: accounts, guests, and the chain of refresh tokens behind an access token."""

import logging
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from edge_api.auth.models import User
from edge_api.auth.passwords import Passwords
from edge_api.auth.repository import AccountRepository, RefreshTokenRepository
from edge_api.auth.schemas import Grant, NewAccount, Principal, UserId, comparable
from edge_api.auth.tokens import OwnTokens
from edge_api.db import Clock, Database, UnitOfWork, utc_now
from edge_api.errors import InvalidCredentialsError, InvalidRefreshTokenError, RegistrationClosedError

log = logging.getLogger(__name__)

GUEST_LIFE = timedelta(hours=24)
MAX_REFRESH_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class AccountRules:
    """What this edge allows. `refresh_ttl_s`: how long a refresh token is good for. Seconds."""

    refresh_ttl_s: float
    registration: bool = True
    guests: bool = True


class AccountService:
    """Built-in accounts. No password is ever hashed within a transaction."""

    def __init__(
        self,
        database: Database,
        tokens: OwnTokens,
        passwords: Passwords,
        rules: AccountRules,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._passwords = passwords
        self._rules = rules
        self._clock = clock

    async def register(self, username: str, password: str) -> Grant:
        """Make an account and sign it in.

        Raises:
            RegistrationClosedError: this edge takes no new accounts.
            UsernameTakenError: somebody has that name.
            OverloadedError: too many passwords are being checked.
        """
        if not self._rules.registration:
            raise RegistrationClosedError("this service takes no new accounts; ask its operators for one")
        hashed = await self._passwords.hash(password)
        account = NewAccount(username, comparable(username), hashed)
        return await self._sign_in_new(account)

    async def guest(self) -> Grant:
        """Make a guest: an identity of its own, for 24 hours.

        Raises:
            RegistrationClosedError: this edge takes no guests.
        """
        if not self._rules.guests:
            raise RegistrationClosedError("this service takes no guests; sign in")
        return await self._sign_in_new(NewAccount(guest=True, expires_at=self._clock() + GUEST_LIFE))

    async def login(self, username: str, password: str) -> Grant:
        """Sign in.

        Raises:
            InvalidCredentialsError: the name or the password is wrong, or the account is disabled.
            OverloadedError: too many passwords are being checked.
        """
        # Twice where it is overtaken while the password is compared: by an operator, or by a sign-in that replaced
        # the hash with one of today's kind. That happens once.
        for _ in range(2):
            async with self._database.unit_of_work() as unit:
                user = await AccountRepository(unit).by_name(comparable(username))
            checked = await self._passwords.verify(password, user.password_hash if user else None)
            if user is None or not checked.ok or user.disabled:
                break
            async with self._database.unit_of_work() as unit:
                current = await AccountRepository(unit).unchanged(user)
                if current is not None:
                    current.password_hash = checked.new_hash or current.password_hash
                    return self._granted(unit, current, str(uuid.uuid4()))
        raise InvalidCredentialsError("the name or the password is wrong")

    async def refresh(self, token: str | None) -> Grant:
        """Exchange a refresh token for new tokens.

        Raises:
            InvalidRefreshTokenError: there is none, or it is unknown, expired or revoked. One that was used before
                ends every token that came of the same sign-in.
        """
        if not token or len(token) > MAX_REFRESH_CHARACTERS:
            raise InvalidRefreshTokenError("sign in again")
        async with self._database.unit_of_work() as unit:
            user, family_id = await RefreshTokenRepository(unit).use(token, now=self._clock())
            if user is not None:
                return self._granted(unit, user, family_id)
        # After the commit: what was revoked stays revoked.
        log.warning("a refresh token was used twice; its family is revoked", extra={"family_id": family_id})
        raise InvalidRefreshTokenError("sign in again")

    async def logout(self, token: str | None) -> None:
        """End the chain that a refresh token is of. Access tokens run out by themselves."""
        if token and len(token) <= MAX_REFRESH_CHARACTERS:
            async with self._database.unit_of_work() as unit:
                await RefreshTokenRepository(unit).revoke(token, now=self._clock())

    async def username(self, caller: Principal) -> str | None:
        """The name of the caller's built-in account; None for guests and external users."""
        async with self._database.unit_of_work() as unit:
            user = await AccountRepository(unit).by_id(caller.user_id)
        return user.username if user else None

    async def _sign_in_new(self, account: NewAccount) -> Grant:
        async with self._database.unit_of_work() as unit:
            user = await AccountRepository(unit).add(account, now=self._clock())
            return self._granted(unit, user, str(uuid.uuid4()))

    def _granted(self, unit: UnitOfWork, user: User, family_id: str) -> Grant:
        now = self._clock()
        token = secrets.token_urlsafe(32)
        expires_at = _sooner(now + timedelta(seconds=self._rules.refresh_ttl_s), user.expires_at)
        RefreshTokenRepository(unit).add(user, token, family_id=family_id, now=now, expires_at=expires_at)
        lasts_s = _seconds(_sooner(now + timedelta(seconds=self._tokens.ttl_s), user.expires_at) - now)
        access_token = self._tokens.issue(principal_of(user), ttl_s=lasts_s)
        return Grant(access_token, lasts_s, token, _seconds(expires_at - now))


def principal_of(user: User) -> Principal:
    """The caller that an account is."""
    return Principal(
        UserId(user.id),
        user.issuer,
        user.subject,
        user.tenant,
        tuple(user.groups),
        frozenset(user.scopes),
        guest=user.guest,
    )


def _sooner(moment: datetime, other: datetime | None) -> datetime:
    return moment if other is None else min(moment, other)


def _seconds(span: timedelta) -> int:
    return max(1, int(span.total_seconds()))
