"""Turns that are looked for later: by either name, running or ended, with the answer they left."""

import asyncio

import pytest
from sqlalchemy import select

from edge_api.agent_client.events import TurnId
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.models import Session
from edge_api.conversations.schemas import Again, EndedTurn, Failure, OpenTurn, SessionId
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from edge_api.errors import NotYourSessionError, SessionExpiredError, SessionNotFoundError, TurnNotFoundError
from tests.integration.edge.store.steps import (
    ADA,
    BOB,
    TTL_S,
    TURN_TIMEOUT_S,
    StillClock,
    ask,
    asked_now,
    caller_of,
    cut,
    drafted,
    talk,
    talk_again,
    usage,
)


async def ended(conversations: ConversationService, turn: OpenTurn) -> EndedTurn:
    found = await conversations.find(ADA, turn.session_id, turn.message_id)
    assert isinstance(found, EndedTurn)
    return found


async def test_a_turn_is_found_by_either_name_and_by_none(conversations: ConversationService) -> None:
    turn = await ask(conversations)
    unnamed = await conversations.find(ADA, turn.session_id, turn.message_id)
    await conversations.name(turn, TurnId("agents-name"))
    found = [await conversations.find(ADA, turn.session_id, name) for name in (turn.message_id, "agents-name", None)]

    assert unnamed == turn
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0], OpenTurn)
    assert (found[0].message_id, found[0].name, found[0].created) == (turn.message_id, "agents-name", True)


async def test_an_ended_turn_is_found_with_how_it_ended(conversations: ConversationService) -> None:
    turn = await talk(conversations, answer=drafted("whole"))

    found = await conversations.find(ADA, turn.session_id, "t-1")

    assert found == EndedTurn(turn.session_id, turn.message_id, caller_of(ADA), TurnId("t-1"), "completed", 4)
    assert isinstance(found, EndedTurn)
    answer = await conversations.answer_of(found)
    assert (answer.content, answer.status, answer.outcome, answer.agent) == (
        "whole",
        "completed",
        "answered",
        "billing",
    )
    assert (answer.strategy, answer.citations, answer.usage, answer.trace) == (
        "rag",
        [],
        usage(),
        {"agent": "billing"},
    )
    assert (answer.turn_id, answer.last_sequence, answer.failure) == ("t-1", 4, None)


async def test_a_failed_turn_is_found_with_what_it_failed_with(conversations: ConversationService) -> None:
    draft = cut("half")
    draft.failure = Failure("UNAVAILABLE", "TURN_LOST")
    turn = await talk(conversations, answer=draft)

    found = await ended(conversations, turn)

    assert (found.status, found.last_sequence, found.failure) == ("failed", 2, Failure("UNAVAILABLE", "TURN_LOST"))
    answer = await conversations.answer_of(found)
    assert (answer.content, answer.status, answer.failure) == ("half", "failed", found.failure)


async def test_the_newest_turn_is_the_one_that_was_opened_last_whatever_the_clock_says(
    conversations: ConversationService, clock: StillClock
) -> None:
    session = (await talk(conversations)).session_id
    clock.pass_s(-30)
    second = await talk(conversations, session=session)
    newest = [await conversations.find(ADA, session, None)]
    third = await talk_again(conversations, session, answer=cut())
    newest.append(await conversations.find(ADA, session, None))
    running = (await asked_now(conversations, Again(session, "edited"))).turn
    newest.append(await conversations.find(ADA, session, None))

    assert [each.message_id for each in newest] == [turn.message_id for turn in (second, third, running)]


async def test_a_turn_whose_time_is_over_has_failed_also_before_that_is_written_down(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    turn = await ask(conversations)
    clock.pass_s(TURN_TIMEOUT_S + 10)
    unwritten = await ended(conversations, turn)
    running = await library.running(ADA, turn.session_id)
    await library.sweep()
    written = await ended(conversations, turn)

    assert running is None
    assert unwritten == written
    assert (written.status, written.failure) == ("failed", Failure("DEADLINE_EXCEEDED"))
    answer = await conversations.answer_of(written)
    assert (answer.content, answer.status, answer.turn_id) == ("", "failed", turn.name)
    await conversations.close(turn, drafted("late"))
    assert (await conversations.answer_of(written)).content == "late"
    assert (await ended(conversations, turn)).failure is None


async def test_turns_that_are_not_there_are_not_found(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    turn, elsewhere = await talk(conversations), await talk(conversations)
    for name in ("never", elsewhere.message_id, turn.question_id, "", "\x00"):
        with pytest.raises(TurnNotFoundError):
            await conversations.find(ADA, turn.session_id, name)
    with pytest.raises(NotYourSessionError):
        await conversations.find(BOB, turn.session_id, turn.message_id)
    with pytest.raises(SessionNotFoundError):
        await conversations.find(ADA, SessionId("never"), None)
    found = await ended(conversations, turn)
    await library.reset(ADA, turn.session_id)
    with pytest.raises(TurnNotFoundError):
        await conversations.find(ADA, turn.session_id, None)
    with pytest.raises(TurnNotFoundError):
        await conversations.answer_of(found)
    clock.pass_s(TTL_S)
    with pytest.raises(SessionExpiredError):
        await conversations.find(ADA, elsewhere.session_id, None)


@pytest.mark.parametrize("engine", [pytest.param("postgresql", marks=pytest.mark.needs("postgres"))])
async def test_looking_for_a_turn_waits_for_no_lock(conversations: ConversationService, database: Database) -> None:
    turn = await talk(conversations)
    async with database.unit_of_work() as unit:
        await unit.execute(select(Session).with_for_update())
        async with asyncio.timeout(3):
            found = await ended(conversations, turn)
            assert (await conversations.answer_of(found)).content == "answer"
