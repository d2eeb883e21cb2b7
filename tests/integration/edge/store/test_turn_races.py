"""Turns that are opened and closed at the same moment, through two edges."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import SessionId
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Database
from edge_api.errors import TurnRunningError
from tests.integration.edge.conftest import principal
from tests.integration.edge.store.steps import (
    ADA,
    RULES,
    TTL_S,
    StillClock,
    ask,
    drafted,
    kinds,
    rows,
    talk,
    together,
)


@pytest.fixture
def other(second_database: Database, clock: StillClock) -> ConversationService:
    return ConversationService(second_database, RULES, clock=clock)


async def test_of_twenty_questions_at_once_in_one_session_one_is_asked(
    conversations: ConversationService, other: ConversationService, database: Database
) -> None:
    session = (await talk(conversations)).session_id

    results = await together(*(ask(service, session=session) for service in (conversations, other) for _ in range(10)))

    assert kinds(results) == {"ok": 1, "TurnRunningError": 19}
    (winner,) = [each for each in results if not isinstance(each, BaseException)]
    assert {each.turn_id for each in results if isinstance(each, TurnRunningError)} == {winner.message_id}
    assert len(await rows(database, "messages")) == 3


async def test_of_twenty_questions_at_once_in_new_sessions_as_many_run_as_allowed(
    database: Database, second_database: Database, clock: StillClock
) -> None:
    rules = TurnRules(TTL_S, max_user_turns=4)
    services = [ConversationService(each, rules, clock=clock) for each in (database, second_database)]

    results = await together(*(ask(service) for service in services for _ in range(10)))

    assert kinds(results) == {"ok": 4, "TooManyTurnsError": 16}
    assert [len(await rows(database, table)) for table in ("users", "sessions", "messages", "turns")] == [1, 4, 4, 4]


async def test_many_users_at_once_do_not_disturb_each_other(
    conversations: ConversationService, other: ConversationService, database: Database
) -> None:
    async def converse(number: int) -> SessionId:
        owner, service = principal(f"user-{number}"), (conversations, other)[number % 2]
        first = await talk(service, f"one of {number}", owner=owner)
        await talk(service, f"two of {number}", owner=owner, session=first.session_id)
        return first.session_id

    sessions = await asyncio.gather(*map(converse, range(30)))

    stored = await rows(database, "messages")
    for number, session in enumerate(sessions):
        said = sorted((row["position"], row["content"]) for row in stored if row["session_id"] == session)
        assert said == [(1, f"one of {number}"), (2, "answer"), (3, f"two of {number}"), (4, "answer")]


async def test_of_ten_closings_at_once_one_is_stored(
    conversations: ConversationService, other: ConversationService, library: SessionLibrary, database: Database
) -> None:
    turn = await ask(conversations)

    results = await together(
        *(service.close(turn, drafted(f"{n}")) for service in (conversations, other) for n in range(5))
    )

    assert sorted(results) == ["already"] * 9 + ["stored"]
    assert len(await rows(database, "messages")) == 2
    assert (await library.info(ADA, turn.session_id)).usage["total_tokens"] == 27


@pytest.mark.parametrize("forgotten", ["reset", "delete"])
async def test_an_answer_and_its_sessions_end_at_once_leave_one_or_nothing(
    conversations: ConversationService,
    other: ConversationService,
    library: SessionLibrary,
    database: Database,
    forgotten: str,
) -> None:
    turns = [await ask(conversations) for _ in range(10)]

    results = await together(
        *(
            work
            for turn in turns
            for work in (other.close(turn, drafted()), getattr(library, forgotten)(ADA, turn.session_id))
        )
    )

    assert kinds(results) == {"ok": 20}
    assert (await rows(database, "messages"), await rows(database, "turns")) == ([], [])
    assert {row["total_tokens"] for row in await rows(database, "sessions")} <= {0}


async def test_sweeps_and_turns_at_once_do_not_conflict(
    conversations: ConversationService,
    other: ConversationService,
    library: SessionLibrary,
    second_database: Database,
    clock: StillClock,
) -> None:
    second_library = SessionLibrary(second_database, session_ttl_s=TTL_S, clock=clock)
    orphans = [await ask(conversations) for _ in range(20)]
    clock.pass_s(RULES.turn_timeout_s + 10)

    results = await together(
        library.sweep(),
        second_library.sweep(),
        *(ask(other, session=turn.session_id) for turn in orphans[:10]),
        *(conversations.close(turn, drafted()) for turn in orphans[10:]),
        library.sweep(),
        second_library.sweep(),
    )

    assert kinds(results) == {"ok": 24}


async def test_the_database_itself_holds_that_a_session_runs_one_turn(
    conversations: ConversationService, database: Database
) -> None:
    turn = await ask(conversations)
    columns = "session_id, user_id, question_id, status, created, created_at, deadline_at, last_sequence"
    copied = f"INSERT INTO turns (id, number, {columns}) SELECT 'x', 2, {columns} FROM turns"

    with pytest.raises(IntegrityError):
        async with database.unit_of_work() as unit:
            await unit.execute(text(copied))

    assert [row["id"] for row in await rows(database, "turns")] == [turn.message_id]
