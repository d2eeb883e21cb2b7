"""Asking, as JSON and as a stream."""

from typing import Any

import httpx
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as pb_conversation

from tests.integration.edge.streams import events_of
from tests.support.scripted_agent import PRICE, TURN_ID, ScriptedAgent, answer, events, started, state, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM = {"Accept": "text/event-stream"}


@pytest.mark.parametrize("path", ["/chat", "/api/chat"])
async def test_a_stream_has_every_step_numbered_in_order(http: httpx.AsyncClient, path: str) -> None:
    found = await events_of(http, path)

    assert [event.type for event in found] == ["start", "agent", "sources", "tool", "token", "token", "complete"]
    assert [event.id for event in found] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [(event.json["type"], str(event.json["sequence"])) for event in found] == [(e.type, e.id) for e in found]
    start, agent, sources, tool, first, second, complete = (event.json for event in found)
    assert start["session_id"] == start["conversation_id"]
    assert start["turn_id"] == TURN_ID
    assert (agent["agent"], agent["strategy"]) == ("billing", "hybrid")
    assert sources["sources"][0]["text"] == PRICE
    assert sources["sources"][0]["span"] == {"start": 10, "end": 43}
    assert (tool["name"], tool["call_id"], tool["phase"]) == ("price_of", "c1", "started")
    assert first["content"] + second["content"] == f"{PRICE} [1]"
    assert complete["message_id"] == start["message_id"]
    assert (complete["status"], complete["outcome"]) == ("completed", "answered")
    assert complete["citations"][0]["quote"] == PRICE
    assert complete["citations"][0]["page"] is None
    assert complete["usage"]["total_tokens"] == 27
    assert complete["trace"]["agents"] == ["orchestrator", "billing"]


async def test_a_stream_says_how_it_wants_to_be_carried(http: httpx.AsyncClient) -> None:
    response = await http.post("/chat", json={"message": "hello"}, headers={"Accept-Encoding": "gzip, br"})

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert "content-length" not in response.headers


async def test_a_json_reply_holds_the_whole_answer(http: httpx.AsyncClient) -> None:
    reply = (await http.post("/api/chat", json={"message": "hello"})).json()

    keys = "session_id conversation_id turn_id message_id status outcome answer agent strategy citations usage trace"
    assert list(reply) == keys.split()
    assert reply["session_id"] == reply["conversation_id"]
    assert reply["turn_id"] == TURN_ID
    assert reply["answer"] == f"{PRICE} [1]"
    assert (reply["agent"], reply["strategy"]) == ("billing", "hybrid")


@pytest.mark.parametrize("path", ["/api/chat", "/api/chat/{}"])
@pytest.mark.parametrize(("accept", "kind"), [("*/*", "application/json"), ("text/event-stream", "text/event-stream")])
async def test_accept_chooses_between_json_and_a_stream(
    http: httpx.AsyncClient, path: str, accept: str, kind: str
) -> None:
    session = (await http.post("/api/chat", json={"message": "hello"})).json()["session_id"]

    response = await http.post(path.format(session), json={"message": "hello"}, headers={"Accept": accept})

    assert response.headers["content-type"].split(";")[0] == kind


async def test_the_short_path_streams_whatever_accept_says(http: httpx.AsyncClient) -> None:
    response = await http.post("/chat", json={"message": "hello"}, headers={"Accept": "application/json"})

    assert response.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("way", ["path", "session_id", "conversation_id", "short", "stream"])
async def test_a_follow_up_brings_the_history_and_the_state(
    http: httpx.AsyncClient, agent: ScriptedAgent, way: str
) -> None:
    first = (await http.post("/api/chat", json={"message": "What does it cost?"})).json()
    session = first["session_id"]

    posts: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
        "path": (f"/api/chat/{session}", {}, {}),
        "stream": (f"/api/chat/{session}", {}, STREAM),
        "session_id": ("/api/chat", {"session_id": session}, {}),
        "conversation_id": ("/api/chat", {"conversation_id": session}, {}),
        "short": ("/chat", {"session_id": session, "conversation_id": session}, {}),
    }
    path, body, headers = posts[way]
    response = await http.post(path, json={"message": "And monthly?", **body}, headers=headers)

    assert response.status_code == 200
    assert session in response.text
    request = agent.calls[1].request
    assert request.message == "And monthly?"
    assert [(each.role, each.content, each.agent) for each in request.history] == [
        (pb_conversation.ROLE_USER, "What does it cost?", ""),
        (pb_conversation.ROLE_ASSISTANT, f"{PRICE} [1]", "billing"),
    ]
    assert request.state == state()
    assert (request.on_disconnect, request.grace.seconds) == (pb.ON_DISCONNECT_DETACH, 30)
    assert request.request_id != agent.calls[0].request.request_id


