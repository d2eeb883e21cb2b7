"""Hosted models and the sample server of tools behind a whole pair: over REST, SSE and gRPC, with both APIs."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_grpcurl import grpcurl, messages
from tests.support.model_thread import in_a_thread
from tests.support.openai_server import Reply, Request, ScriptedOpenAI
from tests.support.processes import ROOT, Pair, clean_environment, running_pair
from tests.support.scripted_brain import call, first_sentence, hand_over, pieces, results_of, sources_of, tools_of
from tests.unit.edge.sse_parser import parse

pytestmark = pytest.mark.e2e

KEY = "sk-planted-for-tests"
QUESTION = "Where is my order RL-1042, and what does the Enterprise plan cost?"
LIMITED, DOWN = "Say that you are limited.", "How is a webhook signed while the primary model is down?"


def brain(request: Request) -> Reply:
    """Hands over to billing, looks the order up, and answers from the first source and the result."""
    said = str(request.body)
    if LIMITED in said:
        return Reply.error(429, retry_after_s=30)
    if DOWN in said and request.body["model"] == "primary":
        return Reply.error(500)
    results = results_of(request)
    if "order_status" in tools_of(request):
        if not results:
            return call("order_status", order_id="RL-1042").with_usage(100, 10)
    elif (handed := hand_over(request, "billing")) is not None:
        return handed
    text = f"{first_sentence(sources_of(request)[1])} [1] {' '.join(results)}"
    return Reply.text(text, pieces=list(pieces(text, 3))).with_usage(200, 20)


@dataclass
class Hosted:
    """A pair, and the model that it asks."""

    pair: Pair
    model: ScriptedOpenAI


@pytest.fixture(scope="module", params=["responses", "chat_completions"])
def hosted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    model = ScriptedOpenAI()
    model.answer_with(brain)
    with in_a_thread(model) as base_url:
        settings = {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": base_url,
            "AGENT_OPENAI_API": request.param,
            "AGENT_MODEL": "primary",
            "AGENT_FALLBACK_MODELS": "second",
            "EDGE_TURN_TIMEOUT_S": "20",
        }
        with running_pair(tmp_path_factory.mktemp("hosted"), settings) as pair:
            wait_for_tools(pair)
            yield Hosted(pair, model)


def wait_for_tools(pair: Pair) -> None:
    """Servers of tools are connected after the service is ready."""
    for _ in range(200):
        health = httpx.get(f"{pair.url}/health", timeout=10, trust_env=False).json()
        if health["checks"]["tools"] == "ok" and "an MCP server is connected" in pair.agent.output():
            return
    raise AssertionError(pair.agent.output())


def ask(hosted: Hosted, message: str, **body: str) -> httpx.Response:
    """A guest's question, answered as JSON. After a success nobody counts the failures before it."""
    pair = hosted.pair
    return httpx.post(
        f"{pair.url}/api/chat", json={"message": message, **body}, headers=pair.guest(), timeout=30, trust_env=False
    )


def check_end(end: dict[str, Any], answer: str) -> None:
    """The end of the one turn that all of these tests take, however it came."""
    assert (end["status"], end["outcome"], end["agent"]) == ("completed", "answered", "billing")
    (citation,) = end["citations"]
    statement = answer[citation["answer_span"]["start"] : citation["answer_span"]["end"]]
    assert statement.endswith("[1]")
    assert citation["quote"]
    assert end["usage"]["requests"] == 3
    assert end["usage"]["input_tokens"] > 300
    assert end["usage"]["output_tokens"] > 30
    trace = end["trace"]
    assert trace["agents"] == ["orchestrator", "billing"]
    assert (trace["model"], trace["retries"]) == ("primary", 0)
    assert [stage["name"] for stage in trace["stages"]] == [
        "model", "retrieval", "model", "tool", "model", "citations",
    ]  # fmt: skip


def test_json(hosted: Hosted) -> None:
    reply = ask(hosted, QUESTION)

    assert reply.status_code == 200, reply.text
    answer = reply.json()["answer"]
    assert "RL-1042" in answer
    check_end(reply.json(), answer)


