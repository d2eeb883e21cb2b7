"""Conversations as people keep them: across restarts, on both databases, through two edges, and by hand."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.conftest import edge_command
from tests.support.postgres_server import PostgresServer
from tests.support.processes import Pair, Process, free_port, is_ready_within, running_pair

pytestmark = pytest.mark.e2e

SECRET = "x7Kq2vN9sT4bW8mJ3pR6yD1fH5gL0zCa"

FOLLOW_UPS = [
    ("How do I cancel my subscription?", "Who can do that?", "Only the workspace owner can cancel the subscription."),
    ("What does the Enterprise plan cost?", "How much does that cost?", "The Enterprise plan costs €12.00"),
]
"""A question, its follow-up, and how the answer to the follow-up reads only after that question."""


@contextmanager
def client(url: str, headers: Mapping[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
        yield http


def said(http: httpx.Client, message: str, session: str = "") -> dict[str, Any]:
    """The whole reply to a message, in a session or in a new one."""
    reply = http.post(f"/api/chat/{session}".rstrip("/"), json={"message": message})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def messages(http: httpx.Client, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"/api/session/{session}/messages").raise_for_status().json()["messages"]
    return found


def postgres_settings(server: PostgresServer) -> dict[str, str]:
    """Of an edge on an empty database of its own."""
    name = f"e2e_{uuid4().hex[:12]}"
    server.create(name)
    return {"EDGE_DATABASE_URL": server.url(name), "EDGE_JWT_SECRET": SECRET}


def migrated(pair: Pair) -> Pair:
    edge_command(pair, "migrate")
    return pair


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def own_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """A pair that may be restarted, on either database."""
    on_postgres = request.param == "postgres"
    pair = Pair(tmp_path, postgres_settings(request.getfixturevalue("postgres")) if on_postgres else {})
    try:
        if on_postgres:
            migrated(pair)
        start(pair)
        yield pair
    finally:
        pair.stop()


def start(pair: Pair) -> None:
    for process in (pair.agent, pair.edge):
        process.start()
    pair.wait_ready()


def restart(pair: Pair) -> None:
    before = {process.popen.pid for process in (pair.agent, pair.edge)}
    pair.stop()
    start(pair)
    assert before.isdisjoint({process.popen.pid for process in (pair.agent, pair.edge)})


def test_a_follow_up_after_a_restart_of_both_processes_knows_the_question_before_it(own_pair: Pair) -> None:
    with client(own_pair.url, own_pair.guest()) as http:
        alone = [said(http, follow_up) for _, follow_up, _ in FOLLOW_UPS]
        first = [said(http, question) for question, _, _ in FOLLOW_UPS]
        restart(own_pair)
        later = [
            said(http, follow_up, each["session_id"]) for each, (_, follow_up, _) in zip(first, FOLLOW_UPS, strict=True)
        ]
        stored = [messages(http, each["session_id"]) for each in first]

    for (question, follow_up, opening), without, reply, kept in zip(FOLLOW_UPS, alone, later, stored, strict=True):
        assert opening in reply["answer"]
        assert not without["answer"].startswith(opening)
        # The passages of the first question came back from `state`.
        assert reply["trace"]["cache_hit"] is True
        assert reply["citations"]
        assert [(each["role"], each["content"]) for each in kept[::2]] == [("user", question), ("user", follow_up)]
        assert [each["role"] for each in kept[1::2]] == ["assistant"] * 2
        assert kept[3]["content"] == reply["answer"]


def test_everything_of_a_session_survives_a_restart_and_so_does_the_guest(own_pair: Pair) -> None:
    guest = own_pair.guest()
    with client(own_pair.url, guest) as http:
        session = said(http, "Do you comply with GDPR?")["session_id"]
        answer = messages(http, session)[1]["id"]
        http.post(f"/api/messages/{answer}/feedback", json={"rating": "up", "comment": "Clear."}).raise_for_status()
        http.patch(f"/api/session/{session}", json={"title": "Privacy"}).raise_for_status()
        paths = ("/api/auth/me", "/api/sessions", f"/api/session/{session}", f"/api/session/{session}/messages")
        before = [http.get(path).raise_for_status().json() for path in paths]
        restart(own_pair)
        after = [http.get(path).raise_for_status().json() for path in paths]

    assert after == before


def test_sessions_are_listed_newest_first_and_found_by_their_words(http: httpx.Client) -> None:
    questions = ["Do you comply with GDPR?", "How are webhooks signed?", "What does the Enterprise plan cost?"]
    sessions = [said(http, question)["session_id"] for question in questions]
    said(http, "Who can do that?", sessions[0])

    listed = http.get("/api/sessions").raise_for_status().json()["sessions"]
    first = http.get("/api/sessions", params={"limit": 2}).raise_for_status().json()
    rest = http.get("/api/sessions", params={"limit": 2, "cursor": first["next_cursor"]}).raise_for_status().json()
    found = {
        words: [each["session_id"] for each in http.get("/api/sessions", params={"q": words}).json()["sessions"]]
        for words in ("webhooks", "who can do", "nowhere to be found")
    }

    assert [each["session_id"] for each in listed] == [sessions[0], sessions[2], sessions[1]]
    assert [each["title"] for each in listed] == [questions[0], questions[2], questions[1]]
    assert first["sessions"] + rest["sessions"] == listed
    assert rest["next_cursor"] is None
    assert found["webhooks"] == [sessions[1]]
    assert found["who can do"] == [sessions[0]]
    assert found["nowhere to be found"] == []


def test_a_session_is_renamed_emptied_asked_again_and_deleted(http: httpx.Client) -> None:
    session = said(http, "How do I cancel my subscription?")["session_id"]

    renamed = http.patch(f"/api/session/{session}", json={"title": "  Leaving\nfor good "}).raise_for_status().json()
    emptied = http.post(f"/api/session/{session}/reset").raise_for_status().json()
    nothing = messages(http, session)
    forgotten = said(http, "Who can do that?", session)
    kept = messages(http, session)
    deleted = http.delete(f"/api/session/{session}")
    gone = [
        http.get(f"/api/session/{session}"),
        http.get(f"/sessions/{session}"),
        http.get(f"/api/session/{session}/messages"),
        http.post(f"/api/chat/{session}", json={"message": "Who can do that?"}),
        http.delete(f"/api/session/{session}"),
    ]

    assert renamed["title"] == "Leaving for good"
    assert (emptied["title"], emptied["turns"], emptied["tokens_used"]) == ("Leaving for good", 0, 0)
    assert nothing == []
    assert forgotten["outcome"] == "no_evidence", "the follow-up must not know what was forgotten"
    assert [each["content"] for each in kept] == ["Who can do that?", forgotten["answer"]]
    assert deleted.status_code == 204
    assert [(each.status_code, each.json()["code"]) for each in gone] == [(404, "session_not_found")] * len(gone)
    assert http.get("/api/sessions").json() == {"sessions": [], "next_cursor": None}


def test_feedback_is_kept_with_its_answer_and_replaced_by_the_next(http: httpx.Client) -> None:
    reply = said(http, "Do you comply with GDPR?")
    question, answer = messages(http, reply["session_id"])
    url = f"/api/messages/{answer['id']}/feedback"

    http.post(url, json={"rating": "up", "comment": "Clear."}).raise_for_status()
    http.post(url, json={"rating": "down", "comment": "Too long — vielleicht kürzer?"}).raise_for_status()
    of_a_question = http.post(f"/api/messages/{question['id']}/feedback", json={"rating": "up"})
    unknown = http.post(f"/api/messages/{uuid4()}/feedback", json={"rating": "up"})

    kept = messages(http, reply["session_id"])
    assert reply["message_id"] == answer["id"]
    assert kept[0]["feedback"] is None
    assert kept[1]["feedback"].items() >= {"rating": "down", "comment": "Too long — vielleicht kürzer?"}.items()
    assert [of_a_question.status_code, unknown.status_code] == [404, 404]


def test_nobody_else_sees_or_changes_a_session(pair: Pair, http: httpx.Client) -> None:
    reply = said(http, "How do I cancel my subscription?")
    session, message = reply["session_id"], reply["message_id"]
    before = (http.get(f"/api/session/{session}").json(), messages(http, session))

    with client(pair.url, pair.guest()) as other:
        refused = [
            other.get(f"/api/session/{session}"),
            other.get(f"/sessions/{session}"),
            other.get(f"/api/session/{session}/messages"),
            other.patch(f"/api/session/{session}", json={"title": "Mine"}),
            other.post(f"/api/session/{session}/reset"),
            other.delete(f"/api/session/{session}"),
            other.delete(f"/sessions/{session}"),
            other.post(f"/api/chat/{session}", json={"message": "Who can do that?"}),
            other.post("/api/chat", json={"message": "Who can do that?", "session_id": session}),
            other.post("/chat", json={"message": "Who can do that?", "conversation_id": session}),
            other.post(f"/api/messages/{message}/feedback", json={"rating": "down"}),
        ]
        listed = other.get("/api/sessions", params={"q": "cancel"}).json()["sessions"]

    assert [(each.status_code, each.json()["code"]) for each in refused] == [(403, "not_your_session")] * len(refused)
    assert listed == []
    assert (http.get(f"/api/session/{session}").json(), messages(http, session)) == before


def test_usage_is_returned_with_each_answer_and_adds_up_in_the_session(http: httpx.Client) -> None:
    replies = [said(http, "What does the Enterprise plan cost?")]
    session = replies[0]["session_id"]
    replies += [said(http, question, session) for question in ("How much does that cost?", "Do you comply with GDPR?")]

    state = http.get(f"/api/session/{session}").raise_for_status().json()
    stored = [each["usage"] for each in messages(http, session) if each["role"] == "assistant"]

    assert stored == [reply["usage"] for reply in replies]
    assert all(usage["requests"] >= 1 and usage["input_tokens"] > usage["output_tokens"] > 0 for usage in stored)
    assert all(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] for usage in stored)
    assert state["usage"] == {kind: sum(usage[kind] for usage in stored) for kind in stored[0]}
    assert (state["turns"], state["tokens_used"]) == (3, state["usage"]["total_tokens"])
    assert state["running_turn_id"] is None


@pytest.mark.needs("postgres")
def test_two_edges_on_one_database_serve_one_session_in_turn(postgres: PostgresServer, tmp_path: Path) -> None:
    settings = postgres_settings(postgres)
    migrated(Pair(tmp_path, settings))
    with running_pair(tmp_path, settings) as pair, second_edge(pair) as other_url:
        guest = pair.guest()
        with client(pair.url, guest) as one, client(other_url, guest) as two:
            first = said(one, "How do I cancel my subscription?")
            session = first["session_id"]
            replies = [
                first,
                said(two, "Who can do that?", session),
                said(one, "What does the Enterprise plan cost?", session),
                said(two, "How much does that cost?", session),
            ]
            seen = [messages(http, session) for http in (one, two)]
            states = [http.get(f"/api/session/{session}").json() for http in (one, two)]
            two.delete(f"/api/session/{session}").raise_for_status()
            gone = one.get(f"/api/session/{session}")

    assert "Only the workspace owner can cancel" in replies[1]["answer"]
    assert "The Enterprise plan costs €12.00" in replies[3]["answer"]
    assert seen[0] == seen[1]
    assert [each["content"] for each in seen[0][1::2]] == [reply["answer"] for reply in replies]
    assert states[0] == states[1]
    assert (states[0]["turns"], states[0]["tokens_used"]) == (4, sum(r["usage"]["total_tokens"] for r in replies))
    assert gone.status_code == 404


@contextmanager
def second_edge(pair: Pair) -> Iterator[str]:
    """Another edge with the settings of the first, on another port. Yields its address."""
    port = free_port()
    environment = {**pair.edge.environment, "EDGE_PORT": str(port)}
    edge = Process(["-m", "edge_api", "serve"], environment, pair.folder / "edge2.log").start()
    url = f"http://127.0.0.1:{port}"
    try:
        assert is_ready_within(_ready(url)), edge.output()
        yield url
    finally:
        edge.stop()


def _ready(url: str) -> Callable[[], bool]:
    return lambda: httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200
