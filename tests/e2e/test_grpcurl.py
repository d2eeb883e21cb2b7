"""The agent service as a person with grpcurl meets it."""

import json
import subprocess
from typing import Any

import pytest

from tests.conftest import tool
from tests.support.processes import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.needs("grpcurl")]


def grpcurl(pair: Pair, *arguments: str, data: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    given = ["-d", json.dumps(data)] if data is not None else []
    # grpcurl takes flags, then the address, then what to call.
    flags = [a for a in arguments if a.startswith("-")]
    rest = [a for a in arguments if not a.startswith("-")]
    command = [str(tool("grpcurl")), "-plaintext", *flags, *given, pair.agent_target, *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def messages(printed: str) -> list[dict[str, Any]]:
    """The JSON messages that grpcurl prints one after the other."""
    decoder, found, rest = json.JSONDecoder(), [], printed.strip()
    while rest:
        message, end = decoder.raw_decode(rest)
        found.append(message)
        rest = rest[end:].lstrip()
    return found


def test_list_shows_the_services(pair: Pair) -> None:
    listed = grpcurl(pair, "list").stdout.split()

    assert {
        "answerdesk.v1.AgentService",
        "answerdesk.v1.KnowledgeService",
        "grpc.health.v1.Health",
    } <= set(listed)


def test_describe_shows_the_methods(pair: Pair) -> None:
    described = grpcurl(pair, "describe", "answerdesk.v1.AgentService").stdout

    assert "rpc Chat ( .answerdesk.v1.ChatRequest ) returns ( stream .answerdesk.v1.ChatResponse );" in described
    assert "rpc ListAgents" in described


@pytest.mark.parametrize("service", ["", "answerdesk.v1.AgentService", "answerdesk.v1.KnowledgeService"])
def test_health_says_serving_for_each_service(pair: Pair, service: str) -> None:
    reply = grpcurl(pair, "grpc.health.v1.Health/Check", data={"service": service})

    assert json.loads(reply.stdout) == {"status": "SERVING"}


def test_chat_with_a_message_alone_streams_numbered_events(pair: Pair) -> None:
    reply = grpcurl(pair, "answerdesk.v1.AgentService/Chat", data={"message": "Do you comply with GDPR?"})

    events = messages(reply.stdout)
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert "started" in events[0]
    assert events[1]["agent"] == {"agent": "policy", "strategy": "STRATEGY_CAG"}
    completed = events[-1]["completed"]
    assert completed["outcome"] == "OUTCOME_ANSWERED"
    assert "GDPR" in completed["citations"][0]["quote"]
    assert completed["state"]["agent"] == "policy"


def test_search_returns_passages(pair: Pair) -> None:
    reply = grpcurl(pair, "answerdesk.v1.KnowledgeService/Search", data={"query": "webhook signature", "topK": 2})

    passages = json.loads(reply.stdout)["passages"]
    assert len(passages) == 2
    assert passages[0]["uri"] == "technical/webhooks.md"


def test_an_invalid_request_names_the_fields(pair: Pair) -> None:
    reply = grpcurl(pair, "-format-error", "answerdesk.v1.AgentService/Chat", data={"message": " "})

    assert reply.returncode != 0
    error = json.loads(reply.stderr)
    assert error["code"] == 3
    details = {detail["@type"].rpartition("/")[2]: detail for detail in error["details"]}
    assert details["google.rpc.ErrorInfo"]["reason"] == "INVALID_REQUEST"
    assert details["google.rpc.BadRequest"]["field_violations"][0]["field"] == "message"
