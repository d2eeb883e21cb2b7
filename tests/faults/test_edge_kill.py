"""kill -9 of the only edge right after it acknowledged a message: the next one takes the turn over and stores it."""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import edge_command
from tests.support.cluster import LEASE_S
from tests.support.postgres_server import PostgresServer
from tests.support.processes import Pair, is_ready_within

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

# Twenty kills more, with two edges, are in test_edge_gone.py.
ROUNDS = 20
ROUNDS_ON_POSTGRESQL = 5

QUESTION = "What does the Enterprise plan cost?"

# An answer of some twenty words takes a second or two; the edge is dead before.
WORD_S = "0.05"
LATEST_KILL_S = 0.5

STORED_S = 8
"""A new edge has the turns of a SQLite database to itself, and takes them over when it starts."""

STORED_ON_POSTGRESQL_S = LEASE_S + 8
"""Beside PostgreSQL another edge could be alive: its lease runs out first."""

GRACE_S = 2
LONG_WORD_S = "1"


@contextmanager
def running(pair: Pair) -> Iterator[httpx.Client]:
    """A pair with a guest's client, which outlives the edge's restarts."""
    try:
        pair.agent.start()
        pair.edge.start()
        pair.wait_ready()
        with httpx.Client(base_url=pair.url, headers=pair.guest(), timeout=30, trust_env=False) as http:
            yield http
    finally:
        pair.stop()


