"""The in-memory store, its bounds, and the history that the agent is given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_api.agent_client.events import AgentSelected, Completed, Said, TokenAdded, TurnId
from edge_api.conversations.repository import MAX_CHARACTERS, MAX_MESSAGES, InMemoryConversations
from edge_api.conversations.schemas import (
    MAX_ANSWER_CHARACTERS,
    Draft,
    Message,
    MessageId,
    NewMessage,
    OpenTurn,
    SessionId,
)
from edge_api.conversations.service import (
    MAX_HISTORY_CHARACTERS,
    MAX_HISTORY_MESSAGES,
    MAX_MESSAGE_CHARACTERS,
    ConversationService,
    history_of,
)
from edge_api.errors import SessionExpiredError, SessionNotFoundError, TurnRunningError, UpstreamError


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> InMemoryConversations:
    return InMemoryConversations(ttl_s=100, clock=clock, max_sessions=3)


def drafted(text: str = "answer", *, state: bytes | None = b"state") -> Draft:
    draft = Draft()
    draft.take(AgentSelected(1, "billing", "rag"))
    if text:
        draft.take(TokenAdded(2, text))
    if state is not None:
        draft.take(
            Completed(
                sequence=3,
                status="completed",
                outcome="answered",
                agent="billing",
                strategy="rag",
                citations=[],
                usage={},
                trace={},
                state=state,
            )
        )
    return draft


async def say(store: InMemoryConversations, session: SessionId | None, text: str = "question") -> OpenTurn:
    turn = await store.open_turn(NewMessage(session, text))
    await store.close_turn(turn, drafted())
    return turn


async def test_a_session_remembers_what_was_said_and_the_newest_state(store: InMemoryConversations) -> None:
    first = await say(store, None, "one")

    second = await store.open_turn(NewMessage(first.session_id, "two"))

    assert first.created
    assert not second.created
    assert [(each.role, each.content, each.agent) for each in second.before] == [
        ("user", "one", ""),
        ("assistant", "answer", "billing"),
    ]
    assert second.before[1].id == first.message_id
    assert second.state == b"state"


async def test_an_interrupted_answer_is_kept_and_leaves_the_state_as_it_was(store: InMemoryConversations) -> None:
    first = await say(store, None)
    second = await store.open_turn(NewMessage(first.session_id, "two"))
    await store.close_turn(second, drafted("half", state=None))

    third = await store.open_turn(NewMessage(first.session_id, "three"))

    assert (third.before[-1].content, third.before[-1].status) == ("half", "interrupted")
    assert third.state == b"state"


async def test_a_session_runs_one_turn_at_a_time_and_names_it(store: InMemoryConversations) -> None:
    turn = await store.open_turn(NewMessage(None, "one"))
    with pytest.raises(TurnRunningError) as unnamed:
        await store.open_turn(NewMessage(turn.session_id, "two"))

    await store.name_turn(turn, TurnId("t-1"))
    with pytest.raises(TurnRunningError) as named:
        await store.open_turn(NewMessage(turn.session_id, "two"))

    assert (unnamed.value.turn_id, named.value.turn_id) == (None, "t-1")


async def test_a_turn_is_closed_once(store: InMemoryConversations) -> None:
    turn = await store.open_turn(NewMessage(None, "one"))
    await store.close_turn(turn, drafted("first"))
    await store.close_turn(turn, drafted("second"))
    await store.name_turn(turn, TurnId("t"))
    await store.withdraw_turn(turn)

    following = await store.open_turn(NewMessage(turn.session_id, "two"))

    assert [each.content for each in following.before] == ["one", "first"]


async def test_a_withdrawn_message_leaves_no_trace(store: InMemoryConversations) -> None:
    first = await say(store, None)
    await store.withdraw_turn(await store.open_turn(NewMessage(first.session_id, "two")))
    third = await store.open_turn(NewMessage(first.session_id, "three"))
    assert [each.content for each in third.before] == ["question", "answer"]

    lone = await store.open_turn(NewMessage(None, "x"))
    await store.withdraw_turn(lone)
    with pytest.raises(SessionNotFoundError):
        await store.open_turn(NewMessage(lone.session_id, "y"))


async def test_an_idle_session_expires_and_is_told_from_one_that_never_was(
    store: InMemoryConversations, clock: Clock
) -> None:
    turn = await say(store, None)
    clock.now_s = 99
    await say(store, turn.session_id)
    clock.now_s = 198
    await say(store, turn.session_id)
    clock.now_s = 298

    with pytest.raises(SessionExpiredError):
        await store.open_turn(NewMessage(turn.session_id, "late"))
    with pytest.raises(SessionNotFoundError):
        await store.open_turn(NewMessage(SessionId("never"), "late"))


async def test_a_running_session_does_not_expire(store: InMemoryConversations, clock: Clock) -> None:
    turn = await store.open_turn(NewMessage(None, "one"))
    clock.now_s = 1_000

    with pytest.raises(TurnRunningError):
        await store.open_turn(NewMessage(turn.session_id, "two"))


async def test_the_least_recently_used_session_makes_room(store: InMemoryConversations) -> None:
    turns = [await say(store, None) for _ in range(3)]
    await say(store, turns[0].session_id)
    await say(store, None)

    await say(store, turns[0].session_id)
    with pytest.raises(SessionNotFoundError):
        await store.open_turn(NewMessage(turns[1].session_id, "x"))


async def test_a_turn_whose_session_made_room_closes_quietly(store: InMemoryConversations) -> None:
    turn = await store.open_turn(NewMessage(None, "one"))
    for _ in range(3):
        await say(store, None)

    await store.close_turn(turn, drafted())
    await store.withdraw_turn(turn)


async def test_names_of_expired_sessions_are_bounded(store: InMemoryConversations, clock: Clock) -> None:
    turns = []
    for number in range(6):
        clock.now_s = number * 1_000
        turns.append(await say(store, None))
    clock.now_s = 10_000

    with pytest.raises(SessionExpiredError):
        await store.open_turn(NewMessage(turns[5].session_id, "x"))
    with pytest.raises(SessionNotFoundError):
        await store.open_turn(NewMessage(turns[0].session_id, "x"))


async def test_messages_of_a_session_are_bounded(store: InMemoryConversations) -> None:
    turn = await say(store, None)
    for _ in range(MAX_MESSAGES):
        await say(store, turn.session_id)

    following = await store.open_turn(NewMessage(turn.session_id, "x"))

    assert len(following.before) == MAX_MESSAGES


async def test_characters_of_a_session_are_bounded(store: InMemoryConversations) -> None:
    turn = await say(store, None, "x" * (MAX_CHARACTERS - 10))
    await say(store, turn.session_id, "y" * 20)

    following = await store.open_turn(NewMessage(turn.session_id, "z" * (MAX_CHARACTERS + 1)))
    assert [each.content[0] for each in following.before] == ["a", "y", "a"]

    await store.withdraw_turn(following)
    assert (await store.open_turn(NewMessage(turn.session_id, "x"))).before == ()


def test_an_answer_is_bounded() -> None:
    draft = Draft()
    draft.take(TokenAdded(1, "x" * MAX_ANSWER_CHARACTERS))

    with pytest.raises(UpstreamError):
        draft.take(TokenAdded(2, "x"))
    assert len(draft.content) == MAX_ANSWER_CHARACTERS


def message(role: str, content: str) -> Message:
    return Message(MessageId("m"), role, content)  # type: ignore[arg-type]


def test_history_leaves_out_questions_without_an_answer() -> None:
    stored = [
        message("assistant", "its question was dropped"),
        message("user", "failed"),
        message("assistant", ""),
        message("user", "a"),
        message("user", "b"),
        message("assistant", "c"),
        message("user", "dangling"),
    ]

    assert history_of(stored) == (Said("user", "b"), Said("assistant", "c"))


def test_history_is_cut_to_the_bounds_of_the_protocol_oldest_first() -> None:
    stored = [message("user", "q"), message("assistant", "a" * 40_000)] * 150

    history = history_of(stored)

    assert len(history) == 14
    assert {len(said.content) for said in history} == {1, MAX_MESSAGE_CHARACTERS}


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.integers(0, 60_000)), max_size=300))
def test_history_is_always_within_bounds_and_alternates(stored: list[tuple[str, int]]) -> None:
    history = history_of([message(role, "x" * length) for role, length in stored])

    assert len(history) <= MAX_HISTORY_MESSAGES
    assert sum(len(said.content) for said in history) <= MAX_HISTORY_CHARACTERS
    assert all(1 <= len(said.content) <= MAX_MESSAGE_CHARACTERS for said in history if said.role == "assistant")
    assert [said.role for said in history] == ["user", "assistant"] * (len(history) // 2)


async def test_every_turn_is_asked_under_a_name_of_its_own(store: InMemoryConversations) -> None:
    service = ConversationService(store)

    turn, first = await service.open(NewMessage(None, "one", agent="billing"))
    await service.close(turn, drafted())
    _, second = await service.open(NewMessage(turn.session_id, "two"))

    assert first.request_id != second.request_id
    assert (first.agent, first.history, first.state) == ("billing", (), b"")
    assert second.history == (Said("user", "one"), Said("assistant", "answer", "billing"))
    assert second.state == b"state"
