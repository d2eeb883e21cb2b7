"""Edges that end while they answer, and the others that take their turns over."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text, update

from edge_api.agent_client.events import TurnId
from edge_api.agent_client.signing import Caller
from edge_api.conversations.leases import ABOUT_TO_ASK, LEASE, REMEMBERED, Leases
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.models import Edge
from edge_api.conversations.repository.edges import EdgeRepository
from edge_api.conversations.schemas import Failure, NewMessage, OpenTurn
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from tests.integration.edge.conftest import principal
from tests.integration.edge.store.steps import (
    ADA,
    RULES,
    TURN_TIMEOUT_S,
    StillClock,
    ask,
    asked_now,
    contents,
    cut,
    drafted,
    kinds,
    rows,
    talk,
    together,
)

Service = ConversationService


@pytest.fixture
def one(database: Database, clock: StillClock) -> Leases:
    return Leases(database, "one", clock=clock)


@pytest.fixture
def two(second_database: Database, clock: StillClock) -> Leases:
    return Leases(second_database, "two", clock=clock)


@pytest.fixture
def of_one(database: Database, clock: StillClock) -> Service:
    """What edge one does with conversations."""
    return ConversationService(database, RULES, edge_id="one", clock=clock)


@pytest.fixture
def of_two(second_database: Database, clock: StillClock) -> Service:
    return ConversationService(second_database, RULES, edge_id="two", clock=clock)


def database_now(database: Database, clock: StillClock) -> datetime:
    """The server is on this machine."""
    return clock() if database.is_sqlite else datetime.now(UTC)


async def age(database: Database, clock: StillClock, edge_id: str, ago: timedelta) -> None:
    """As if a lease had run out that long ago."""
    until = database_now(database, clock) - ago
    async with database.unit_of_work() as unit:
        await unit.execute(update(Edge).where(Edge.id == edge_id).values(lease_until=until))


async def edges_of(database: Database) -> dict[str, str | None]:
    return {row["id"]: row["edge_id"] for row in await rows(database, "turns")}


async def test_a_lease_lasts_ten_seconds_by_the_databases_clock(
    one: Leases, database: Database, clock: StillClock
) -> None:
    before = database_now(database, clock)
    for _ in range(2):
        await one.adopt()
    after = database_now(database, clock)

    async with database.unit_of_work() as unit:
        lease = await unit.get_one(Edge, "one")
    assert before <= lease.lease_until - LEASE <= after
    await one.release()
    assert await rows(database, "edges") == []


async def test_the_turns_of_a_living_edge_are_left_to_it(
    one: Leases, two: Leases, of_one: Service, database: Database
) -> None:
    await one.adopt()
    turn = await ask(of_one)

    assert await two.adopt() == []
    assert await one.adopt() == []
    assert await edges_of(database) == {turn.message_id: "one"}


async def test_the_turns_of_an_edge_whose_lease_ran_out_are_taken_over_once(
    one: Leases, two: Leases, of_one: Service, database: Database, clock: StillClock
) -> None:
    await one.adopt()
    turn = await ask(of_one)
    named = await ask(of_one)
    await of_one.name(named, TurnId("agents-name"))
    await of_one.close(await ask(of_one), cut())
    await age(database, clock, "one", timedelta(0))

    taken = await two.adopt()

    assert {each.message_id: each for each in taken}[turn.message_id] == turn
    assert {each.name for each in taken} == {turn.message_id, "agents-name"}
    assert await two.adopt() == []
    assert sorted((await edges_of(database)).values(), key=str) == ["one", "two", "two"]


async def test_the_turns_of_an_edge_that_left_are_taken_over_at_once(one: Leases, two: Leases, of_one: Service) -> None:
    await one.adopt()
    turn = await ask(of_one)
    await one.release()

    assert await two.adopt() == [turn]


async def test_a_turn_of_no_edge_is_taken_over_and_its_caller_is_its_user(
    two: Leases, conversations: Service, database: Database
) -> None:
    """As an earlier version left it."""
    turn = await ask(conversations)
    async with database.unit_of_work() as unit:
        await unit.execute(text("UPDATE turns SET caller = NULL"))

    (taken,) = await two.adopt()

    assert (taken.message_id, taken.caller) == (turn.message_id, Caller(ADA.user_id, "default"))


async def test_who_takes_a_turn_over_asks_for_the_same_caller(two: Leases, of_one: Service) -> None:
    eve = principal("eve", tenant="acme", groups=("staff", "board"))
    await ask(of_one, owner=eve)

    (taken,) = await two.adopt()

    assert taken.caller == Caller(eve.user_id, "acme", ("staff", "board"))


async def test_who_takes_turns_over_is_alive(one: Leases, two: Leases, of_one: Service) -> None:
    await ask(of_one)

    assert len(await two.adopt()) == 1
    assert await one.adopt() == []


async def test_the_only_edge_takes_everything_over_when_it_starts(
    two: Leases, one: Leases, of_one: Service, of_two: Service, database: Database
) -> None:
    await one.adopt()
    turns = [await ask(each) for each in (of_one, of_two, of_two)]
    done = await talk(of_one)

    taken = await two.adopt(everything=True, limit=1)

    assert {turn.message_id for turn in taken} == {turn.message_id for turn in turns}
    assert set((await edges_of(database)).values()) == {"one", "two"}
    assert (await edges_of(database))[done.message_id] == "one"


async def test_a_turn_whose_time_is_over_is_left_to_be_given_up(
    two: Leases, of_one: Service, library: SessionLibrary, clock: StillClock
) -> None:
    turn = await ask(of_one, "lost")
    clock.pass_s(TURN_TIMEOUT_S + 10)

    assert await two.adopt() == []
    assert await two.adopt(everything=True) == []
    assert (await library.sweep()).turns == 1
    assert await contents(library, turn.session_id) == ["lost"]


async def test_the_most_urgent_are_taken_over_first(two: Leases, of_one: Service, clock: StillClock) -> None:
    turns = []
    for _ in range(5):
        turns.append(await ask(of_one))
        clock.pass_s(1)

    taken = [await two.adopt(limit=2) for _ in range(4)]

    assert taken == [turns[:2], turns[2:4], turns[4:], []]


async def test_two_edges_that_adopt_at_once_share_the_turns_out(
    two: Leases, of_one: Service, database: Database, clock: StillClock
) -> None:
    three = Leases(database, "three", clock=clock)
    turns = [await ask(of_one) for _ in range(30)]

    results = await together(*(each.adopt(limit=4) for _ in range(6) for each in (two, three)))

    assert kinds(results) == {"ok": 12}
    # Who meets turns that another one is taking may leave with fewer.
    rest = await two.adopt()
    taken = [turn.message_id for part in (*results, rest) for turn in part]
    assert sorted(taken) == sorted(turn.message_id for turn in turns)
    assert set((await edges_of(database)).values()) <= {"two", "three"}


@pytest.mark.parametrize("engine", [pytest.param("postgresql", marks=pytest.mark.needs("postgres"))])
async def test_who_adopts_does_not_wait_for_another_and_takes_the_rest(
    two: Leases, of_one: Service, database: Database, clock: StillClock
) -> None:
    turns = [await ask(of_one) for _ in range(5)]
    async with database.unit_of_work() as unit:
        first = await EdgeRepository(unit, now=clock()).adopt("three", everything=False, limit=3)
        async with asyncio.timeout(3):
            second = await two.adopt()

    assert len(first) == 3
    assert {each.message_id for each in (*first, *second)} == {turn.message_id for turn in turns}
    assert len(second) == 2


async def test_a_paused_edge_that_goes_on_keeps_its_new_turns_and_its_old_ones_are_stored_once(
    one: Leases, two: Leases, of_one: Service, of_two: Service, library: SessionLibrary, clock: StillClock
) -> None:
    await one.adopt()
    old = await ask(of_one, "old")
    clock.pass_s(11)
    # The database's clock is another one where it is a server.
    await age(of_one._database, clock, "one", timedelta(seconds=1))
    (taken,) = await two.adopt()

    await one.adopt()
    await ask(of_one, "new")

    assert await two.adopt() == []
    assert await one.adopt() == []
    closed = await together(of_two.close(taken, drafted("same")), of_one.close(old, drafted("same")))
    assert sorted(closed) == ["already", "stored"]
    assert await contents(library, old.session_id) == ["old", "same"]
    assert (await library.info(ADA, old.session_id)).turns == 1


async def test_an_answer_that_came_after_all_takes_the_place_of_a_mistaken_failure(
    one: Leases, two: Leases, of_one: Service, of_two: Service, library: SessionLibrary
) -> None:
    """The edge that took the turn over could not find it, and the one that had opened it saw it to its end."""
    turn = await ask(of_one)
    lost = cut("half")
    lost.failure = Failure("UNAVAILABLE", "TURN_LOST")

    closed = [await of_two.close(turn, lost), await of_one.close(turn, drafted("whole"))]
    late = await of_two.close(turn, lost)

    # Who comes with another end than the one that is stored must not show it.
    assert (closed, late) == (["stored", "stored"], "gone")
    assert await contents(library, turn.session_id) == ["question", "whole"]
    info = await library.info(ADA, turn.session_id)
    assert (info.turns, info.usage["total_tokens"]) == (1, 27)


async def test_a_failure_that_the_agent_told_stays(of_one: Service, library: SessionLibrary) -> None:
    turn = await ask(of_one)
    failed = cut("half")
    failed.failure = Failure("UNAVAILABLE", "MODEL_UNAVAILABLE")
    await of_one.close(turn, failed)

    assert await of_one.close(turn, drafted("whole")) == "gone"
    assert await of_one.close(turn, failed) == "already"
    assert await contents(library, turn.session_id) == ["question", "half"]


async def test_a_turn_that_its_own_edge_lost_sight_of_is_left_over(
    one: Leases, two: Leases, of_one: Service, clock: StillClock
) -> None:
    turn = await ask(of_one)
    assert await one.left_over() == []
    clock.pass_s(ABOUT_TO_ASK.total_seconds() + 1)

    assert [each.message_id for each in await one.left_over()] == [turn.message_id]
    assert await two.left_over() == []
    await of_one.close(turn, drafted())
    assert await one.left_over() == []


async def test_leases_that_ran_out_are_forgotten_after_an_hour(
    one: Leases, two: Leases, database: Database, clock: StillClock
) -> None:
    for name in ("old", "recent"):
        await Leases(database, name, clock=clock).adopt()
    await one.adopt()
    await age(database, clock, "old", REMEMBERED + timedelta(seconds=1))
    await age(database, clock, "recent", REMEMBERED - timedelta(seconds=60))

    await together(*(each.adopt() for each in (one, two) * 3))

    assert {row["id"] for row in await rows(database, "edges")} == {"recent", "one", "two"}


async def test_an_edge_may_adopt_several_times_at_once(one: Leases, database: Database) -> None:
    results = await together(*(one.adopt() for _ in range(10)))

    assert kinds(results) == {"ok": 10}
    assert len(await rows(database, "edges")) == 1


async def test_a_turn_that_was_taken_over_holds_its_session_until_it_is_stored(
    two: Leases, of_one: Service, of_two: Service, library: SessionLibrary
) -> None:
    turn = await ask(of_one, "one")
    (taken,) = await two.adopt()

    assert await of_two.find(ADA, turn.session_id, None) == taken
    assert await library.running(ADA, turn.session_id) == taken
    assert await of_two.close(taken, drafted("1")) == "stored"
    asked = await asked_now(of_one, NewMessage(turn.session_id, "two"))
    assert [said.content for said in asked.question.history] == ["one", "1"]
    assert isinstance(asked.turn, OpenTurn)