@contextmanager
def asked(http: httpx.Client, message: str, session: str | None) -> Iterator[dict[str, Any]]:
    """Send a message, and read until it is acknowledged. Yields the `start` event."""
    body = {"message": message} | ({"session_id": session} if session else {})
    with http.stream("POST", "/chat", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data:"):
                start: dict[str, Any] = json.loads(line.removeprefix("data:"))
                assert start["type"] == "start"
                yield start
                return
    raise AssertionError("the stream ended without a start")


def ask_and_kill(pair: Pair, http: httpx.Client, message: str, session: str | None) -> dict[str, Any]:
    """Kill the edge as soon as a message is acknowledged, or a moment later, and start another. Returns `start`."""
    with asked(http, message, session) as start:
        time.sleep(random.choice((0, random.uniform(0, LATEST_KILL_S))))
        pair.edge.signal(signal.SIGKILL)
        assert pair.edge.wait() == -signal.SIGKILL
    pair.edge.start()
    pair.wait_ready()
    return start


def messages(http: httpx.Client, session: str) -> list[dict[str, Any]]:
    """What a session holds, oldest first; every message has an id of its own."""
    page = http.get(f"/api/session/{session}/messages", params={"limit": 200}).raise_for_status().json()
    found: list[dict[str, Any]] = page["messages"]
    assert len({each["id"] for each in found}) == len(found)
    return found


def contents(http: httpx.Client, session: str) -> list[tuple[str, str, str]]:
    """Role, status and text of each message."""
    return [(each["role"], each["status"], each["content"]) for each in messages(http, session)]


def has_answers(http: httpx.Client, session: str, count: int) -> bool:
    return sum(1 for each in messages(http, session) if each["role"] == "assistant") >= count


def state(http: httpx.Client, session: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/api/session/{session}").raise_for_status().json()
    return found


def undisturbed(http: httpx.Client, turns: int) -> list[tuple[str, str, str]]:
    """What a session holds after so many turns that nothing happened to."""
    session: str | None = None
    for _ in range(turns):
        body = {"message": QUESTION} | ({"session_id": session} if session else {})
        session = http.post("/api/chat", json=body).raise_for_status().json()["session_id"]
    return contents(http, str(session))


def test_kill_9_after_start_costs_no_word_of_the_answer(tmp_path: Path, figures: Callable[[str], None]) -> None:
    pair = Pair(tmp_path, {"AGENT_OFFLINE_DELAY_S": WORD_S})
    session: str | None = None
    slowest_s = 0.0
    with running(pair) as http:
        # The first answer, and that of a conversation which goes on; all others are as the second.
        first, second = undisturbed(http, 1), undisturbed(http, 3)[4:]
        for number in range(ROUNDS):
            start = ask_and_kill(pair, http, QUESTION, session)
            session = str(start["session_id"])
            restarted_s = time.monotonic()
            assert is_ready_within(partial(has_answers, http, session, number + 1), STORED_S)
            slowest_s = max(slowest_s, time.monotonic() - restarted_s)

            expected = first + second * number
            assert contents(http, session) == expected
            assert messages(http, session)[-1]["id"] == start["message_id"]
            assert state(http, session)["running_turn_id"] is None
        assert session is not None
        answered = http.post(f"/api/chat/{session}", json={"message": QUESTION}).raise_for_status().json()
        kept = contents(http, session)
        listed = http.get("/api/sessions").raise_for_status().json()["sessions"]

    figures(
        f"{ROUNDS} kills, every answer whole and stored once, at most {slowest_s:.1f} s after the new edge was ready"
    )
    assert (answered["status"], answered["outcome"]) == ("completed", "answered")
    assert kept == expected + second
    assert {status for _, status, _ in kept} == {"completed"}
    assert listed[0]["session_id"] == session
    assert listed[0]["turns"] == ROUNDS + 1


def test_kill_9_of_an_edge_that_stays_away_ends_the_turn_after_the_grace(
    tmp_path: Path, figures: Callable[[str], None]
) -> None:
    pair = Pair(tmp_path, {"AGENT_OFFLINE_DELAY_S": LONG_WORD_S, "EDGE_DISCONNECT_GRACE_S": str(GRACE_S)})
    with running(pair) as http:
        with asked(http, QUESTION, None) as start:
            pair.edge.signal(signal.SIGKILL)
            assert pair.edge.wait() == -signal.SIGKILL
        # An answer of twenty words is far from its end by then, at one word a second.
        time.sleep(GRACE_S + 1)
        pair.edge.start()
        pair.wait_ready()
        session = str(start["session_id"])
        assert is_ready_within(partial(has_answers, http, session, 1), STORED_S)
        question, answer = messages(http, session)
        running_turn = state(http, session)["running_turn_id"]

    figures(f"kept of the answer: {len(answer['content'].split())} words")
    assert question["content"] == QUESTION
    assert (answer["status"], answer["id"]) == ("interrupted", start["message_id"])
    assert answer["content"]
    assert running_turn is None


@pytest.mark.needs("postgres")
def test_kill_9_after_start_costs_no_word_on_postgresql(
    tmp_path: Path, postgres: PostgresServer, figures: Callable[[str], None]
) -> None:
    postgres.create("edge_kill")
    settings = {
        "AGENT_OFFLINE_DELAY_S": WORD_S,
        "EDGE_DATABASE_URL": postgres.url("edge_kill"),
        "EDGE_JWT_SECRET": "x7Kq2vN9sT4bW8mJ3pR6yD1fH5gL0zCa",
    }
    pair = Pair(tmp_path, settings)
    edge_command(pair, "migrate")
    with running(pair) as http:
        whole = undisturbed(http, 1)
        starts = [ask_and_kill(pair, http, QUESTION, None) for _ in range(ROUNDS_ON_POSTGRESQL)]
        restarted_s = time.monotonic()
        sessions = [str(start["session_id"]) for start in starts]
        # Another edge might still be answering: the dead one is given its lease, and no more.
        early = http.post(f"/api/chat/{sessions[-1]}", json={"message": "And now?"})
        for start, session in zip(starts, sessions, strict=True):
            assert is_ready_within(partial(has_answers, http, session, 1), STORED_ON_POSTGRESQL_S)
            assert contents(http, session) == whole
            assert messages(http, session)[-1]["id"] == start["message_id"]
        took_s = time.monotonic() - restarted_s
        goes_on = [http.post(f"/api/chat/{session}", json={"message": "And now?"}) for session in sessions]
        again = [contents(http, session)[:2] for session in sessions]
        listed = http.get("/api/sessions").raise_for_status().json()["sessions"]

    figures(f"{ROUNDS_ON_POSTGRESQL} kills, all answers stored once, at most {took_s:.1f} s after the last restart")
    assert (early.status_code, early.json()["code"]) == (409, "turn_running")
    assert early.json()["turn_id"] == starts[-1]["turn_id"]
    assert took_s <= STORED_ON_POSTGRESQL_S
    assert [reply.status_code for reply in goes_on] == [200] * ROUNDS_ON_POSTGRESQL
    assert again == [whole] * ROUNDS_ON_POSTGRESQL
    assert set(sessions) <= {each["session_id"] for each in listed}
