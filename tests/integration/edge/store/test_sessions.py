"""What owners do with their sessions, and what nobody else may."""

from collections.abc import Awaitable, Callable, Mapping

import pytest

from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import NewMessage, OpenTurn
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from edge_api.errors import MessageNotFoundError, NotYourSessionError, SessionExpiredError, SessionNotFoundError
from tests.integration.edge.store.steps import (
    ADA,
    BOB,
    TTL_S,
    TURN_TIMEOUT_S,
    StillClock,
    ask,
    asked_now,
    drafted,
    kinds,
    rows,
    talk,
    together,
)

Use = Callable[[SessionLibrary, OpenTurn], Awaitable[object]]

USES: Mapping[str, Use] = {
    "info": lambda library, turn: library.info(BOB, turn.session_id),
    "messages": lambda library, turn: library.messages(BOB, turn.session_id, cursor=None, limit=9, newest_first=False),
    "rename": lambda library, turn: library.rename(BOB, turn.session_id, "mine"),
    "running": lambda library, turn: library.running(BOB, turn.session_id),
    "reset": lambda library, turn: library.reset(BOB, turn.session_id),
    "delete": lambda library, turn: library.delete(BOB, turn.session_id),
    "rate an answer": lambda library, turn: library.rate(BOB, turn.message_id, "up", ""),
    "rate a question": lambda library, turn: library.rate(BOB, turn.question_id, "up", ""),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_somebody_elses_session_is_refused_also_when_it_has_expired(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock, use: Use
) -> None:
    turn = await talk(conversations)
    before = [await rows(database, table) for table in ("sessions", "messages", "turns", "feedback")]
    with pytest.raises(NotYourSessionError):
        await use(library, turn)
    clock.pass_s(TTL_S)
    with pytest.raises(NotYourSessionError):
        await use(library, turn)

    assert [await rows(database, table) for table in ("sessions", "messages", "turns", "feedback")] == before


async def test_a_swept_session_still_belongs_to_its_owner(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    turn = await talk(conversations)
    clock.pass_s(TTL_S)
    await library.sweep()

    with pytest.raises(NotYourSessionError):
        await library.info(BOB, turn.session_id)
    with pytest.raises(SessionExpiredError):
        await library.info(ADA, turn.session_id)


async def test_a_session_expires_when_it_was_idle_for_exactly_its_time(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    session = (await talk(conversations)).session_id
    clock.pass_s(TTL_S - 0.001)
    info = await library.info(ADA, session)
    listed = await library.page(ADA, query="", cursor=None, limit=9)
    clock.pass_s(0.001)

    assert (info.expires_at - clock()).total_seconds() == 0
    assert len(listed.items) == 1
    with pytest.raises(SessionExpiredError):
        await library.info(ADA, session)
    assert (await library.page(ADA, query="", cursor=None, limit=9)).items == []


async def test_using_a_session_keeps_it(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    session = (await talk(conversations)).session_id
    for _ in range(3):
        clock.pass_s(TTL_S - 1)
        await talk(conversations, session=session)

    assert (await library.info(ADA, session)).turns == 4


async def test_a_sweep_takes_the_content_and_keeps_the_word_for_thirty_days(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock
) -> None:
    turn = await talk(conversations, "a secret")
    await library.rename(ADA, turn.session_id, "a chosen secret")
    await library.rate(ADA, turn.message_id, "up", "a secret comment")
    clock.pass_s(TTL_S)

    swept = await library.sweep()

    assert (swept.sessions, swept.turns, swept.accounts) == (1, 0, 0)
    assert [await rows(database, table) for table in ("messages", "turns", "feedback")] == [[], [], []]
    assert "secret" not in str(await rows(database, "sessions"))
    assert (await library.sweep()).sessions == 0
    for days in (29, 30, 31):
        error = SessionNotFoundError if days > 30 else SessionExpiredError
        clock.pass_s(86_400 * (29 if days == 29 else 1))
        await library.sweep()
        with pytest.raises(error):
            await ask(conversations, session=turn.session_id)


async def test_a_session_whose_turn_runs_is_not_swept_before_its_deadline(
    conversations: ConversationService, database: Database, clock: StillClock
) -> None:
    short = SessionLibrary(database, session_ttl_s=1, clock=clock)
    turn = await ask(conversations)
    clock.pass_s(TURN_TIMEOUT_S + 9)
    first = await short.sweep()
    clock.pass_s(1)
    second = await short.sweep()

    assert (first.sessions, first.turns) == (0, 0)
    assert (second.sessions, second.turns) == (1, 1)
    assert await conversations.close(turn, drafted()) == "gone"


async def test_two_sweepers_at_once_remove_each_session_once(
    conversations: ConversationService,
    library: SessionLibrary,
    second_database: Database,
    clock: StillClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_api.conversations.library.SWEEP_BATCH", 7)
    other = SessionLibrary(second_database, session_ttl_s=TTL_S, clock=clock)
    for _ in range(40):
        await talk(conversations)
    clock.pass_s(TTL_S - 10)
    living = await talk(conversations)
    clock.pass_s(10)

    results = await together(library.sweep(), other.sweep(), library.sweep(), other.sweep())

    assert kinds(results) == {"ok": 4}
    # A sweeper leaves what others hold to them, and may end before they do.
    assert sum(each.sessions for each in [*results, await library.sweep()]) == 40
    assert (await library.info(ADA, living.session_id)).turns == 1


async def test_a_renamed_session_keeps_its_title_through_a_reset_and_a_made_title_is_forgotten(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    made, chosen = [(await talk(conversations, "first")).session_id for _ in range(2)]
    renamed = await library.rename(ADA, chosen, "Chosen")
    emptied = [(await library.reset(ADA, session))[0].title for session in (made, chosen)]
    for session in (made, chosen):
        await talk(conversations, "second", session=session)

    assert renamed.title == "Chosen"
    assert emptied == ["", "Chosen"]
    assert [(await library.info(ADA, session)).title for session in (made, chosen)] == ["second", "Chosen"]


async def test_a_reset_forgets_what_was_said_what_it_cost_and_its_state(
    conversations: ConversationService, library: SessionLibrary, database: Database
) -> None:
    turn = await talk(conversations)
    await library.rate(ADA, turn.message_id, "up", "")
    running = await ask(conversations, session=turn.session_id)

    info, ended = await library.reset(ADA, turn.session_id)

    assert ended == running
    assert (info.turns, set(info.usage.values()), info.running_turn_id) == (0, {0}, None)
    assert [await rows(database, table) for table in ("messages", "turns", "feedback")] == [[], [], []]
    again = await asked_now(conversations, NewMessage(turn.session_id, "again"))
    assert (again.question.history, again.question.state, again.turn.created) == ((), b"", False)


async def test_a_deleted_session_is_unknown(
    conversations: ConversationService, library: SessionLibrary, database: Database
) -> None:
    idle, busy = await talk(conversations), await ask(conversations)
    await library.rate(ADA, idle.message_id, "up", "")

    assert await library.running(ADA, idle.session_id) is None
    assert await library.delete(ADA, idle.session_id) is None
    assert await library.running(ADA, busy.session_id) == busy
    assert await library.delete(ADA, busy.session_id) == busy

    for turn in (idle, busy):
        with pytest.raises(SessionNotFoundError):
            await library.info(ADA, turn.session_id)
    assert [await rows(database, table) for table in ("sessions", "messages", "turns", "feedback")] == [[], [], [], []]


async def test_feedback_replaces_what_was_said_before(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock
) -> None:
    turn = await talk(conversations)
    await library.rate(ADA, turn.message_id, "up", "good")
    clock.pass_s(1)
    verdict = await library.rate(ADA, turn.message_id, "down", "bad")

    page = await library.messages(ADA, turn.session_id, cursor=None, limit=9, newest_first=False)

    assert [each.verdict for each in page.items] == [None, verdict]
    assert (verdict.rating, verdict.comment, verdict.created_at) == ("down", "bad", clock())
    assert len(await rows(database, "feedback")) == 1


async def test_ten_ratings_of_one_answer_at_once_leave_one(
    conversations: ConversationService, library: SessionLibrary, second_database: Database, clock: StillClock
) -> None:
    other = SessionLibrary(second_database, session_ttl_s=TTL_S, clock=clock)
    turn = await talk(conversations)

    results = await together(
        *(each.rate(ADA, turn.message_id, "up", str(n)) for each in (library, other) for n in range(5))
    )

    assert kinds(results) == {"ok": 10}
    assert len(await rows(second_database, "feedback")) == 1


async def test_only_answers_can_be_rated(conversations: ConversationService, library: SessionLibrary) -> None:
    turn = await ask(conversations)

    for message_id in (turn.question_id, turn.message_id):
        with pytest.raises(MessageNotFoundError):
            await library.rate(ADA, message_id, "up", "")
