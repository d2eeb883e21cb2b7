"""Chains of refresh tokens: every use replaces a token, and a second use ends the chain."""

import asyncio

import pytest
from sqlalchemy import delete, select

from edge_api.auth.models import RefreshToken, User
from edge_api.auth.repository import RefreshTokenRepository
from edge_api.auth.service import MAX_REFRESH_CHARACTERS, AccountService
from edge_api.db import Database
from edge_api.errors import InvalidRefreshTokenError
from tests.integration.edge.store.steps import StillClock, kinds, rows, together, until_waiting


async def refused(accounts: AccountService, token: str | None) -> bool:
    with pytest.raises(InvalidRefreshTokenError) as error:
        await accounts.refresh(token)
    # Why is not said.
    return str(error.value) == "sign in again"


async def test_a_token_is_used_once_and_a_second_use_ends_every_token_of_its_sign_in(
    accounts: AccountService, database: Database
) -> None:
    first = (await accounts.guest()).refresh_token
    second = (await accounts.refresh(first)).refresh_token
    third = (await accounts.refresh(second)).refresh_token

    assert await refused(accounts, first)

    # Stored, though the caller got an error.
    assert all(row["revoked_at"] is not None for row in await rows(database, "refresh_tokens"))
    for token in (first, second, third):
        assert await refused(accounts, token)


async def test_a_second_use_leaves_other_sign_ins_alone(accounts: AccountService) -> None:
    await accounts.register("Ada", "a long sentence that nobody else uses")
    one, other = [await accounts.login("Ada", "a long sentence that nobody else uses") for _ in range(2)]
    await accounts.refresh(one.refresh_token)
    assert await refused(accounts, one.refresh_token)

    await accounts.refresh(other.refresh_token)


async def test_of_two_uses_at_once_one_succeeds_and_the_chain_is_ended(
    accounts: AccountService, other_accounts: AccountService
) -> None:
    token = (await accounts.guest()).refresh_token

    results = await together(accounts.refresh(token), other_accounts.refresh(token))

    assert kinds(results) == {"ok": 1, "InvalidRefreshTokenError": 1}
    (grant,) = [each for each in results if not isinstance(each, BaseException)]
    assert await refused(accounts, grant.refresh_token)


async def test_many_uses_of_a_chains_old_and_new_tokens_at_once_leave_none_alive(
    accounts: AccountService, other_accounts: AccountService, database: Database
) -> None:
    old = (await accounts.guest()).refresh_token
    new = (await accounts.refresh(old)).refresh_token

    results = await together(*(each.refresh(token) for token in (new, old) * 5 for each in (accounts, other_accounts)))

    assert set(kinds(results)) <= {"ok", "InvalidRefreshTokenError"}
    assert kinds(results).get("ok", 0) <= 1
    assert all(row["revoked_at"] is not None for row in await rows(database, "refresh_tokens"))


async def test_a_token_is_good_until_its_end(accounts: AccountService, clock: StillClock) -> None:
    one, other = [(await accounts.guest()).refresh_token for _ in range(2)]
    clock.pass_s(9_999.999)
    await accounts.refresh(one)
    clock.pass_s(0.001)

    assert await refused(accounts, other)


@pytest.mark.parametrize(
    "token",
    [None, "", "unknown", "\x00", "é👩🏽‍🚀", "' OR 1=1 --", "x" * MAX_REFRESH_CHARACTERS, "x" * 1_000_000],
    ids=["none", "empty", "unknown", "nul", "not ascii", "sql", "longest", "too long"],
)
async def test_what_is_no_token_is_refused_and_logs_nobody_out(
    accounts: AccountService, database: Database, token: str | None
) -> None:
    living = (await accounts.guest()).refresh_token

    assert await refused(accounts, token)
    await accounts.logout(token)

    await accounts.refresh(living)


async def test_logging_out_ends_the_chain_and_leaves_other_sign_ins(accounts: AccountService) -> None:
    await accounts.register("Ada", "a long sentence that nobody else uses")
    one, other = [await accounts.login("Ada", "a long sentence that nobody else uses") for _ in range(2)]
    newer = await accounts.refresh(one.refresh_token)

    await accounts.logout(one.refresh_token)
    await accounts.logout(one.refresh_token)

    assert await refused(accounts, newer.refresh_token)
    await accounts.refresh(other.refresh_token)


async def test_a_sign_in_that_ends_during_a_refresh_is_refused(
    accounts: AccountService, other_accounts: AccountService, database: Database
) -> None:
    """A logout that overtakes a refresh, or is overtaken by it, leaves nothing that can be refreshed."""
    for round_ in range(30):
        token = (await accounts.guest()).refresh_token

        async def log_out(token: str = token, delay_s: float = round_ % 6 / 1000) -> None:
            await asyncio.sleep(delay_s)
            await other_accounts.logout(token)

        results = await together(accounts.refresh(token), log_out())

        assert set(kinds(results)) <= {"ok", "InvalidRefreshTokenError"}
    assert all(row["revoked_at"] is not None for row in await rows(database, "refresh_tokens"))


@pytest.mark.parametrize("gone", [User, RefreshToken])
async def test_a_token_that_is_swept_away_while_it_is_used_is_refused(
    accounts: AccountService, other_accounts: AccountService, database: Database, gone: type[User | RefreshToken]
) -> None:
    token = (await accounts.guest()).refresh_token
    async with database.unit_of_work() as unit:
        await unit.execute(select(User).with_for_update())
        using = asyncio.create_task(refused(other_accounts, token))
        await until_waiting(database)
        await unit.execute(delete(gone))

    assert await using


async def test_unknown_tokens_end_nothing(accounts: AccountService, database: Database, clock: StillClock) -> None:
    await accounts.guest()
    async with database.unit_of_work() as unit:
        await RefreshTokenRepository(unit).revoke("unknown", now=clock())

    assert [row["revoked_at"] for row in await rows(database, "refresh_tokens")] == [None]
