"""Guests, who end by themselves, and external users, whose accounts make themselves."""

from datetime import timedelta

import pytest

from edge_api.auth.schemas import Principal
from edge_api.auth.service import GUEST_LIFE, AccountService
from edge_api.auth.tokens import OwnTokens
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from edge_api.errors import InvalidRefreshTokenError, TokenExpiredError, UnauthenticatedError
from tests.integration.edge.conftest import principal
from tests.integration.edge.store.steps import StillClock, ask, kinds, rows, talk, together

PASSWORD = "a long sentence that nobody else uses"


async def test_a_guest_ends_after_a_day_with_all_they_said(
    accounts: AccountService,
    conversations: ConversationService,
    database: Database,
    tokens: OwnTokens,
    clock: StillClock,
) -> None:
    library = SessionLibrary(database, session_ttl_s=10**6, clock=clock)
    grants = [await accounts.guest() for _ in range(3)]
    guests = [tokens.verify(grant.access_token) for grant in grants]
    await talk(conversations, owner=guests[0])
    await accounts.register("Ada", PASSWORD)
    clock.pass_s(GUEST_LIFE.total_seconds() - 0.001)
    await ask(conversations, owner=guests[0])
    before = await library.sweep()
    clock.pass_s(0.001)

    with pytest.raises(UnauthenticatedError):
        await ask(conversations, owner=guests[0])
    after = await library.sweep()

    assert (before.accounts, after.accounts) == (0, 3)
    assert [row["username"] for row in await rows(database, "users")] == ["Ada"]
    assert [await rows(database, table) for table in ("sessions", "messages", "turns")] == [[], [], []]
    assert [guest.guest for guest in guests] == [True] * 3
    with pytest.raises(InvalidRefreshTokenError):
        await accounts.refresh(grants[0].refresh_token)


async def test_guests_are_removed_in_batches_also_by_two_edges_at_once(
    accounts: AccountService,
    conversations: ConversationService,
    library: SessionLibrary,
    second_database: Database,
    tokens: OwnTokens,
    clock: StillClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_api.conversations.library.SWEEP_BATCH", 4)
    other = SessionLibrary(second_database, session_ttl_s=10**6, clock=clock)
    for _ in range(15):
        await talk(conversations, owner=tokens.verify((await accounts.guest()).access_token))
    clock.pass_s(GUEST_LIFE.total_seconds())

    results = await together(library.sweep(), other.sweep(), library.sweep(), other.sweep())

    assert kinds(results) == {"ok": 4}
    assert sum(each.accounts for each in [*results, await library.sweep()]) == 15
    assert [await rows(second_database, table) for table in ("users", "sessions", "refresh_tokens")] == [[], [], []]


async def test_a_token_of_a_guest_never_outlives_the_guest(
    accounts: AccountService, tokens: OwnTokens, clock: StillClock
) -> None:
    grant = await accounts.guest()
    assert (grant.expires_in_s, grant.refresh_for_s) == (900, 10_000)
    end = clock() + timedelta(hours=24)
    while (end - clock()).total_seconds() > 100:
        clock.pass_s(min(9_999, (end - clock()).total_seconds() - 100))
        grant = await accounts.refresh(grant.refresh_token)

    assert (grant.expires_in_s, grant.refresh_for_s) == (100, 100)
    clock.pass_s(99)
    tokens.verify(grant.access_token)
    clock.pass_s(2)
    with pytest.raises(TokenExpiredError):
        tokens.verify(grant.access_token)


async def test_ten_first_questions_of_an_external_user_at_once_make_one_account(
    conversations: ConversationService, second_database: Database, clock: StillClock
) -> None:
    eve = principal("eve", tenant="acme", groups=("staff",))
    other = ConversationService(second_database, conversations._rules, clock=clock)

    results = await together(*(ask(each, owner=eve) for each in (conversations, other) for _ in range(5)))

    assert kinds(results) == {"ok": 10}
    (row,) = await rows(second_database, "users")
    assert (row["id"], row["issuer"], row["subject"], row["tenant"]) == (eve.user_id, eve.issuer, "eve", "acme")
    assert (row["username"], row["password_hash"], row["expires_at"]) == (None, None, None)
    assert len(await rows(second_database, "sessions")) == 10


async def test_a_token_of_ours_for_nobody_opens_nothing(conversations: ConversationService, database: Database) -> None:
    gone = Principal(principal("x").user_id, "answerdesk", "x")

    with pytest.raises(UnauthenticatedError):
        await ask(conversations, owner=gone)
    assert await rows(database, "users") == []


async def test_an_external_user_may_have_the_name_of_an_account(
    accounts: AccountService, conversations: ConversationService, database: Database
) -> None:
    grant = await accounts.register("ada", PASSWORD)
    await ask(conversations, owner=principal("ada"))

    assert len(await rows(database, "users")) == 2
    await accounts.refresh(grant.refresh_token)
