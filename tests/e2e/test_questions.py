"""The questions of the first issue, over real HTTP, against both processes and the sample documents."""

import json
import subprocess
from typing import Any

import httpx
import pytest

from tests.support.processes import Pair
from tests.unit.edge.sse_parser import Event, parse

pytestmark = pytest.mark.e2e


def ask(http: httpx.Client, message: str, **body: Any) -> list[Event]:
    with http.stream("POST", "/chat", json={"message": message, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse("".join(response.iter_text()))


def check_citation(http: httpx.Client, citation: dict[str, Any], answer: str) -> None:
    """The quote stands in that version of the document at that span, and the marker in the answer at its span."""
    reply = http.get(f"/api/documents/{citation['document_id']}", params={"version": citation["version"]})
    text = reply.raise_for_status().json()["text"]
    span = citation["source_span"]
    assert text[span["start"] : span["end"]] == citation["quote"] != ""
    statement = answer[citation["answer_span"]["start"] : citation["answer_span"]["end"]]
    assert statement.endswith(f"[{citation['marker']}]")


def answer_of(frames: list[Event]) -> str:
    """The text of all `token` events."""
    return "".join(frame.json["content"] for frame in frames if frame.type == "token")


QUESTIONS = [
    ("What does the Enterprise plan cost?", "billing", "hybrid", "12.00"),
    ("My API integration keeps timing out. How do I fix this?", "technical", "rag", "35 seconds"),
    ("Do you comply with GDPR?", "policy", "cag", "complies with the General Data Protection Regulation"),
]


@pytest.mark.parametrize(("question", "agent", "strategy", "holds"), QUESTIONS)
def test_a_question_streams_a_cited_answer_from_its_specialist(
    http: httpx.Client, question: str, agent: str, strategy: str, holds: str
) -> None:
    frames = ask(http, question)

    kinds = [frame.type for frame in frames]
    assert kinds[:3] == ["start", "agent", "sources"]
    assert set(kinds[3:-1]) == {"token"}
    assert kinds[-1] == "complete"
    assert [frame.id for frame in frames] == [str(n) for n in range(1, len(frames) + 1)]
    assert all(f.json["type"] == f.type and f.json["sequence"] == int(f.id or 0) for f in frames)
    assert (frames[1].json["agent"], frames[1].json["strategy"]) == (agent, strategy)
    answer, complete = answer_of(frames), frames[-1].json
    assert holds in " ".join(answer.split())
    assert (complete["status"], complete["outcome"]) == ("completed", "answered")
    assert complete["citations"]
    for citation in complete["citations"]:
        assert citation["collection"] == agent
        check_citation(http, citation, answer)


def test_a_follow_up_by_its_session_is_answered_as_json(http: httpx.Client) -> None:
    session = ask(http, "What does the Enterprise plan cost?")[0].json["session_id"]

    reply = http.post(f"/api/chat/{session}", json={"message": "Can I upgrade from the Basic plan?"})

    body = reply.raise_for_status().json()
    assert (body["session_id"], body["conversation_id"]) == (session, session)
    assert (body["agent"], body["strategy"], body["outcome"]) == ("billing", "hybrid", "answered")
    assert "upgrade from the Basic plan" in body["answer"]
    assert body["citations"]
    for citation in body["citations"]:
        check_citation(http, citation, body["answer"])


def test_a_follow_up_in_the_same_session_streams_too(http: httpx.Client) -> None:
    session = ask(http, "What does the Enterprise plan cost?")[0].json["session_id"]

    frames = ask(http, "Can I upgrade from the Basic plan?", session_id=session)

    assert frames[0].json["session_id"] == session
    assert (frames[1].json["agent"], frames[1].json["strategy"]) == ("billing", "hybrid")
    assert "upgrade from the Basic plan" in answer_of(frames)


def test_a_question_that_no_document_answers_ends_without_evidence(http: httpx.Client) -> None:
    frames = ask(http, "Who won the 1998 World Cup?")

    complete = frames[-1].json
    assert (complete["status"], complete["outcome"], complete["citations"]) == ("completed", "no_evidence", [])
    assert not {"france", "brazil", "zidane"} & set(answer_of(frames).casefold().split())


def test_the_subject_changes_and_so_does_the_specialist(http: httpx.Client) -> None:
    session = ask(http, "What does the Enterprise plan cost?")[0].json["session_id"]

    agents = [
        ask(http, question, session_id=session)[1].json["agent"]
        for question in ("Do you comply with GDPR?", "How are webhooks signed?", "How long do you keep invoices?")
    ]

    assert agents == ["policy", "technical", "billing"]


def test_curl_reads_the_stream_as_the_readme_shows(pair: Pair) -> None:
    token = pair.guest()["Authorization"]
    headers = ["-H", f"Authorization: {token}", "-H", "Content-Type: application/json"]
    command = ["curl", "-sN", f"{pair.url}/chat", *headers, "-d"]
    body = json.dumps({"message": "What does the Enterprise plan cost?"})

    printed = subprocess.run([*command, body], capture_output=True, text=True, timeout=30, check=True).stdout

    frames = parse(printed)
    assert [frames[0].type, frames[-1].type] == ["start", "complete"]


def test_search_and_agents_answer_over_rest(http: httpx.Client) -> None:
    agents = http.get("/api/agents").raise_for_status().json()["agents"]
    found = http.get("/api/search", params={"q": "rate limit of the Team plan"}).raise_for_status().json()

    assert [agent["name"] for agent in agents] == ["orchestrator", "billing", "technical", "policy"]
    assert found["passages"][0]["uri"].endswith("rate-limits.md")


def test_the_request_id_reaches_the_agents_log(pair: Pair, http: httpx.Client) -> None:
    reply = http.get("/api/agents", headers={"X-Request-ID": "e2e.request-1"})

    assert reply.headers["x-request-id"] == "e2e.request-1"
    lines = [json.loads(line) for line in pair.agent.output().splitlines() if line.startswith("{")]
    calls = [line for line in lines if line.get("request_id") == "e2e.request-1"]
    assert [(call["method"], call["code"]) for call in calls] == [("/answerdesk.v1.AgentService/ListAgents", "OK")]


def test_no_log_of_either_process_holds_a_question_or_an_answer(pair: Pair, http: httpx.Client) -> None:
    answer = answer_of(ask(http, "What does the Enterprise plan cost, zanzibarquestion?"))

    logs = pair.agent.output() + pair.edge.output()
    assert "zanzibarquestion" not in logs
    assert answer[:40] not in logs
