"""A turn from its question to its answer, and what the next one is told of it."""

from typing import Any

import pytest

from edge_api.agent_client.events import Said, TurnId
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import NewMessage, SessionId
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Database
from edge_api.errors import (
    NotYourSessionError,
    SessionExpiredError,
    SessionNotFoundError,
    TooManyTurnsError,
    TurnRunningError,
)
from tests.integration.edge.store.steps import (
    ADA,
    BOB,
    RULES,
    TTL_S,
    TURN_TIMEOUT_S,
    StillClock,
    ask,
    asked_now,
    contents,
    cut,
    drafted,
    rows,
    talk,
    usage,
)


async def test_a_question_and_its_answer_are_stored_with_all_that_came(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    message = NewMessage(None, "What does it cost?", metadata={"page": {"n": 1}})
    asked_for = await asked_now(conversations, message)
    turn, question = asked_for.turn, asked_for.question
    clock.pass_s(5)
    citation = {"marker": 1, "quote": "400 EUR"}

    assert await conversations.close(turn, drafted("400 EUR [1]", citations=[citation])) == "stored"

    asked, said = (await library.messages(ADA, turn.session_id, cursor=None, limit=9, newest_first=False)).items
    assert (asked.row.id, asked.row.role, asked.row.content) == (turn.question_id, "user", "What does it cost?")
    assert (asked.row.status, asked.row.details) == ("completed", {"page": {"n": 1}})
    assert (said.row.id, said.row.role, said.row.content) == (turn.message_id, "assistant", "400 EUR [1]")
    assert (said.row.status, said.row.outcome, said.row.agent) == ("completed", "answered", "billing")
    assert (said.row.strategy, said.row.citations, said.row.usage) == ("rag", [citation], usage())
    assert (said.row.created_at - asked.row.created_at).total_seconds() == 5
    assert said.row.created_at == clock()
    assert (turn.created, question.request_id, question.state, question.history) == (True, turn.message_id, b"", ())


async def test_the_next_question_is_told_what_was_said_and_the_newest_state(conversations: ConversationService) -> None:
    first = await talk(conversations, "one", answer=drafted("1", state=b"old"))
    await talk(conversations, "two", answer=drafted("2", state=b"\x00new"), session=first.session_id)
    await talk(conversations, "three", answer=cut("3", "stopped"), session=first.session_id)

    asked = await asked_now(conversations, NewMessage(first.session_id, "four", agent="policy"))

    question = asked.question
    assert not asked.turn.created
    assert [said.content for said in question.history] == ["one", "1", "two", "2", "three", "3"]
    assert question.history[:2] == (Said("user", "one"), Said("assistant", "1", "billing"))
    assert (question.message, question.agent, question.state) == ("four", "policy", b"\x00new")


async def test_the_newest_state_is_that_of_the_last_answer_also_where_clocks_of_edges_differ(
    conversations: ConversationService, database: Database, clock: StillClock
) -> None:
    late = StillClock()
    late.now = clock.now
    late.pass_s(-30)
    first = await talk(conversations, answer=drafted(state=b"first"))
    other = ConversationService(database, RULES, clock=late)
    await talk(other, answer=drafted(state=b"second"), session=first.session_id)

    question = (await asked_now(other, NewMessage(first.session_id, "three"))).question

    assert question.state == b"second"


async def test_activity_never_goes_back_where_clocks_of_edges_differ(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock
) -> None:
    late = StillClock()
    late.now = clock.now
    late.pass_s(-30)
    first = await talk(conversations)

    await talk(ConversationService(database, RULES, clock=late), session=first.session_id)

    assert (await library.info(ADA, first.session_id)).last_active_at == clock()


async def test_questions_without_an_answer_are_left_out_of_the_history(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    session = (await talk(conversations, "one")).session_id
    await talk(conversations, "failed", answer=cut(), session=session)
    await ask(conversations, "given up", session=session)
    clock.pass_s(TURN_TIMEOUT_S + 10)
    await talk(conversations, "half", answer=cut("part"), session=session)

    question = (await asked_now(conversations, NewMessage(session, "last"))).question

    assert [said.content for said in question.history] == ["one", "answer", "half", "part"]
    assert "given up" in await contents(library, session)


async def test_history_is_trimmed_to_the_budget_oldest_first_and_in_whole_pairs(database: Database) -> None:
    # 10 tokens are about 40 characters; a pair has 16.
    service = ConversationService(database, TurnRules(TTL_S, history_tokens=10))
    session = (await talk(service, "question", answer=drafted("answer-0"))).session_id
    for number in range(1, 5):
        await talk(service, "question", answer=drafted(f"answer-{number}"), session=session)

    question = (await asked_now(service, NewMessage(session, "last"))).question

    assert [said.content for said in question.history] == ["question", "answer-3", "question", "answer-4"]


async def test_history_of_no_tokens_is_empty(database: Database) -> None:
    service = ConversationService(database, TurnRules(TTL_S, history_tokens=0))
    session = (await talk(service)).session_id

    assert (await asked_now(service, NewMessage(session, "last"))).question.history == ()


async def test_an_answer_longer_than_the_budget_counts_as_what_is_sent_of_it(database: Database) -> None:
    # The protocol takes 32,000 characters of a message; 64,000 fit here.
    service = ConversationService(database, TurnRules(TTL_S, history_tokens=16_000))
    session = (await talk(service, "short", answer=drafted("a"))).session_id
    await talk(service, "long", answer=drafted("b" * 200_000), session=session)

    question = (await asked_now(service, NewMessage(session, "last"))).question

    assert [(said.content[0], len(said.content)) for said in question.history] == [
        ("s", 5),
        ("a", 1),
        ("l", 4),
        ("b", 32_000),
    ]


async def test_history_has_at_most_two_hundred_messages(database: Database, conversations: ConversationService) -> None:
    session = (await talk(conversations, "q0")).session_id
    for number in range(1, 102):
        await talk(conversations, f"q{number}", answer=drafted("a"), session=session)

    question = (await asked_now(conversations, NewMessage(session, "last"))).question

    assert len(question.history) == 200
    assert (question.history[0].content, question.history[-2].content) == ("q2", "q101")


async def test_a_second_question_meets_the_running_turn_by_the_name_it_has(conversations: ConversationService) -> None:
    turn = await ask(conversations)
    with pytest.raises(TurnRunningError) as unnamed:
        await ask(conversations, session=turn.session_id)
    await conversations.name(turn, TurnId("agents-turn"))
    with pytest.raises(TurnRunningError) as named:
        await ask(conversations, session=turn.session_id)

    assert unnamed.value.turn_id == turn.message_id
    assert named.value.turn_id == "agents-turn"


async def test_a_turn_whose_deadline_is_over_is_given_up_and_its_late_answer_dropped(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    turn = await ask(conversations, "one")
    clock.pass_s(TURN_TIMEOUT_S + 9.9)
    with pytest.raises(TurnRunningError):
        await ask(conversations, session=turn.session_id)
    clock.pass_s(0.1)

    second = await ask(conversations, "two", session=turn.session_id)

    assert await conversations.close(turn, drafted("late")) == "gone"
    assert await conversations.close(second, drafted("in time")) == "stored"
    assert await contents(library, turn.session_id) == ["one", "two", "in time"]


async def test_a_turn_that_was_given_up_still_takes_its_answer_where_nothing_came_after_it(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock
) -> None:
    """The database may have been away when the answer ended."""
    turn = await ask(conversations, "one")
    clock.pass_s(TURN_TIMEOUT_S + 30)
    assert (await library.sweep()).turns == 1

    assert await conversations.close(turn, drafted("late, and not lost")) == "stored"
    assert await conversations.close(turn, drafted("twice")) == "already"

    assert await contents(library, turn.session_id) == ["one", "late, and not lost"]
    assert [row["status"] for row in await rows(database, "turns")] == ["completed"]
    assert (await library.info(ADA, turn.session_id)).turns == 1


async def test_an_answer_writes_down_its_turns_name_where_that_could_not_be_done_before(
    conversations: ConversationService, database: Database
) -> None:
    await talk(conversations, answer=drafted())

    assert [row["agent_turn_id"] for row in await rows(database, "turns")] == ["t-1"]


async def test_a_title_that_was_made_from_a_withdrawn_message_goes_with_it(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations, "one")).session_id
    await library.reset(ADA, session)

    await conversations.withdraw(await ask(conversations, "never asked", session=session))

    assert (await library.info(ADA, session)).title == ""


async def test_a_turn_is_closed_once(conversations: ConversationService, library: SessionLibrary) -> None:
    turn = await talk(conversations, "one", answer=drafted("first"))

    assert await conversations.close(turn, drafted("second")) == "already"
    await conversations.withdraw(turn)

    assert await contents(library, turn.session_id) == ["one", "first"]
    assert (await library.info(ADA, turn.session_id)).turns == 1


@pytest.mark.parametrize("forgotten", ["reset", "delete"])
async def test_an_answer_to_what_was_forgotten_stores_nothing(
    conversations: ConversationService, library: SessionLibrary, database: Database, forgotten: str
) -> None:
    turn = await ask(conversations)
    await getattr(library, forgotten)(ADA, turn.session_id)

    assert await conversations.close(turn, drafted()) == "gone"
    await conversations.name(turn, TurnId("late"))
    await conversations.withdraw(turn)

    assert (await rows(database, "messages"), await rows(database, "turns")) == ([], [])
    assert [row["total_tokens"] for row in await rows(database, "sessions")] == ([0] if forgotten == "reset" else [])


async def test_a_withdrawn_first_message_takes_its_session_along(
    conversations: ConversationService, library: SessionLibrary, database: Database
) -> None:
    turn = await ask(conversations)

    await conversations.withdraw(turn)

    with pytest.raises(SessionNotFoundError):
        await library.info(ADA, turn.session_id)
    assert [await rows(database, table) for table in ("sessions", "messages", "turns")] == [[], [], []]


async def test_a_withdrawn_later_message_leaves_the_rest(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    first = await talk(conversations, "one")

    await conversations.withdraw(await ask(conversations, "two", session=first.session_id))

    assert await contents(library, first.session_id) == ["one", "answer"]
    question = (await asked_now(conversations, NewMessage(first.session_id, "three"))).question
    assert question.history[-1].content == "answer"


async def test_usage_is_summed_on_the_session(conversations: ConversationService, library: SessionLibrary) -> None:
    session = (await talk(conversations)).session_id
    await talk(conversations, session=session)
    await talk(conversations, answer=cut("half", "interrupted"), session=session)

    info = await library.info(ADA, session)

    assert info.usage == {key: 2 * value for key, value in usage().items()}
    assert (info.turns, info.running_turn_id) == (3, None)


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("  \n\n  What   does it\tcost?\nand why", "What does it cost?"),
        ("word " * 30, f"{('word ' * 12).strip()}…"),
        ("x" * 100, f"{'x' * 60}…"),
    ],
)
async def test_a_session_is_titled_by_its_first_message(
    conversations: ConversationService, library: SessionLibrary, message: str, title: str
) -> None:
    session = (await talk(conversations, message)).session_id
    await talk(conversations, "another", session=session)

    assert (await library.info(ADA, session)).title == title


async def test_refused_questions_leave_nothing_behind(
    conversations: ConversationService, database: Database, clock: StillClock
) -> None:
    turn = await talk(conversations)
    refusals: list[tuple[Any, SessionId, type[Exception]]] = [
        (BOB, turn.session_id, NotYourSessionError),
        (BOB, SessionId("never"), SessionNotFoundError),
        (ADA, SessionId("never"), SessionNotFoundError),
    ]
    for owner, session, error in refusals:
        with pytest.raises(error):
            await ask(conversations, session=session, owner=owner)
    clock.pass_s(TTL_S)
    with pytest.raises(SessionExpiredError):
        await ask(conversations, session=turn.session_id)

    assert [len(await rows(database, table)) for table in ("users", "sessions", "messages", "turns")] == [1, 1, 2, 1]


async def test_turns_of_a_user_are_bounded_and_the_ended_do_not_count(database: Database, clock: StillClock) -> None:
    service = ConversationService(database, TurnRules(TTL_S, TURN_TIMEOUT_S, max_user_turns=2), clock=clock)
    running = [await ask(service) for _ in range(2)]
    with pytest.raises(TooManyTurnsError) as refused:
        await ask(service)
    await ask(service, owner=BOB)
    await service.close(running[0], cut())
    await ask(service)
    clock.pass_s(TURN_TIMEOUT_S + 10)
    await ask(service)

    assert refused.value.retry_after_s > 0
