"""Accounts and guests: made, signed in, and shut out."""

import asyncio
from collections.abc import Iterator

import pytest

from edge_api.auth.administration import AccountAdministration, Change
from edge_api.auth.passwords import Passwords, Verified
from edge_api.auth.service import AccountRules, AccountService
from edge_api.auth.tokens import OwnTokens
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from edge_api.errors import (
    InvalidAccountError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    RegistrationClosedError,
    UnauthenticatedError,
    UnknownAccountError,
    UsernameTakenError,
)
from tests.integration.edge.store.steps import ask, kinds, rows, talk, together

PASSWORD = "a long sentence that nobody else uses"
RULES = AccountRules(refresh_ttl_s=10_000)


async def test_who_registers_is_signed_in_and_may_sign_in_again(accounts: AccountService, tokens: OwnTokens) -> None:
    grants = [await accounts.register("Ada", PASSWORD), await accounts.login("ada", PASSWORD)]
    grants += [await accounts.refresh(grant.refresh_token) for grant in grants]

    callers = {tokens.verify(grant.access_token) for grant in grants}

    (caller,) = callers
    assert (caller.tenant, caller.groups, caller.scopes, caller.guest) == ("default", (), frozenset({"chat"}), False)
    assert await accounts.username(caller) == "Ada"
    assert {(grant.expires_in_s, grant.refresh_for_s) for grant in grants} == {(900, 10_000)}
    assert len({grant.refresh_token for grant in grants}) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada Lovelace", "aDA lOVELACE"),
        ("ada", "\uff21\uff24\uff21"),
        ("Ren\u00e9e", "rene\u0301e"),
        ("Straße", "STRASSE"),
        ("\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c3"),
    ],
    ids=["case", "width", "composition", "sharp s", "final sigma"],
)
async def test_names_that_differ_in_form_only_are_one(accounts: AccountService, one: str, other: str) -> None:
    await accounts.register(one, PASSWORD)

    with pytest.raises(UsernameTakenError):
        await accounts.register(other, PASSWORD)
    await accounts.login(other, PASSWORD)


async def test_of_ten_registrations_of_one_name_at_once_one_wins(
    accounts: AccountService, other_accounts: AccountService, database: Database
) -> None:
    results = await together(
        *(each.register("Ada", f"{PASSWORD} {n}") for each in (accounts, other_accounts) for n in range(5))
    )

    assert kinds(results) == {"ok": 1, "UsernameTakenError": 9}
    assert [len(await rows(database, table)) for table in ("users", "refresh_tokens")] == [1, 1]


async def test_a_wrong_password_and_an_unknown_name_look_alike(accounts: AccountService) -> None:
    await accounts.register("Ada", PASSWORD)
    guest = await accounts.guest()

    errors = []
    for name, password in [("Ada", "wrong"), ("Ada", ""), ("Bob", PASSWORD), ("\x00", PASSWORD), ("", "")]:
        with pytest.raises(InvalidCredentialsError) as refused:
            await accounts.login(name, password)
        errors.append(str(refused.value))
    assert len(set(errors)) == 1
    assert guest.refresh_token


async def test_only_digests_of_secrets_are_stored(accounts: AccountService, database: Database) -> None:
    grant = await accounts.register("Ada", PASSWORD)
    newer = await accounts.refresh(grant.refresh_token)

    stored = str([await rows(database, table) for table in ("users", "refresh_tokens")])

    assert "Ada" in stored
    for secret in (PASSWORD, grant.refresh_token, newer.refresh_token, grant.access_token):
        assert secret not in stored


async def test_closed_doors_stay_closed(database: Database, tokens: OwnTokens, passwords: Passwords) -> None:
    closed = AccountService(database, tokens, passwords, AccountRules(10, registration=False, guests=False))

    with pytest.raises(RegistrationClosedError):
        await closed.register("Ada", PASSWORD)
    with pytest.raises(RegistrationClosedError):
        await closed.guest()
    assert await rows(database, "users") == []


async def test_a_disabled_account_cannot_do_anything(
    accounts: AccountService,
    administration: AccountAdministration,
    conversations: ConversationService,
    tokens: OwnTokens,
) -> None:
    grant = await accounts.register("Ada", PASSWORD)
    caller = tokens.verify(grant.access_token)
    session = (await talk(conversations, owner=caller)).session_id

    await administration.change("ada", Change(disabled=True))

    with pytest.raises(InvalidCredentialsError):
        await accounts.login("Ada", PASSWORD)
    with pytest.raises(InvalidRefreshTokenError):
        await accounts.refresh(grant.refresh_token)
    for existing in (None, session):
        with pytest.raises(UnauthenticatedError):
            await ask(conversations, session=existing, owner=caller)

    await administration.change("ada", Change(disabled=False))
    with pytest.raises(InvalidRefreshTokenError):
        await accounts.refresh(grant.refresh_token)
    await accounts.login("Ada", PASSWORD)
    await ask(conversations, session=session, owner=caller)


