"""What operators do with built-in accounts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from edge_api.agent_client.signing import DEFAULT_TENANT
from edge_api.auth.models import User
from edge_api.auth.passwords import Passwords
from edge_api.auth.repository import AccountRepository, RefreshTokenRepository
from edge_api.auth.schemas import NewAccount, Registration, UserId, comparable
from edge_api.db import Clock, Database, UnitOfWork, utc_now
from edge_api.errors import InvalidAccountError, UnknownAccountError

# What a document can name as its readers (`Access` in the protocol): an account of another name would read nothing.
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
GROUP = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_GROUPS = 64


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an account; None leaves it as it is."""

    tenant: str | None = None
    groups: tuple[str, ...] | None = None
    scopes: tuple[str, ...] | None = None
    disabled: bool | None = None


class AccountAdministration:
    """Accounts, without asking for their passwords."""

    def __init__(self, database: Database, passwords: Passwords, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._passwords = passwords
        self._clock = clock

    async def all(self) -> Sequence[User]:
        """The accounts with a name, ordered by it."""
        async with self._database.unit_of_work() as unit:
            return await AccountRepository(unit).named()

    async def add(self, username: str, password: str, change: Change) -> None:
        """Make an account, by default with the scope `chat` in the tenant `default`.

        Raises:
            InvalidAccountError: the name or the password breaks a rule of registration, or a tenant or group its own.
            UsernameTakenError: somebody has that name.
        """
        _check(username, password)
        _check_access(change)
        account = NewAccount(
            username,
            comparable(username),
            await self._passwords.hash(password),
            tenant=change.tenant or DEFAULT_TENANT,
            groups=change.groups or (),
            scopes=change.scopes or ("chat",),
        )
        async with self._database.unit_of_work() as unit:
            await AccountRepository(unit).add(account, now=self._clock())

    async def change(self, username: str, change: Change) -> None:
        """Change an account. Disabling it ends every sign-in.

        Raises:
            InvalidAccountError: no document can name such a tenant or group.
            UnknownAccountError: there is none of that name.
        """
        _check_access(change)
        async with self._database.unit_of_work() as unit:
            user = await _require(unit, username)
            user.tenant = change.tenant or user.tenant
            user.groups = user.groups if change.groups is None else list(change.groups)
            user.scopes = user.scopes if change.scopes is None else list(change.scopes)
            user.disabled = user.disabled if change.disabled is None else change.disabled
            if user.disabled:
                await RefreshTokenRepository(unit).revoke_all(UserId(user.id), now=self._clock())

    async def set_password(self, username: str, password: str) -> None:
        """Set a password, and end every sign-in.

        Raises:
            InvalidAccountError: the password breaks a rule of registration.
            UnknownAccountError: there is no account of that name.
        """
        _check(username, password)
        hashed = await self._passwords.hash(password)
        async with self._database.unit_of_work() as unit:
            user = await _require(unit, username)
            user.password_hash = hashed
            await RefreshTokenRepository(unit).revoke_all(UserId(user.id), now=self._clock())


async def _require(unit: UnitOfWork, username: str) -> User:
    user = await AccountRepository(unit).by_name(comparable(username))
    if user is None:
        raise UnknownAccountError(f"there is no account {username!r}")
    return user


def _check(username: str, password: str) -> None:
    try:
        Registration(username=username, password=password)
    except ValidationError as err:
        # Its own text quotes the password.
        problems = (f"{'.'.join(map(str, each['loc'])) or 'account'}: {each['msg']}" for each in err.errors())
        raise InvalidAccountError("; ".join(problems)) from None


def _check_access(change: Change) -> None:
    if change.tenant is not None and not TENANT.fullmatch(change.tenant):
        raise InvalidAccountError("tenant: must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    groups = change.groups or ()
    if len(groups) > MAX_GROUPS or not all(map(GROUP.fullmatch, groups)):
        raise InvalidAccountError(f"groups: at most {MAX_GROUPS}, of 1 to 64 characters of A-Z a-z 0-9 . _ : -")
