"""Requests that are sent again under their key: asked once, told apart, and tried again where they failed."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.repository.keys import KeyRepository
from edge_api.conversations.repository.turns import TurnRepository
from edge_api.conversations.schemas import (
    Again,
    AskedBefore,
    AskedNow,
    Draft,
    EndedTurn,
    Failure,
    NewMessage,
    OpenTurn,
    RequestKey,
)
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Database
from edge_api.errors import KeyReusedError, NotYourSessionError, TooManyTurnsError, TurnRunningError
from tests.integration.edge.conftest import principal
from tests.integration.edge.store.steps import (
    ADA,
    BOB,
    RULES,
    TTL_S,
    TURN_TIMEOUT_S,
    StillClock,
    ask,
    asked_before,
    asked_now,
    caller_of,
    contents,
    cut,
    drafted,
    kinds,
    rows,
    talk,
    together,
    until_waiting,
)

KEY = RequestKey("key", "body")
NEW = NewMessage(None, "question")
DAY_S = 86_400.0


@pytest.fixture
def other(second_database: Database, clock: StillClock) -> ConversationService:
    return ConversationService(second_database, RULES, clock=clock)


def failed(content: str = "", code: str = "UNAVAILABLE", reason: str = "") -> Draft:
    draft = cut(content)
    draft.failure = Failure(code, reason)
    return draft


async def test_the_same_request_again_is_the_same_turn_while_it_runs_and_after(
    conversations: ConversationService, database: Database
) -> None:
    turn = (await asked_now(conversations, NEW, key=KEY)).turn
    running = await asked_before(conversations, NEW, key=KEY)
    await conversations.close(turn, drafted("answer"))
    ended = await asked_before(conversations, NEW, key=KEY)

    assert running == turn
    assert isinstance(ended, EndedTurn)
    assert (ended.message_id, ended.status, ended.last_sequence) == (turn.message_id, "completed", 4)
    assert (await conversations.answer_of(ended)).content == "answer"
    assert [len(await rows(database, table)) for table in ("sessions", "messages", "turns")] == [1, 2, 1]


async def test_the_same_request_in_a_session_is_told_apart_from_a_second_one(
    conversations: ConversationService,
) -> None:
    session = (await talk(conversations)).session_id
    message = NewMessage(session, "two")
    turn = (await asked_now(conversations, message, key=KEY)).turn

    assert await asked_before(conversations, message, key=KEY) == turn
    with pytest.raises(TurnRunningError):
        await asked_now(conversations, message, key=RequestKey("other key", "body"))
    await conversations.close(turn, drafted())
    await talk(conversations, "three", session=session)
    ended = await asked_before(conversations, message, key=KEY)
    assert (ended.message_id, isinstance(ended, EndedTurn)) == (turn.message_id, True)


@pytest.mark.parametrize("content", [None, "edited"])
async def test_the_same_regeneration_again_is_one_attempt(
    conversations: ConversationService, library: SessionLibrary, content: str | None
) -> None:
    session = (await talk(conversations, answer=drafted("old"))).session_id
    turn = (await asked_now(conversations, Again(session, content), key=KEY)).turn
    assert await asked_before(conversations, Again(session, content), key=KEY) == turn
    await conversations.close(turn, drafted("new"))

    assert (await asked_before(conversations, Again(session, content), key=KEY)).message_id == turn.message_id
    assert (await library.info(ADA, session)).turns == 2


async def test_a_key_stands_for_one_request(conversations: ConversationService, database: Database) -> None:
    turn = (await asked_now(conversations, NEW, key=KEY)).turn
    other_body = RequestKey("key", "other body")
    for _ in range(2):
        for request in (NEW, NewMessage(turn.session_id, "two"), Again(turn.session_id)):
            with pytest.raises(KeyReusedError):
                await asked_now(conversations, request, key=other_body)
        await conversations.close(turn, drafted())

    assert [len(await rows(database, table)) for table in ("sessions", "turns", "idempotency_keys")] == [1, 1, 1]


async def test_a_key_is_its_users_own(conversations: ConversationService) -> None:
    mine = (await asked_now(conversations, NEW, key=KEY)).turn
    theirs = (await asked_now(conversations, NEW, key=KEY, owner=BOB)).turn
    elsewhere = principal("ada", tenant="other")
    there = (await asked_now(conversations, NEW, key=KEY, owner=elsewhere)).turn

    assert len({turn.session_id for turn in (mine, theirs, there)}) == 3
    with pytest.raises(NotYourSessionError):
        await asked_before(conversations, NewMessage(mine.session_id, "x"), key=KEY, owner=BOB)


async def test_a_key_is_kept_for_a_day(
    conversations: ConversationService, database: Database, library: SessionLibrary, clock: StillClock
) -> None:
    service = ConversationService(database, TurnRules(2 * DAY_S, TURN_TIMEOUT_S), clock=clock)
    keeping = SessionLibrary(database, session_ttl_s=2 * DAY_S, clock=clock)
    first = (await asked_now(service, NEW, key=KEY)).turn
    await service.close(first, drafted())
    clock.pass_s(DAY_S - 0.001)
    assert (await keeping.sweep()).keys == 0
    assert (await asked_before(service, NEW, key=KEY)).message_id == first.message_id
    clock.pass_s(0.001)

    second = (await asked_now(service, NEW, key=RequestKey("key", "other body"))).turn

    assert second.session_id != first.session_id
    assert [row["turn_id"] for row in await rows(database, "idempotency_keys")] == [second.message_id]


async def test_old_keys_are_swept_in_batches_also_by_two_edges_at_once(
    conversations: ConversationService,
    database: Database,
    second_database: Database,
    clock: StillClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_api.conversations.library.SWEEP_BATCH", 4)
    libraries = [SessionLibrary(each, session_ttl_s=10 * DAY_S, clock=clock) for each in (database, second_database)]
    for number in range(11):
        await asked_now(conversations, NEW, key=RequestKey(f"{number}", "body"))
    clock.pass_s(DAY_S)
    await asked_now(conversations, NEW, key=RequestKey("young", "body"))

    results = await together(*(each.sweep() for each in libraries * 2))

    assert kinds(results) == {"ok": 4}
    assert sum(each.keys for each in [*results, await libraries[0].sweep()]) == 11
    assert [row["key"] for row in await rows(database, "idempotency_keys")] == ["young"]


@pytest.mark.parametrize("known", [True, False])
async def test_of_ten_at_once_with_one_key_one_is_asked_and_nothing_is_left_of_the_others(
    conversations: ConversationService, other: ConversationService, database: Database, known: bool
) -> None:
    if known:
        await talk(conversations)
    services = (conversations, other)

    results = await together(
        *(service.open(ADA, NEW, caller=caller_of(ADA), key=KEY) for service in services for _ in range(5))
    )

    (winner,) = [each for each in results if isinstance(each, AskedNow)]
    assert [each.turn for each in results if isinstance(each, AskedBefore)] == [winner.turn] * 9
    before = 1 if known else 0
    counts = [len(await rows(database, table)) for table in ("sessions", "turns", "messages", "idempotency_keys")]
    assert counts == [before + 1, before + 1, 2 * before + 1, 1]


async def test_of_ten_at_once_in_a_session_one_is_asked_and_none_is_told_to_wait(
    conversations: ConversationService, other: ConversationService
) -> None:
    session = (await talk(conversations)).session_id

    results = await together(
        *(
            service.again(ADA, Again(session, "edited"), caller=caller_of(ADA), key=KEY)
            for service in (conversations, other)
            for _ in range(5)
        )
    )

    assert [type(each) for each in results].count(AskedNow) == 1
    assert [type(each) for each in results].count(AskedBefore) == 9


@pytest.mark.parametrize("known", [True, False])
async def test_where_the_first_was_rolled_back_the_second_is_asked(
    conversations: ConversationService,
    other: ConversationService,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    if known:
        await talk(conversations)
    reached, fail = asyncio.Event(), asyncio.Event()
    keep = KeyRepository.keep

    async def failing(self: KeyRepository, key: RequestKey, turn: OpenTurn) -> None:
        await keep(self, key, turn)
        if not reached.is_set():
            reached.set()
            await fail.wait()
            raise RuntimeError("after all was written")

    monkeypatch.setattr(KeyRepository, "keep", failing)
    first = asyncio.create_task(asked_now(conversations, NEW, key=KEY))
    await reached.wait()
    second = asyncio.create_task(asked_now(other, NEW, key=KEY))
    await until_waiting(database)
    fail.set()

    with pytest.raises(RuntimeError):
        await first
    turn = (await second).turn
    assert [row["turn_id"] for row in await rows(database, "idempotency_keys")] == [turn.message_id]
    assert len(await rows(database, "sessions")) == (2 if known else 1)


@pytest.mark.parametrize(
    "failure",
    [
        Failure("UNAVAILABLE", "TURN_LOST"),
        Failure("RESOURCE_EXHAUSTED"),
        Failure("DEADLINE_EXCEEDED"),
        Failure("ABORTED"),
        Failure("CANCELLED"),
        Failure("INTERNAL", "MODEL_FAILED"),
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("new", [True, False], ids=["in a new session", "in a session"])
async def test_a_failed_turn_is_started_again_under_its_key(
    conversations: ConversationService, library: SessionLibrary, failure: Failure | None, new: bool
) -> None:
    message = NEW if new else NewMessage((await talk(conversations)).session_id, "question")
    first = (await asked_now(conversations, message, key=KEY)).turn
    answer = cut("half an answer")
    answer.failure = failure
    await conversations.close(first, answer)

    second = await asked_now(conversations, message, key=KEY)
    running = await asked_before(conversations, message, key=KEY)
    await conversations.close(second.turn, drafted("whole"))
    ended = await asked_before(conversations, message, key=KEY)

    assert (second.turn.session_id, second.turn.question_id) == (first.session_id, first.question_id)
    assert second.turn.message_id != first.message_id
    assert [said.content for said in second.question.history] == ([] if new else ["question", "answer"])
    assert (running, ended.message_id) == (second.turn, second.turn.message_id)
    assert (await contents(library, first.session_id))[-2:] == ["question", "whole"]


@pytest.mark.parametrize(
    "failure", [Failure("INVALID_ARGUMENT", "INVALID_REQUEST"), Failure("INTERNAL"), Failure("NOT_FOUND")], ids=str
)
async def test_a_turn_whose_failure_would_come_again_is_not_started_again(
    conversations: ConversationService, failure: Failure
) -> None:
    turn = (await asked_now(conversations, NEW, key=KEY)).turn
    await conversations.close(turn, failed(code=failure.code, reason=failure.reason))

    found = await asked_before(conversations, NEW, key=KEY)

    assert isinstance(found, EndedTurn)
    assert (found.message_id, found.status, found.failure) == (turn.message_id, "failed", failure)


async def test_a_turn_whose_time_is_over_is_started_again_also_before_it_was_given_up(
    conversations: ConversationService, clock: StillClock
) -> None:
    first = (await asked_now(conversations, NEW, key=KEY)).turn
    clock.pass_s(TURN_TIMEOUT_S + 10)

    second = (await asked_now(conversations, NEW, key=KEY)).turn

    assert (second.question_id, second.session_id) == (first.question_id, first.session_id)
    assert await conversations.close(first, drafted("late")) == "gone"
    assert await conversations.close(second, drafted()) == "stored"


async def test_a_failed_turn_that_the_conversation_left_behind_stays_as_it_is(
    conversations: ConversationService,
) -> None:
    first = (await asked_now(conversations, NEW, key=KEY)).turn
    await conversations.close(first, failed())
    await talk(conversations, "two", session=first.session_id, answer=failed())

    found = await asked_before(conversations, NEW, key=KEY)

    assert (found.message_id, isinstance(found, EndedTurn)) == (first.message_id, True)


@pytest.mark.parametrize(("answer", "restarts"), [(failed(), True), (drafted(), False), (None, False)])
async def test_a_failed_turn_whose_question_was_asked_again_is_tried_once_more_where_that_failed_too(
    conversations: ConversationService, answer: Draft | None, restarts: bool
) -> None:
    first = (await asked_now(conversations, NEW, key=KEY)).turn
    await conversations.close(first, failed())
    again = (await asked_now(conversations, Again(first.session_id))).turn
    if answer is not None:
        await conversations.close(again, answer)

    asked = await conversations.open(ADA, NEW, caller=caller_of(ADA), key=KEY)

    assert isinstance(asked, AskedNow if restarts else AskedBefore)


async def test_of_ten_that_try_a_failed_turn_again_at_once_one_does(
    conversations: ConversationService, other: ConversationService, database: Database
) -> None:
    first = (await asked_now(conversations, NEW, key=KEY)).turn
    await conversations.close(first, failed())

    results = await together(
        *(each.open(ADA, NEW, caller=caller_of(ADA), key=KEY) for each in (conversations, other) for _ in range(5))
    )

    (winner,) = [each for each in results if isinstance(each, AskedNow)]
    assert [each.turn for each in results if isinstance(each, AskedBefore)] == [winner.turn] * 9
    assert [len(await rows(database, table)) for table in ("sessions", "turns", "idempotency_keys")] == [1, 2, 1]


async def test_a_restart_that_never_began_gives_the_key_back_to_the_failed_turn(
    conversations: ConversationService, library: SessionLibrary, database: Database
) -> None:
    first = (await asked_now(conversations, NEW, key=KEY)).turn
    await conversations.close(first, failed("half"))
    before = [await rows(database, table) for table in ("messages", "turns", "idempotency_keys")]

    for _ in range(2):
        await conversations.withdraw((await asked_now(conversations, NEW, key=KEY)).turn)

    assert [await rows(database, table) for table in ("messages", "turns", "idempotency_keys")] == before
    second = (await asked_now(conversations, NEW, key=KEY)).turn
    assert second.question_id == first.question_id


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_request_that_comes_while_its_turn_is_withdrawn_finds_what_is_left(
    conversations: ConversationService,
    other: ConversationService,
    database: Database,
    clock: StillClock,
    restarted: bool,
) -> None:
    session = (await talk(conversations)).session_id
    message = NewMessage(session, "two")
    turn = first = (await asked_now(conversations, message, key=KEY)).turn
    if restarted:
        await conversations.close(first, failed())
        turn = (await asked_now(conversations, message, key=KEY)).turn
    async with database.unit_of_work() as unit:
        await TurnRepository(unit, now=clock()).withdraw(turn)
        asked = asyncio.create_task(asked_now(other, message, key=KEY))
        await until_waiting(database)

    second = (await asked).turn

    assert (second.question_id == first.question_id) is restarted
    assert [row["turn_id"] for row in await rows(database, "idempotency_keys")] == [second.message_id]
    assert len([row for row in await rows(database, "messages") if row["content"] == "two"]) == 1


@pytest.mark.parametrize("kind", ["first", "next", "again", "edit"])
async def test_a_withdrawn_turn_takes_its_key_along(
    conversations: ConversationService, database: Database, kind: str
) -> None:
    session = (await talk(conversations)).session_id
    requests: dict[str, NewMessage | Again] = {
        "first": NEW,
        "next": NewMessage(session, "two"),
        "again": Again(session),
        "edit": Again(session, "edited"),
    }
    await conversations.withdraw((await asked_now(conversations, requests[kind], key=KEY)).turn)

    assert await rows(database, "idempotency_keys") == []
    await asked_now(conversations, requests[kind], key=KEY)


@pytest.mark.parametrize("forgotten", ["reset", "delete"])
async def test_a_key_is_forgotten_with_its_session(
    conversations: ConversationService, library: SessionLibrary, database: Database, forgotten: str
) -> None:
    turn = (await asked_now(conversations, NEW, key=KEY)).turn
    await getattr(library, forgotten)(ADA, turn.session_id)

    assert await rows(database, "idempotency_keys") == []
    assert (await asked_now(conversations, NEW, key=KEY)).turn.created


@pytest.mark.parametrize("swept", [True, False])
async def test_a_key_is_forgotten_with_an_expired_session(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock, swept: bool
) -> None:
    first = (await asked_now(conversations, NEW, key=KEY)).turn
    await conversations.close(first, failed())
    clock.pass_s(TTL_S)
    if swept:
        await library.sweep()

    second = (await asked_now(conversations, NEW, key=KEY)).turn

    assert second.session_id != first.session_id


async def test_a_known_request_is_no_further_turn(database: Database, clock: StillClock) -> None:
    service = ConversationService(database, TurnRules(TTL_S, TURN_TIMEOUT_S, max_user_turns=1), clock=clock)
    turn = (await asked_now(service, NEW, key=KEY)).turn

    assert await asked_before(service, NEW, key=KEY) == turn
    with pytest.raises(TooManyTurnsError):
        await asked_now(service, NEW, key=RequestKey("other", "body"))
    await service.close(turn, failed())
    running = await ask(service, "in the way")
    with pytest.raises(TooManyTurnsError):
        await asked_now(service, NEW, key=KEY)
    await service.close(running, drafted())
    assert isinstance((await asked_now(service, NEW, key=KEY)).turn, OpenTurn)


async def test_the_database_itself_holds_that_a_key_stands_for_one_turn(
    conversations: ConversationService, database: Database
) -> None:
    await asked_now(conversations, NEW, key=KEY)
    columns = "tenant, user_id, key, fingerprint, turn_id, created_at"

    with pytest.raises(IntegrityError):
        async with database.unit_of_work() as unit:
            await unit.execute(text(f"INSERT INTO idempotency_keys ({columns}) SELECT {columns} FROM idempotency_keys"))
