"""The description of the API, and that the replies are as it says."""

import re
from typing import Any

import pytest
from answerdesk.v1 import agent_service_pb2, conversation_pb2, knowledge_service_pb2
from pydantic import SecretStr

from edge_api.agent_client.client import PARTS, SERVICES
from edge_api.agent_client.convert import (
    agent_from_proto,
    citation_from_proto,
    document_from_proto,
    event_from_proto,
    search_from_proto,
)
from edge_api.agent_client.events import Completed
from edge_api.agent_client.schemas import Agent, Citation, Passage, Trace, Usage
from edge_api.app import create_app
from edge_api.documents.schemas import Document, SearchReply
from edge_api.errors import TurnRunningError
from edge_api.problem import ProblemDocument, problem_of
from edge_api.settings import Settings
from tests.support.scripted_agent import ScriptedAgent, answer


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    app = create_app(Settings(jwt_secret=SecretStr("a test's own secret: 0123456789 ABCDEFGHIJ")))
    app.openapi()
    # The second time it comes from FastAPI's cache.
    return app.openapi()


def operations(described: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, operation) for path, found in described["paths"].items() for operation in found.values()]


def test_the_operations_have_tidy_names(described: dict[str, Any]) -> None:
    assert {operation["operationId"]: path for path, operation in operations(described)} == {
        "api_information": "/",
        "ask": "/api/chat",
        "ask_in_session": "/api/chat/{session_id}",
        "stream_chat": "/chat",
        "follow_turn": "/api/chat/{session_id}/stream",
        "stop_turn": "/api/chat/{session_id}/stop",
        "regenerate": "/api/chat/{session_id}/regenerate",
        "list_agents": "/api/agents",
        "list_sessions": "/api/sessions",
        "get_session": "/api/session/{session_id}",
        "get_session_short": "/sessions/{session_id}",
        "list_messages": "/api/session/{session_id}/messages",
        "rename_session": "/api/session/{session_id}",
        "reset_session": "/api/session/{session_id}/reset",
        "delete_session": "/api/session/{session_id}",
        "delete_session_short": "/sessions/{session_id}",
        "get_message": "/api/messages/{message_id}",
        "rate_message": "/api/messages/{message_id}/feedback",
        "search": "/api/search",
        "list_documents": "/api/documents",
        "get_document": "/api/documents/{document_id}",
        "upload": "/api/documents",
        "delete_document": "/api/documents/{document_id}",
        "register": "/api/auth/register",
        "login": "/api/auth/login",
        "guest": "/api/auth/guest",
        "refresh": "/api/auth/refresh",
        "logout": "/api/auth/logout",
        "me": "/api/auth/me",
        "livez": "/livez",
        "readyz": "/readyz",
        "health": "/health",
    }


def test_everything_that_is_referred_to_is_there(described: dict[str, Any]) -> None:
    referred = set(re.findall(r"#/components/schemas/(\w+)", str(described)))

    assert referred <= described["components"]["schemas"].keys()
    assert not {"HTTPValidationError", "ValidationError"} & described["components"]["schemas"].keys()


def test_every_error_is_described_as_a_problem(described: dict[str, Any]) -> None:
    for path, operation in operations(described):
        for status, response in operation["responses"].items():
            if status >= "400" and path != "/readyz":
                assert list(response["content"]) == ["application/problem+json"], (path, status)


def test_chats_are_described_as_json_and_as_streams(described: dict[str, Any]) -> None:
    paths = described["paths"]

    assert set(paths["/api/chat"]["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(paths["/chat"]["post"]["responses"]["200"]["content"]) == {"text/event-stream"}
    assert paths["/chat"]["post"]["requestBody"]["required"] is True


def test_what_is_sent_is_what_is_described() -> None:
    done = event_from_proto(answer("text")[-1])
    assert isinstance(done, Completed)

    # Each leaves out extra fields and adds its own: what comes out is what went in only where both know the same.
    assert [Citation.model_validate(each).model_dump() for each in done.citations] == done.citations
    assert Usage.model_validate(done.usage).model_dump() == done.usage
    assert Trace.model_validate(done.trace).model_dump() == done.trace
    (offered,) = [event for each in answer("x") if (event := event_from_proto(each)) and hasattr(event, "sources")]
    assert [Passage.model_validate(each).model_dump() for each in offered.sources] == offered.sources


def test_a_trace_of_before_is_shown_with_what_has_come_since() -> None:
    done = event_from_proto(answer("text")[-1])
    assert isinstance(done, Completed)
    since = {"model": "", "retries": 0, "removed_links": 0}
    before = {name: value for name, value in done.trace.items() if name not in since}

    assert Trace.model_validate(before).model_dump() == before | since


def test_a_trace_of_a_later_version_is_shown_as_far_as_it_is_known() -> None:
    done = event_from_proto(answer("text")[-1])
    assert isinstance(done, Completed)
    later = done.trace | {"new": 1, "stages": [each | {"new": 1} for each in done.trace["stages"]]}

    assert Trace.model_validate(later).model_dump() == done.trace


def test_replies_are_described_with_every_field_of_a_trace(described: dict[str, Any]) -> None:
    trace = described["components"]["schemas"]["Trace"]

    assert set(trace["required"]) == set(trace["properties"]) == set(Trace.model_fields)


def test_health_is_described_with_every_part_by_an_example(described: dict[str, Any]) -> None:
    ready, health = (described["components"]["schemas"][name] for name in ("Ready", "Health"))

    (needed,), (shown,) = (each["properties"]["checks"]["examples"] for each in (ready, health))
    assert set(needed) == {"edge", "database", *SERVICES}
    assert set(shown) == {*needed, *PARTS, "limits"}


async def test_documents_searches_and_agents_are_what_is_described() -> None:
    class Quiet:
        """A context of a call without metadata."""

        def invocation_metadata(self) -> tuple[()]:
            return ()

    agent = ScriptedAgent()
    found = search_from_proto(await agent.Search(knowledge_service_pb2.SearchRequest(), Quiet()))
    assert SearchReply.model_validate(found).model_dump() == found
    for each in (await agent.ListAgents(agent_service_pb2.ListAgentsRequest(), Quiet())).agents:
        assert Agent.model_validate(agent_from_proto(each)).model_dump() == agent_from_proto(each)


def test_a_problem_is_what_is_described() -> None:
    document = problem_of(TurnRunningError("t")).document("/")

    assert ProblemDocument.model_validate(document).model_dump(exclude_unset=True) == document


def test_unset_things_become_null_not_nothing() -> None:
    assert citation_from_proto(conversation_pb2.Citation(page=0))["page"] is None
    assert citation_from_proto(conversation_pb2.Citation(page=7))["page"] == 7
    document = document_from_proto(knowledge_service_pb2.GetDocumentResponse())
    assert document["ingested_at"] is None
    assert Document.model_validate(document).text == ""