async def test_a_new_session_brings_nothing_from_another(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    await http.post("/api/chat", json={"message": "one"})
    await http.post("/api/chat", json={"message": "two"})

    assert not agent.calls[1].request.history
    assert not agent.calls[1].request.HasField("state")


async def test_an_agent_can_be_asked_directly_and_metadata_stays_here(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    body = {"message": "hello", "agent": "billing", "metadata": {"page": "/pricing"}}

    response = await http.post("/api/chat", json=body)

    assert response.status_code == 200
    assert agent.calls[0].request.agent == "billing"
    assert "pricing" not in str(agent.calls[0].request)


async def test_steps_of_a_newer_agent_are_skipped(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    script = answer("text")
    script.insert(1, pb.ChatResponse(turn_id=TURN_ID, sequence=99))
    agent.turns.append(script)

    found = await events_of(http)

    assert "99" not in [event.id for event in found]
    assert found[-1].type == "complete"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"outcome": pb_conversation.OUTCOME_NO_EVIDENCE}, ("completed", "no_evidence")),
        ({"status": pb_conversation.TURN_STATUS_STOPPED, "outcome": 0}, ("stopped", None)),
        ({"status": pb_conversation.TURN_STATUS_INTERRUPTED, "outcome": 0}, ("interrupted", None)),
        ({"status": 77, "outcome": 77, "strategy": 77}, ("completed", None)),
    ],
)
async def test_every_end_of_a_turn_is_told(
    http: httpx.AsyncClient, agent: ScriptedAgent, changes: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    agent.turns.append(answer("text", **changes))

    reply = (await http.post("/api/chat", json={"message": "hello"})).json()

    assert (reply["status"], reply["outcome"]) == expected


async def test_text_arrives_as_it_was_sent(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    text = 'line\r\nend "quoted"\u2028\u0000 🙂 data: x\n\nevent: y'
    agent.turns.append(answer(text))

    found = await events_of(http)

    assert [event.json["content"] for event in found if event.type == "token"] == [text]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"message": ""},
        {"message": " \n\t"},
        {"message": "x" * 8_001},
        {"message": 5},
        {"message": None},
        {"message": "x", "session_id": "a", "conversation_id": "b"},
        {"message": "x", "session_id": ""},
        {"message": "x", "session_id": "s" * 129},
        {"message": "x", "agent": ""},
        {"message": "x", "agent": "a" * 65},
        {"message": "x", "metadata": []},
        {"message": "x", "metadata": {"k": "v" * 4_096}},
        {"message": "x", "metadata": {"k": 2**70}},
        {"message": "x", "mesage": "y"},
        [],
        "text",
        None,
    ],
    ids=lambda body: str(body)[:60],
)
@pytest.mark.parametrize("path", ["/chat", "/api/chat", "/api/chat/some-session"])
async def test_a_wrong_body_is_422_and_says_where(
    http: httpx.AsyncClient, agent: ScriptedAgent, path: str, body: object
) -> None:
    response = await http.post(path, json=body, headers=STREAM)

    problem = response.json()
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem["status"]) == ("invalid_request", 422)
    assert problem["errors"][0]["field"]
    assert problem["errors"][0]["detail"] in problem["detail"]
    assert agent.calls == []


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "[[Infinity]]"])
async def test_a_number_that_no_database_takes_is_422(http: httpx.AsyncClient, number: str) -> None:
    body = f'{{"message": "x", "metadata": {{"k": {number}}}}}'.encode()

    response = await http.post("/api/chat", content=body, headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "metadata")


async def test_an_unknown_field_is_named(http: httpx.AsyncClient) -> None:
    problem = (await http.post("/api/chat", json={"message": "x", "mesage": "y"})).json()

    assert problem["errors"] == [{"field": "mesage", "detail": "is not a field of this request"}]


async def test_the_longest_message_is_taken_whole(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    response = await http.post("/api/chat", json={"message": "🙂" * 8_000})

    assert response.status_code == 200
    assert agent.calls[0].request.message == "🙂" * 8_000


async def test_half_a_surrogate_pair_is_refused_not_fatal(http: httpx.AsyncClient) -> None:
    for body in (b'{"message": "\\ud800"}', b'{"message": "x", "metadata": {"k": "\\ud800"}}', b'{"\\ud800": 1}'):
        response = await http.post("/api/chat", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 422, body


@pytest.mark.parametrize("name", ["session_id", "conversation_id"])
async def test_path_and_body_must_name_the_same_session(http: httpx.AsyncClient, name: str) -> None:
    session = (await http.post("/api/chat", json={"message": "hello"})).json()["session_id"]

    same = await http.post(f"/api/chat/{session}", json={"message": "hello", name: session})
    other = await http.post(f"/api/chat/{session}", json={"message": "hello", name: "other"})

    assert same.status_code == 200
    assert (other.status_code, other.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(("path", "body"), [("/api/chat/nobody", {}), ("/api/chat", {"session_id": "nobody"})])
async def test_an_unknown_session_is_404(
    http: httpx.AsyncClient, agent: ScriptedAgent, path: str, body: dict[str, str]
) -> None:
    response = await http.post(path, json={"message": "hello", **body})

    assert (response.status_code, response.json()["code"]) == (404, "session_not_found")
    assert agent.calls == []


async def test_a_second_message_while_a_turn_runs_is_409_with_its_id(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    # Else the turn has another name for as long as it takes to store the agent's.
    agent.names_turns_by_request = True
    session = (await http.post("/api/chat", json={"message": "hello"})).json()["session_id"]
    refused: list[httpx.Response] = []

    async def ask_again(_context: object) -> None:
        refused.append(await http.post(f"/api/chat/{session}", json={"message": "impatient"}))

    agent.turns.append([started(), token("x"), ask_again, *events(answer("y")[-1])])
    # The whole turn is asked for as JSON, so the second post runs inside the first.
    reply = await http.post(f"/api/chat/{session}", json={"message": "hello"})

    problem = refused[0].json()
    running = agent.calls[-1].request.request_id
    assert (refused[0].status_code, problem["code"], problem["turn_id"]) == (409, "turn_running", running)
    assert problem["retryable"] is True
    assert reply.status_code == 200
    assert (await http.post(f"/api/chat/{session}", json={"message": "patient"})).status_code == 200


async def test_the_team_is_listed(http: httpx.AsyncClient) -> None:
    agents = (await http.get("/api/agents")).json()["agents"]

    assert [(each["name"], each["strategy"], each["entry"]) for each in agents] == [
        ("orchestrator", None, True),
        ("billing", "hybrid", False),
    ]