async def test_operators_make_change_and_list_accounts(
    accounts: AccountService, administration: AccountAdministration, tokens: OwnTokens
) -> None:
    await accounts.guest()
    await administration.add("Zoe", PASSWORD, Change(tenant="acme", groups=("staff",), scopes=("chat", "admin")))
    await administration.add("Ada", PASSWORD, Change())
    with pytest.raises(UsernameTakenError):
        await administration.add("ADA", PASSWORD, Change())
    await administration.change("ADA", Change(groups=("one", "two")))
    listed = [(each.username, each.tenant, each.groups, each.scopes) for each in await administration.all()]

    zoe = tokens.verify((await accounts.login("zoe", PASSWORD)).access_token)

    assert listed == [("Ada", "default", ["one", "two"], ["chat"]), ("Zoe", "acme", ["staff"], ["chat", "admin"])]
    assert (zoe.tenant, zoe.groups, zoe.scopes) == ("acme", ("staff",), frozenset({"chat", "admin"}))


async def test_operators_are_told_what_is_wrong_without_the_password(administration: AccountAdministration) -> None:
    with pytest.raises(InvalidAccountError) as short:
        await administration.add("Ada", "sesame!", Change())
    for use in (administration.change("Ada", Change()), administration.set_password("Ada", PASSWORD)):
        with pytest.raises(UnknownAccountError):
            await use

    assert "sesame" not in str(short.value)


async def test_a_new_password_ends_every_sign_in(
    accounts: AccountService, administration: AccountAdministration
) -> None:
    grant = await accounts.register("Ada", PASSWORD)

    await administration.set_password("ada", f"{PASSWORD}, too")

    with pytest.raises(InvalidRefreshTokenError):
        await accounts.refresh(grant.refresh_token)
    with pytest.raises(InvalidCredentialsError):
        await accounts.login("Ada", PASSWORD)
    await accounts.login("Ada", f"{PASSWORD}, too")


class SlowPasswords(Passwords):
    """Lets a test do something between a comparison and what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.compared, self.go_on = asyncio.Event(), asyncio.Event()
        self.new_hash: str | None = None

    async def verify(self, password: str, hash: str | None) -> Verified:  # noqa: A002 - as in `Passwords`
        checked = await super().verify(password, hash)
        self.compared.set()
        await self.go_on.wait()
        return Verified(checked.ok, self.new_hash)


@pytest.fixture
def slow() -> Iterator[SlowPasswords]:
    passwords = SlowPasswords()
    yield passwords
    passwords.close()


@pytest.mark.parametrize("meanwhile", ["disabled", "new password", "new password and parameters"])
async def test_a_sign_in_that_is_overtaken_by_an_operator_is_refused(
    database: Database,
    accounts: AccountService,
    administration: AccountAdministration,
    tokens: OwnTokens,
    slow: SlowPasswords,
    meanwhile: str,
) -> None:
    await accounts.register("Ada", PASSWORD)
    if meanwhile == "new password and parameters":
        slow.new_hash = await slow.hash(PASSWORD)
    signing_in = asyncio.create_task(AccountService(database, tokens, slow, RULES).login("Ada", PASSWORD))
    await slow.compared.wait()
    if meanwhile == "disabled":
        await administration.change("Ada", Change(disabled=True))
    else:
        await administration.set_password("Ada", f"{PASSWORD}, too")
    slow.go_on.set()

    with pytest.raises(InvalidCredentialsError):
        await signing_in

    living = [row for row in await rows(database, "refresh_tokens") if row["revoked_at"] is None]
    assert living == []
    if meanwhile != "disabled":
        await accounts.login("Ada", f"{PASSWORD}, too")


async def test_a_hash_of_old_parameters_is_replaced_at_the_next_sign_in(
    database: Database, accounts: AccountService, tokens: OwnTokens, slow: SlowPasswords
) -> None:
    await accounts.register("Ada", PASSWORD)
    slow.new_hash = await slow.hash(PASSWORD)
    slow.go_on.set()

    await AccountService(database, tokens, slow, RULES).login("Ada", PASSWORD)

    assert [row["password_hash"] for row in await rows(database, "users")] == [slow.new_hash]
    await accounts.login("Ada", PASSWORD)
