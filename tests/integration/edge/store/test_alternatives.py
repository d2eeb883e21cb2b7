"""Questions that are answered again or edited: what is shown, what stays beside it, and what the agent is told."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from edge_api.conversations.bodies import MessageBody, message_body
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.repository.messages import MAX_ALTERNATIVES, ReadMessage
from edge_api.conversations.schemas import Again, NewMessage, SessionId
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from edge_api.errors import (
    MessageNotFoundError,
    NotYourSessionError,
    SessionExpiredError,
    SessionNotFoundError,
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
    cut,
    drafted,
    kinds,
    rows,
    talk,
    talk_again,
    together,
    usage,
)


async def shown(library: SessionLibrary, session: SessionId) -> list[tuple[str, list[str]]]:
    """What a reader sees: every message with what was said in its place before."""
    page = await library.messages(ADA, session, cursor=None, limit=200, newest_first=False)
    return [(each.row.content, [other.row.content for other in each.alternatives]) for each in page.items]


async def stored(database: Database) -> list[list[Any]]:
    """All that a conversation is made of, but for when it was used."""
    found = [await rows(database, table) for table in ("messages", "turns", "feedback", "sessions")]
    kept = [[{name: row[name] for name in row if name != "last_active_at"} for row in table] for table in found]
    return [sorted(table, key=str) for table in kept]


async def test_an_answer_that_was_made_again_takes_its_place_when_it_is_stored(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    first = await talk(conversations, "one", answer=drafted("old"))
    again = await asked_now(conversations, Again(first.session_id))
    running = await shown(library, first.session_id)

    assert await conversations.close(again.turn, drafted("new")) == "stored"

    assert running == [("one", []), ("old", [])]
    assert await shown(library, first.session_id) == [("one", []), ("new", ["old"])]
    assert (again.turn.question_id, again.turn.created) == (first.question_id, False)
    assert (again.question.message, again.question.request_id) == ("one", again.turn.message_id)


async def test_an_edited_question_steps_in_at_once_and_its_answer_when_it_is_stored(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations, "zero", answer=drafted("0"))).session_id
    await talk(conversations, "one", answer=drafted("1"), session=session)
    again = await asked_now(conversations, Again(session, "one, edited", "policy"))
    running = await shown(library, session)

    await conversations.close(again.turn, drafted("1, edited"))

    start: list[tuple[str, list[str]]] = [("zero", []), ("0", [])]
    assert running == [*start, ("one, edited", ["one"])]
    assert await shown(library, session) == [*start, ("one, edited", ["one"]), ("1, edited", ["1"])]
    assert (again.question.message, again.question.agent) == ("one, edited", "policy")


async def test_an_answer_made_again_is_told_what_was_said_before_its_question(
    conversations: ConversationService,
) -> None:
    session = (await talk(conversations, "one", answer=drafted("1", state=b"one"))).session_id
    await talk(conversations, "two", answer=drafted("2", state=b"two"), session=session)

    for content in (None, "two, edited"):
        again = await asked_now(conversations, Again(session, content))
        assert [said.content for said in again.question.history] == ["one", "1"]
        assert (again.question.state, again.question.agent) == (b"one", "")
        await conversations.close(again.turn, drafted("2, again", state=b"two again"))


async def test_the_next_question_is_told_of_the_answer_that_is_shown_and_of_no_other(
    conversations: ConversationService,
) -> None:
    session = (await talk(conversations, "one", answer=drafted("1", state=b"one"))).session_id
    await talk_again(conversations, session, answer=drafted("1, again", state=b"again"))
    await talk_again(conversations, session, answer=cut())

    after_again = await asked_now(conversations, NewMessage(session, "two"))
    await conversations.withdraw(after_again.turn)
    await talk_again(conversations, session, "one, edited", answer=drafted("edited", state=b"edited"))
    after_edit = await asked_now(conversations, NewMessage(session, "two"))

    assert [said.content for said in after_again.question.history] == ["one", "1, again"]
    assert after_again.question.state == b"again"
    assert [said.content for said in after_edit.question.history] == ["one, edited", "edited"]
    assert after_edit.question.state == b"edited"


@pytest.mark.parametrize("status", ["failed", "stopped", "interrupted"])
async def test_an_attempt_without_a_word_does_not_displace_an_answer_and_is_kept_beside_it(
    conversations: ConversationService, library: SessionLibrary, status: str
) -> None:
    first = await talk(conversations, "one", answer=drafted("old"))

    await talk_again(conversations, first.session_id, answer=cut(status=status))
    wordless = await shown(library, first.session_id)
    await talk_again(conversations, first.session_id, answer=cut("some words", status))

    assert wordless == [("one", []), ("old", [""])]
    assert await shown(library, first.session_id) == [("one", []), ("some words", ["old", ""])]


async def test_of_attempts_without_a_word_the_newest_is_shown(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    first = await talk(conversations, "one", answer=cut())

    second = await talk_again(conversations, first.session_id, answer=cut(status="stopped"))

    page = await library.messages(ADA, first.session_id, cursor=None, limit=9, newest_first=False)
    assert [each.row.id for each in page.items] == [first.question_id, second.message_id]
    assert [each.row.id for each in page.items[1].alternatives] == [first.message_id]


async def test_an_answer_that_says_nothing_and_was_completed_is_an_answer(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations, "one", answer=drafted("old"))).session_id

    await talk_again(conversations, session, answer=drafted(""))

    assert await shown(library, session) == [("one", []), ("", ["old"])]


async def test_an_edited_question_whose_answer_failed_is_shown_with_that(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations, "one", answer=drafted("1"))).session_id

    await talk_again(conversations, session, "edited", answer=cut())

    assert await shown(library, session) == [("edited", ["one"]), ("", ["1"])]


@pytest.mark.parametrize("content", [None, "edited"])
async def test_a_withdrawn_attempt_leaves_all_as_it_was(
    conversations: ConversationService, library: SessionLibrary, database: Database, content: str | None
) -> None:
    session = (await talk(conversations, "zero")).session_id
    first = await talk(conversations, "one", answer=drafted("1"), session=session)
    await library.rate(ADA, first.message_id, "up", "good")
    await talk_again(conversations, session, answer=cut())
    await talk_again(conversations, session, "one, edited", answer=drafted("2"))
    # The newest answer is not the one that is shown.
    await talk_again(conversations, session, answer=cut(status="stopped"))
    before, seen = await stored(database), await shown(library, session)

    for _ in range(2):
        again = await asked_now(conversations, Again(session, content))
        await conversations.withdraw(again.turn)

    assert await stored(database) == before
    assert await shown(library, session) == seen
    assert seen[2:] == [("one, edited", ["one"]), ("2", ["1", "", ""])]


async def test_a_withdrawn_edit_of_a_question_without_an_answer_leaves_it(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock
) -> None:
    turn = await ask(conversations, "given up")
    clock.pass_s(TURN_TIMEOUT_S + 10)
    await library.sweep()
    before = await stored(database)

    await conversations.withdraw((await asked_now(conversations, Again(turn.session_id, "edited"))).turn)

    assert await stored(database) == before
    assert await conversations.close(turn, drafted("late")) == "stored"
    assert await shown(library, turn.session_id) == [("given up", []), ("late", [])]


async def test_a_given_up_edit_is_shown_alone_until_the_next_attempt(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    session = (await talk(conversations, "one", answer=drafted("1"))).session_id
    lost = (await asked_now(conversations, Again(session, "edited"))).turn
    clock.pass_s(TURN_TIMEOUT_S + 10)
    await library.sweep()
    given_up = await shown(library, session)

    await talk_again(conversations, session, answer=drafted("2"))

    assert given_up == [("edited", ["one"])]
    assert await shown(library, session) == [("edited", ["one"]), ("2", ["1"])]
    assert await conversations.close(lost, drafted("late")) == "gone"


async def test_a_late_answer_takes_the_place_where_nothing_came_after_it(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    session = (await talk(conversations, "one", answer=drafted("1"))).session_id
    late = (await asked_now(conversations, Again(session))).turn
    clock.pass_s(TURN_TIMEOUT_S + 10)
    await library.sweep()
    overtaking = (await asked_now(conversations, Again(session))).turn
    overtaken = await conversations.close(late, drafted("too early to tell"))
    await conversations.withdraw(overtaking)

    assert overtaken == "gone"
    assert await conversations.close(late, drafted("late")) == "stored"
    assert await shown(library, session) == [("one", []), ("late", ["1"])]


async def test_every_attempt_counts(conversations: ConversationService, library: SessionLibrary) -> None:
    session = (await talk(conversations, "one")).session_id
    await talk_again(conversations, session)
    await talk_again(conversations, session, "edited")
    await talk_again(conversations, session, answer=cut())

    info = await library.info(ADA, session)

    assert (info.turns, info.title) == (4, "one")
    assert info.usage == {key: 3 * value for key, value in usage().items()}


@pytest.mark.parametrize(("given_details", "kept"), [(None, {"a": 1}), ({"b": 2}, {"b": 2}), ({}, {})])
async def test_an_edited_question_has_its_own_metadata_or_the_old_ones(
    conversations: ConversationService, library: SessionLibrary, given_details: Any, kept: Any
) -> None:
    turn = (await asked_now(conversations, NewMessage(None, "one", metadata={"a": 1}))).turn
    await conversations.close(turn, drafted())

    await asked_now(conversations, Again(turn.session_id, "edited", metadata=given_details))

    page = await library.messages(ADA, turn.session_id, cursor=None, limit=9, newest_first=False)
    assert [each.row.details for each in page.items] == [kept]
    assert [each.row.details for each in page.items[0].alternatives] == [{"a": 1}]


async def test_what_cannot_be_asked_again_is_refused_and_left_alone(
    conversations: ConversationService, library: SessionLibrary, database: Database, clock: StillClock
) -> None:
    empty = (await talk(conversations)).session_id
    await library.reset(ADA, empty)
    busy = await ask(conversations)
    done = (await talk(conversations)).session_id
    before = await stored(database)
    refusals: list[tuple[Any, Again, type[Exception]]] = [
        (ADA, Again(empty), MessageNotFoundError),
        (ADA, Again(empty, "edited"), MessageNotFoundError),
        (ADA, Again(busy.session_id), TurnRunningError),
        (ADA, Again(busy.session_id, "edited"), TurnRunningError),
        (ADA, Again(SessionId("never")), SessionNotFoundError),
        (BOB, Again(done, "edited"), NotYourSessionError),
    ]
    for owner, request, error in refusals:
        with pytest.raises(error):
            await asked_now(conversations, request, owner=owner)
    clock.pass_s(TTL_S)
    with pytest.raises(SessionExpiredError):
        await asked_now(conversations, Again(done))

    assert await stored(database) == before


async def test_of_ten_regenerations_at_once_one_is_asked(
    conversations: ConversationService, second_database: Database, clock: StillClock
) -> None:
    other = ConversationService(second_database, RULES, clock=clock)
    session = (await talk(conversations)).session_id
    requests = [Again(session), Again(session, "edited")]

    results = await together(*(asked_now(each, request) for each in (conversations, other) for request in requests * 3))

    assert kinds(results) == {"ok": 1, "TurnRunningError": 11}


async def test_alternatives_are_the_newest_of_their_place_the_oldest_first(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations, "one", answer=drafted("0"))).session_id
    for number in range(1, MAX_ALTERNATIVES + 3):
        await talk_again(conversations, session, answer=drafted(f"{number}"))

    last = MAX_ALTERNATIVES + 2
    expected = [f"{number}" for number in range(last - MAX_ALTERNATIVES, last)]
    assert await shown(library, session) == [("one", []), (f"{last}", expected)]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_count_places_and_bring_every_alternative_along(
    conversations: ConversationService, library: SessionLibrary, newest_first: bool
) -> None:
    session = (await talk(conversations, "q0", answer=drafted("a0"))).session_id
    for number in range(1, 5):
        await talk_again(conversations, session, f"q{number - 1}, edited", answer=drafted(f"a{number - 1}, edited"))
        await talk(conversations, f"q{number}", answer=drafted(f"a{number}"), session=session)
    listed: list[ReadMessage] = []
    cursor = None
    while not listed or cursor is not None:
        part = await library.messages(ADA, session, cursor=cursor, limit=3, newest_first=newest_first)
        listed += part.items
        cursor = part.next_cursor

    expected = [(f"{kind}{n}, edited", [f"{kind}{n}"]) for n in range(4) for kind in "qa"] + [("q4", []), ("a4", [])]
    found = [(each.row.content, [other.row.content for other in each.alternatives]) for each in listed]
    assert found == (expected[::-1] if newest_first else expected)


async def test_an_alternative_can_be_rated_and_is_shown_whole(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    old = await talk(conversations, "one", answer=drafted("old"))
    await library.rate(ADA, old.message_id, "up", "before")
    await talk_again(conversations, old.session_id, answer=drafted("new"))
    verdict = await library.rate(ADA, old.message_id, "down", "after")

    page = await library.messages(ADA, old.session_id, cursor=None, limit=9, newest_first=False)

    assert [each.verdict for each in page.items[1].alternatives] == [verdict]
    body = message_body(page.items[1])
    MessageBody.model_validate(message_body(page.items[0]))
    (alternative,) = body["alternatives"]
    assert (body["content"], body["feedback"], alternative["content"]) == ("new", None, "old")
    assert alternative["feedback"]["comment"] == "after"
    assert set(alternative) == set(body) - {"alternatives"}


async def test_what_stepped_back_is_found_by_its_words(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations, "needle", answer=drafted("haystack"))).session_id
    await library.rename(ADA, session, "title")
    await talk_again(conversations, session, "edited", answer=drafted("new"))

    for query in ("needle", "haystack", "edited", "new"):
        found = await library.page(ADA, query=query, cursor=None, limit=9)
        assert [each.id for each in found.items] == [session], query


@pytest.mark.parametrize("forgotten", ["reset", "delete"])
async def test_alternatives_are_forgotten_with_the_rest(
    conversations: ConversationService, library: SessionLibrary, database: Database, forgotten: str
) -> None:
    session = (await talk(conversations, "one")).session_id
    await talk_again(conversations, session)
    running = (await asked_now(conversations, Again(session, "edited"))).turn

    await getattr(library, forgotten)(ADA, session)

    assert await conversations.close(running, drafted()) == "gone"
    assert (await rows(database, "messages"), await rows(database, "turns")) == ([], [])


async def test_the_database_itself_holds_that_a_place_has_one_active_message(
    conversations: ConversationService, database: Database
) -> None:
    turn = await talk(conversations)
    columns = "session_id, place, active, role, content, status, agent, citations, usage, trace, details, created_at"
    copied = f"INSERT INTO messages (id, position, {columns}) SELECT 'x', 9, {columns} FROM messages WHERE id = :id"

    for message_id in (turn.question_id, turn.message_id):
        with pytest.raises(IntegrityError):
            async with database.unit_of_work() as unit:
                await unit.execute(text(copied), {"id": message_id})

    assert len(await rows(database, "messages")) == 2


ASKING = st.sampled_from(["open", "again", "edit"])
ENDING = st.sampled_from(["answer", "fail", "fail with words", "stop", "withdraw", "give up"])


@given(st.lists(st.tuples(ASKING, ENDING), max_size=8))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_happens_nothing_is_lost_and_a_withdrawal_leaves_no_trace(
    conversations: ConversationService,
    library: SessionLibrary,
    database: Database,
    clock: StillClock,
    steps: list[tuple[str, str]],
) -> None:
    session = (await talk(conversations, "begin")).session_id
    for number, (asking, ending) in enumerate(steps):
        before = await shown(library, session)
        requests: dict[str, NewMessage | Again] = {
            "open": NewMessage(session, f"q{number}"),
            "again": Again(session),
            "edit": Again(session, f"q{number}"),
        }
        turn = (await asked_now(conversations, requests[asking])).turn
        match ending:
            case "withdraw":
                await conversations.withdraw(turn)
                assert await shown(library, session) == before
            case "give up":
                clock.pass_s(TURN_TIMEOUT_S + 10)
                await library.sweep()
            case _:
                answers = {"answer": drafted(f"a{number}"), "fail": cut(), "stop": cut(status="stopped")}
                assert await conversations.close(turn, answers.get(ending, cut(f"a{number}"))) == "stored"

    said = [row for row in await rows(database, "messages") if row["session_id"] == session]
    turns = [row for row in await rows(database, "turns") if row["session_id"] == session]
    active = {row["place"] for row in said if row["active"]}
    # Only the answers to a question whose edited form was given up have no active one beside them.
    given_up = {row["question_id"] for row in turns if row["failure_code"] == "DEADLINE_EXCEEDED"}
    hidden = {row["place"] for row in said} - active
    assert hidden <= {row["place"] + 1 for row in said if row["id"] in given_up}
    seen = [each for message, others in await shown(library, session) for each in (message, *others)]
    assert sorted(seen) == sorted(row["content"] for row in said if row["place"] not in hidden)
