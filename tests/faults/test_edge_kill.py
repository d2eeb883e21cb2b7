"""kill -9 of the edge right after it acknowledged a message: the message is there, once, and the session goes on."""

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import edge_command
from tests.support.postgres_server import PostgresServer
from tests.support.processes import Pair, is_ready_within

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

ROUNDS = 20
ROUNDS_ON_POSTGRESQL = 5

QUESTION = "What does the Enterprise plan cost?"

# An answer of some twenty words takes a second or two; the edge is dead long before.
WORD_S = "0.05"

TURN_TIMEOUT_S = 6
MARGIN_S = 10
"""What an edge that shares its database grants another one beyond the deadline of a turn."""


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
        time.sleep(random.choice((0, 0, random.uniform(0, 0.1))))
        pair.edge.signal(signal.SIGKILL)
        assert pair.edge.wait() == -signal.SIGKILL
    pair.edge.start()
    pair.wait_ready()
    return start


def contents(http: httpx.Client, session: str) -> list[tuple[str, str]]:
    """What a session holds, oldest first; every message has an id of its own."""
    page = http.get(f"/api/session/{session}/messages", params={"limit": 200}).raise_for_status().json()
    assert len({each["id"] for each in page["messages"]}) == len(page["messages"])
    return [(each["role"], each["content"]) for each in page["messages"]]


def state(http: httpx.Client, session: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/api/session/{session}").raise_for_status().json()
    return found


def test_kill_9_after_start_keeps_the_message_and_leaves_the_session_open(tmp_path: Path) -> None:
    pair = Pair(tmp_path, {"AGENT_OFFLINE_DELAY_S": WORD_S})
    session: str | None = None
    with running(pair) as http:
        for number in range(ROUNDS):
            start = ask_and_kill(pair, http, f"{QUESTION} ({number})", session)
            session = start["session_id"]

            expected = [("user", f"{QUESTION} ({n})") for n in range(number + 1)]
            assert contents(http, session) == expected
            assert state(http, session)["running_turn_id"] is None
        assert session is not None
        answered = http.post(f"/api/chat/{session}", json={"message": QUESTION}).raise_for_status().json()
        kept = contents(http, session)
        listed = http.get("/api/sessions").raise_for_status().json()["sessions"]

    assert (answered["status"], answered["outcome"]) == ("completed", "answered")
    assert kept == [*expected, ("user", QUESTION), ("assistant", answered["answer"])]
    assert [each["session_id"] for each in listed] == [session]
    assert (listed[0]["turns"], listed[0]["tokens_used"]) == (1, answered["usage"]["total_tokens"])


@pytest.mark.needs("postgres")
def test_kill_9_after_start_keeps_the_message_on_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    postgres.create("edge_kill")
    settings = {
        "AGENT_OFFLINE_DELAY_S": WORD_S,
        "EDGE_DATABASE_URL": postgres.url("edge_kill"),
        "EDGE_JWT_SECRET": "x7Kq2vN9sT4bW8mJ3pR6yD1fH5gL0zCa",
        "EDGE_TURN_TIMEOUT_S": str(TURN_TIMEOUT_S),
    }
    pair = Pair(tmp_path, settings)
    edge_command(pair, "migrate")
    messages = [f"{QUESTION} ({number})" for number in range(ROUNDS_ON_POSTGRESQL)]
    sessions: list[str] = []
    with running(pair) as http:
        for message in messages:
            start = ask_and_kill(pair, http, message, None)
            sessions.append(start["session_id"])
            assert contents(http, sessions[-1]) == [("user", message)]
        # Another edge might still be answering: it is given the time that a turn may take, and no more.
        early = http.post(f"/api/chat/{sessions[-1]}", json={"message": "And now?"})
        for session, message in zip(sessions, messages, strict=True):
            assert is_ready_within(partial(goes_on, http, session), TURN_TIMEOUT_S + MARGIN_S + 5)
            kept = contents(http, session)
            assert kept[:2] == [("user", message), ("user", "And now?")]
            assert [role for role, _ in kept[2:]] in ([], ["assistant"])
        listed = http.get("/api/sessions").raise_for_status().json()["sessions"]

    assert (early.status_code, early.json()["code"]) == (409, "turn_running")
    assert {each["session_id"] for each in listed} == set(sessions)
    assert len(listed) == len(sessions)


def goes_on(http: httpx.Client, session: str) -> bool:
    """Whether the session takes another message."""
    reply = http.post(f"/api/chat/{session}", json={"message": "And now?"})
    assert reply.status_code in {200, 409}, reply.text
    return reply.status_code == 200