def test_sse(hosted: Hosted) -> None:
    pair = hosted.pair
    headers = pair.guest() | {"Accept": "text/event-stream"}
    reply = httpx.post(f"{pair.url}/api/chat", json={"message": QUESTION}, headers=headers, timeout=30, trust_env=False)

    frames = parse(reply.text)
    kinds = [frame.type for frame in frames]
    assert kinds[:5] == ["start", "agent", "sources", "tool", "tool"]
    assert set(kinds[5:-1]) == {"token"}
    assert kinds[-1] == "complete"
    assert [frame.id for frame in frames] == [str(n) for n in range(1, len(frames) + 1)]
    began, ended = frames[3].json, frames[4].json
    assert (began["name"], began["phase"], ended["phase"]) == ("order_status", "started", "completed")
    assert began["call_id"] == ended["call_id"]
    check_end(frames[-1].json, "".join(frame.json["content"] for frame in frames if frame.type == "token"))


@pytest.mark.needs("grpcurl")
def test_grpc(hosted: Hosted) -> None:
    reply = grpcurl(hosted.pair, "answerdesk.v1.AgentService/Chat", data={"message": QUESTION})

    events = messages(reply.stdout)
    kinds = [next(kind for kind in event if kind not in {"turn_id", "sequence"}) for event in events]
    assert kinds[:5] == ["started", "agent", "sources", "tool", "tool"]
    assert set(kinds[5:-1]) == {"token"}
    completed = events[-1]["completed"]
    assert completed["usage"]["requests"] == 3
    assert completed["trace"]["model"] == "primary"
    assert [citation["marker"] for citation in completed["citations"]] == [1]


def test_the_model_got_neither_the_callers_token_nor_the_servers_other_tools(hosted: Hosted) -> None:
    pair = hosted.pair
    guest = pair.guest()
    before = len(hosted.model.requests)
    httpx.post(f"{pair.url}/api/chat", json={"message": QUESTION}, headers=guest, timeout=30, trust_env=False)

    for request in hosted.model.requests[before:]:
        assert guest["Authorization"].removeprefix("Bearer ") not in str(request)
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert "cancel_order" not in tools_of(request)


def test_the_fallback_answers_and_the_trace_says_so(hosted: Hosted) -> None:
    assert ask(hosted, "What does the Team plan cost?").status_code == 200

    reply = ask(hosted, DOWN, agent="technical")

    assert reply.status_code == 200, reply.text
    trace = reply.json()["trace"]
    assert (trace["model"], trace["retries"]) == ("second", 4)
    assert reply.json()["usage"]["requests"] == 1


def test_a_limit_for_ever_is_503_with_retry_after_and_keeps_the_question(hosted: Hosted) -> None:
    assert ask(hosted, "What does the Team plan cost?").status_code == 200
    pair, headers = hosted.pair, hosted.pair.guest()

    reply = httpx.post(f"{pair.url}/api/chat", json={"message": LIMITED}, headers=headers, timeout=30, trust_env=False)

    assert reply.status_code == 503, reply.text
    assert reply.json()["code"] == "model_rate_limited"
    assert int(reply.headers["retry-after"]) == 30
    with httpx.Client(base_url=pair.url, headers=headers, timeout=10, trust_env=False) as http:
        (session,) = http.get("/api/sessions").json()["sessions"]
        kept = http.get(f"/api/session/{session['session_id']}/messages").json()["messages"]
    assert kept[0]["content"] == LIMITED


def test_neither_the_logs_nor_health_show_the_key_or_what_was_said(hosted: Hosted) -> None:
    for output in (hosted.pair.agent.output(), hosted.pair.edge.output()):
        assert KEY not in output
        assert "RL-1042" not in output
        assert "Enterprise plan" not in output


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
def test_without_a_key_the_service_refuses_to_start_and_names_the_variable(tmp_path: Path, api: str) -> None:
    environment = clean_environment() | {
        "AGENT_MODEL_PROVIDER": "openai",
        "AGENT_OPENAI_API": api,
        "AGENT_DATA_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "agent_service", "serve"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
