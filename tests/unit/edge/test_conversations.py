"""What a conversation is made of: drafts, the history that the agent is given, titles, cursors."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_api.agent_client.events import AgentSelected, Completed, Role, Said, TokenAdded
from edge_api.conversations import cursors
from edge_api.conversations.cursors import (
    MAX_PLACE,
    message_cursor,
    read_message_cursor,
    read_session_cursor,
    session_cursor,
)
from edge_api.conversations.repository.history import MAX_HISTORY_MESSAGES, MAX_MESSAGE_CHARACTERS, history_of
from edge_api.conversations.schemas import (
    MAX_ANSWER_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    Draft,
    Failure,
    Remark,
    SessionId,
)
from edge_api.conversations.service import may_start_again
from edge_api.conversations.titles import TITLE_CHARACTERS, title_of
from edge_api.errors import InvalidCursorError, UpstreamError

BUDGET = 256_000


def test_a_draft_is_what_has_come_so_far_and_at_the_end_what_the_end_says() -> None:
    draft = Draft()
    draft.take(AgentSelected(1, "billing", "rag"))
    draft.take(TokenAdded(2, "half an "))
    assert (draft.status, draft.agent, draft.strategy, draft.content) == ("interrupted", "billing", "rag", "half an ")

    draft.take(TokenAdded(3, "answer"))
    draft.take(
        Completed(
            sequence=4,
            status="completed",
            outcome="answered",
            agent="policy",
            strategy="cag",
            citations=[{"marker": 1}],
            usage={"total_tokens": 3},
            trace={"support": 0.9},
            state=b"state",
        )
    )
    assert (draft.status, draft.outcome, draft.agent, draft.strategy) == ("completed", "answered", "policy", "cag")
    assert (draft.content, draft.state, draft.usage) == ("half an answer", b"state", {"total_tokens": 3})


def test_an_answer_is_bounded() -> None:
    draft = Draft()
    draft.take(TokenAdded(1, "x" * MAX_ANSWER_CHARACTERS))

    with pytest.raises(UpstreamError):
        draft.take(TokenAdded(2, "x"))
    assert len(draft.content) == MAX_ANSWER_CHARACTERS


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (None, True),
        *((Failure(code), True) for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNKNOWN")),
        *((Failure(code), True) for code in ("ABORTED", "CANCELLED")),
        *((Failure(code), False) for code in ("INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "PERMISSION_DENIED", "")),
        (Failure("INTERNAL", "MODEL_FAILED"), True),
        (Failure("INTERNAL", "INTERNAL"), False),
    ],
)
def test_a_failure_that_may_pass_is_worth_another_try(failure: Failure | None, expected: bool) -> None:
    assert may_start_again(failure) is expected


def test_history_leaves_out_questions_without_an_answer() -> None:
    stored = [
        Remark("assistant", "its question was dropped"),
        Remark("user", "failed"),
        Remark("assistant", ""),
        Remark("user", "a"),
        Remark("user", "b"),
        Remark("assistant", "c", "billing"),
        Remark("user", "dangling"),
    ]

    assert history_of(stored, characters=BUDGET) == (Said("user", "b"), Said("assistant", "c", "billing"))


def test_history_is_cut_to_the_budget_oldest_first() -> None:
    stored = [Remark("user", "q"), Remark("assistant", "a" * 40_000)] * 50 + [
        Remark("user", "r"),
        Remark("assistant", "b"),
    ]

    history = history_of(stored, characters=70_000)

    assert [said.content[0] for said in history] == ["q", "a", "q", "a", "r", "b"]
    assert {len(said.content) for said in history} == {1, MAX_MESSAGE_CHARACTERS}
    assert history_of(stored, characters=1) == ()
    assert history_of(stored, characters=2) == (Said("user", "r"), Said("assistant", "b"))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.integers(0, 60_000)), max_size=300),
    st.integers(0, BUDGET),
)
def test_history_is_always_within_bounds_and_alternates(stored: list[tuple[Role, int]], characters: int) -> None:
    history = history_of([Remark(role, "x" * length) for role, length in stored], characters=characters)

    assert len(history) <= MAX_HISTORY_MESSAGES
    assert sum(len(said.content) for said in history) <= characters
    assert all(1 <= len(said.content) <= MAX_MESSAGE_CHARACTERS for said in history if said.role == "assistant")
    assert [said.role for said in history] == ["user", "assistant"] * (len(history) // 2)


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("What does it cost?", "What does it cost?"),
        ("  \n\n  What   does\tit cost?  \nAnd when?", "What does it cost?"),
        ("Can you tell me " * 10, "Can you tell me Can you tell me Can you tell me Can you tell…"),
        ("x" * 61, f"{'x' * 60}…"),
        ("x" * 60, "x" * 60),
        ("short " + "y" * 100, f"short {'y' * 54}…"),
        ("価格を教えてください。" * 9, f"{('価格を教えてください。' * 9)[:60]}…"),
    ],
)
def test_a_title_is_the_first_line_that_says_something_cut_between_words(message: str, title: str) -> None:
    assert title_of(message) == title


@given(st.text(min_size=1, max_size=500).filter(str.strip))
def test_a_title_is_one_short_line_that_the_owner_could_have_given(message: str) -> None:
    title = title_of(message)

    assert title == " ".join(title.split())
    assert 1 <= len(title) <= TITLE_CHARACTERS + 1 <= MAX_TITLE_CHARACTERS


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))])), st.uuids().map(str))
def test_a_session_cursor_is_read_back(moment: datetime, session_id: str) -> None:
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return

    assert read_session_cursor(session_cursor(moment, SessionId(session_id))) == (moment, session_id)


@given(st.integers(0, MAX_PLACE))
def test_a_message_cursor_is_read_back(place: int) -> None:
    assert read_message_cursor(message_cursor(place)) == place


@given(st.one_of(st.text(max_size=200), st.binary(max_size=100).map(lambda each: each.hex())))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    for read in (read_session_cursor, read_message_cursor):
        with pytest.raises(InvalidCursorError):
            read(text)


@pytest.mark.parametrize("inner", ["m", "m-1", "m1x", "m²", "m99999999999", "m4294967296", "x1", ""])
def test_a_cursor_of_no_message_is_refused(inner: str) -> None:
    with pytest.raises(InvalidCursorError):
        read_message_cursor(cursors._packed(inner))


@pytest.mark.parametrize(
    "inner", ["", "2026-11-21T00:00:00 x", "0001-01-01T00:00:00+14:00 x", "2026-11-21T00:00:00+00:00 "]
)
def test_a_cursor_of_no_session_is_refused(inner: str) -> None:
    with pytest.raises(InvalidCursorError):
        read_session_cursor(cursors._packed(inner))
