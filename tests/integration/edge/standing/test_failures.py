"""Failures of the agent service: what reaches a browser, when, and what does not."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from google.rpc import status_pb2

from edge_api.conversations.schemas import MAX_ANSWER_CHARACTERS
from tests.integration.edge.conftest import StartEdge
from tests.integration.edge.streams import events_of
from tests.support.scripted_agent import TURN_ID, ScriptedAgent, answer, started, status, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "sk-planted-4711"
Code = grpc.StatusCode

# ARCHITECTURE.md's table, as the wire has it: reason, gRPC code, HTTP status, our code, whether the text is told.
TABLE = [
    ("INVALID_REQUEST", Code.INVALID_ARGUMENT, 422, "invalid_request", True),
    ("BUDGET_EXCEEDED", Code.INVALID_ARGUMENT, 422, "budget_exceeded", True),
    ("UNKNOWN_AGENT", Code.NOT_FOUND, 404, "unknown_agent", True),
    ("UNKNOWN_DOCUMENT", Code.NOT_FOUND, 404, "unknown_document", True),
    ("UNKNOWN_COLLECTION", Code.NOT_FOUND, 404, "unknown_collection", True),
    ("UNKNOWN_TURN", Code.NOT_FOUND, 404, "unknown_turn", True),
    ("COLLECTION_NOT_READY", Code.FAILED_PRECONDITION, 409, "collection_not_ready", True),
    ("TURN_RUNNING", Code.ABORTED, 409, "turn_running", True),
    ("INGEST_CONFLICT", Code.ABORTED, 409, "ingest_conflict", True),
    ("REQUEST_ID_REUSED", Code.ALREADY_EXISTS, 422, "request_id_reused", True),
    ("SEQUENCE_EXPIRED", Code.OUT_OF_RANGE, 410, "sequence_expired", True),
    ("RETRIEVAL_UNAVAILABLE", Code.UNAVAILABLE, 503, "retrieval_unavailable", False),
    ("MODEL_UNAVAILABLE", Code.UNAVAILABLE, 503, "model_unavailable", False),
    ("MODEL_RATE_LIMITED", Code.RESOURCE_EXHAUSTED, 503, "model_rate_limited", False),
    ("MODEL_FAILED", Code.INTERNAL, 502, "model_failed", False),
    ("OVERLOADED", Code.UNAVAILABLE, 503, "overloaded", False),
    ("DRAINING", Code.UNAVAILABLE, 503, "draining", False),
    ("DEADLINE_EXCEEDED", Code.DEADLINE_EXCEEDED, 504, "deadline_exceeded", False),
    ("UNAUTHENTICATED", Code.UNAUTHENTICATED, 502, "agent_refused", False),
    ("PERMISSION_DENIED", Code.PERMISSION_DENIED, 502, "agent_refused", False),
    ("INTERNAL", Code.INTERNAL, 502, "internal", False),
    ("UNSPECIFIED", Code.UNKNOWN, 502, "agent_failed", False),
    # Nothing of ours in the status: gRPC itself, or something in between.
    ("", Code.RESOURCE_EXHAUSTED, 502, "agent_failed", False),
    ("", Code.UNAVAILABLE, 503, "agent_unavailable", False),
    ("", Code.CANCELLED, 503, "agent_unavailable", False),
    ("", Code.DEADLINE_EXCEEDED, 504, "deadline_exceeded", False),
    ("", Code.UNAUTHENTICATED, 502, "agent_refused", False),
    ("", Code.NOT_FOUND, 502, "agent_failed", False),
    ("", Code.UNIMPLEMENTED, 502, "agent_failed", False),
    ("A_NEWER_REASON", Code.UNAVAILABLE, 503, "agent_unavailable", False),
]
ROWS = pytest.mark.parametrize(("reason", "code", "http_status", "edge_code", "told"), TABLE)


def failing(reason: str, code: grpc.StatusCode) -> status_pb2.Status:
    return status(code, reason, f"text {SECRET}", retry_s=1.2)


def check(document: dict[str, Any], http_status: int, edge_code: str, told: bool) -> None:
    assert (document["status"], document["code"]) == (http_status, edge_code)
    assert (SECRET in str(document)) == told
    assert document.get("retry_after") == ((2 if document["code"] else 0) if http_status == 503 else None)
    assert document["retryable"] is (http_status in {503, 504} or edge_code in RETRYABLE)


RETRYABLE = {"turn_running", "ingest_conflict", "model_failed"}


@ROWS
async def test_an_early_failure_is_a_status_with_a_problem_body(
    http: httpx.AsyncClient,
    agent: ScriptedAgent,
    log_text: io.StringIO,
    reason: str,
    code: grpc.StatusCode,
    http_status: int,
    edge_code: str,
    told: bool,
) -> None:
    agent.turns.append([failing(reason, code)])

    response = await http.post("/chat", json={"message": "hello"})

    assert response.status_code == http_status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers.get("retry-after") == ("2" if http_status == 503 else None)
    check(response.json(), http_status, edge_code, told)
    assert SECRET not in log_text.getvalue()


@ROWS
async def test_a_late_failure_is_the_last_event_with_the_same_body(
    http: httpx.AsyncClient,
    agent: ScriptedAgent,
    log_text: io.StringIO,
    reason: str,
    code: grpc.StatusCode,
    http_status: int,
    edge_code: str,
    told: bool,
) -> None:
    agent.turns.append([started(), token("half an ans"), failing(reason, code)])

    found = await events_of(http)

    assert [event.type for event in found] == ["start", "token", "error"]
    assert found[-1].id is None
    document = found[-1].json
    assert document.pop("type") == f"urn:answerdesk:problem:{edge_code}"
    assert "sequence" not in document
    check(document, http_status, edge_code, told)
    assert SECRET not in log_text.getvalue()


@ROWS
async def test_a_failed_unary_call_is_the_same_problem(
    http: httpx.AsyncClient,
    agent: ScriptedAgent,
    log_text: io.StringIO,
    reason: str,
    code: grpc.StatusCode,
    http_status: int,
    edge_code: str,
    told: bool,
) -> None:
    agent.unary_failure = failing(reason, code)

    for path in ("/api/agents", "/api/search?q=x", "/api/documents/x"):
        response = await http.get(path)
        assert response.status_code == http_status
        check(response.json(), http_status, edge_code, told)
    assert SECRET not in log_text.getvalue()


async def test_a_late_failure_of_a_json_request_is_its_status(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([started(), token("half"), status(Code.UNAVAILABLE, "MODEL_UNAVAILABLE")])

    response = await http.post("/api/chat", json={"message": "hello"})

    assert (response.status_code, response.json()["code"]) == (503, "model_unavailable")
    assert response.headers["retry-after"] == "3"


async def test_an_unforeseen_exception_of_the_agent_is_502_without_its_text(
    http: httpx.AsyncClient, agent: ScriptedAgent, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    agent.turns.append([RuntimeError(SECRET)])

    response = await http.post("/api/chat", json={"message": "hello"})

    assert (response.status_code, response.json()["code"]) == (502, "agent_failed")
    assert SECRET not in response.text
    # The scripted agent shares this process, and grpc logs its exception; the edge's own lines are what counts.
    assert not [line for line in log_lines() if SECRET in str(line) and line["logger"].startswith("edge_api")]


async def test_a_fault_between_our_services_is_an_error_in_the_log(
    http: httpx.AsyncClient, agent: ScriptedAgent, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    agent.turns.append([status(Code.UNAUTHENTICATED, "UNAUTHENTICATED")])

    response = await http.post("/api/chat", json={"message": "hello"}, headers={"X-Request-ID": "r-7"})

    assert response.status_code == 502
    (line,) = [line for line in log_lines() if line["logger"] == "edge_api.agent_client.decode"]
    assert (line["level"], line["grpc_code"], line["reason"]) == ("error", "UNAUTHENTICATED", "UNAUTHENTICATED")
    assert line["request_id"] == "r-7"


async def test_fields_that_the_agent_refused_are_named(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    refusal = status(
        Code.INVALID_ARGUMENT, "INVALID_REQUEST", "the request is not valid", violations=[("agent", "unknown letters")]
    )
    agent.turns.append([refusal])

    problem = (await http.post("/api/chat", json={"message": "hello"})).json()

    assert problem["errors"] == [{"field": "agent", "detail": "unknown letters"}]


@pytest.mark.parametrize("script", [[], [token("no start")], [pb.ChatResponse(turn_id=TURN_ID, sequence=1)]])
async def test_an_answer_without_its_first_step_is_502(
    http: httpx.AsyncClient, agent: ScriptedAgent, script: list[pb.ChatResponse]
) -> None:
    agent.turns.append(script)

    response = await http.post("/chat", json={"message": "hello"})

    assert (response.status_code, response.json()["code"]) == (502, "agent_failed")


async def test_an_answer_that_is_cut_short_ends_with_a_retryable_error(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    agent.turns.append([started(), token("half")])

    found = await events_of(http)

    assert [event.type for event in found] == ["start", "token", "error"]
    assert (found[-1].json["status"], found[-1].json["retryable"]) == (503, True)


async def test_an_answer_without_end_is_cut(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([started(), *[token("x" * 65_536, number) for number in range(2, 9)]])

    found = await events_of(http)

    assert (found[-1].type, found[-1].json["status"]) == ("error", 502)
    assert sum(len(event.json["content"]) for event in found if event.type == "token") == MAX_ANSWER_CHARACTERS
    await agent.calls[0].ended.wait()


@pytest.mark.parametrize("details", [b"not a status", b""])
async def test_details_that_cannot_be_read_are_no_details(
    http: httpx.AsyncClient, agent: ScriptedAgent, details: bytes
) -> None:
    async def abort(context: Any) -> None:
        await context.abort(Code.INTERNAL, SECRET, (("grpc-status-details-bin", details),))

    agent.turns.append([abort])

    response = await http.post("/api/chat", json={"message": "hello"})

    assert (response.status_code, response.json()["code"]) == (502, "agent_failed")


async def test_reasons_of_other_services_are_not_ours(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([status(Code.NOT_FOUND, "UNKNOWN_AGENT", SECRET, domain="elsewhere.example")])

    response = await http.post("/api/chat", json={"message": "hello"})

    assert (response.status_code, response.json()["code"]) == (502, "agent_failed")


async def test_a_message_that_was_refused_early_is_not_remembered(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    session = (await http.post("/api/chat", json={"message": "one"})).json()["session_id"]
    agent.turns.append([status(Code.UNAVAILABLE, "OVERLOADED")])
    assert (await http.post(f"/api/chat/{session}", json={"message": "two"})).status_code == 503

    assert (await http.post(f"/api/chat/{session}", json={"message": "two"})).status_code == 200
    assert len(agent.calls[-1].request.history) == 2


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_time_for_an_answer_is_bounded(start_edge: StartEdge, agent: ScriptedAgent, streamed: bool) -> None:
    async def say_nothing(_context: object) -> None:
        await asyncio.Event().wait()

    agent.turns.append([started(), say_nothing])
    async with start_edge(turn_timeout_s=0.5) as edge:
        if streamed:
            document = (await events_of(edge.http))[-1].json
        else:
            response = await edge.http.post("/api/chat", json={"message": "hello"})
            document = response.json()
            assert response.status_code == 504

    assert (document["status"], document["code"]) == (504, "deadline_exceeded")
    # gRPC sends deadlines in whole milliseconds, rounded up.
    assert 0 < agent.calls[0].time_remaining_s <= 0.501


async def test_a_whole_answer_is_a_whole_answer_whatever_follows(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([*answer("text"), status(Code.INTERNAL, "INTERNAL")])

    found = await events_of(http)

    assert [event.type for event in found].count("complete") == 1
    assert found[-1].type == "complete"
