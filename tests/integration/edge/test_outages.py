"""The agent service goes away and comes back, beside an edge that stays."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.events import Completed, Question
from edge_api.agent_client.signing import DEFAULT_TENANT, Caller
from tests.integration.edge.conftest import running_edge
from tests.integration.edge.streams import events_of
from tests.support.scripted_agent import (
    AGENT_SERVICE,
    ScriptedAgent,
    answer,
    events,
    scripted_agent,
    started,
    status,
    token,
)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/api/chat", {}),
        ("POST", "/api/chat", {"Accept": "text/event-stream"}),
        ("POST", "/chat", {}),
        ("GET", "/api/agents", {}),
        ("GET", "/api/search?q=x", {}),
        ("GET", "/api/documents/x", {}),
    ],
)
async def test_without_an_agent_it_is_503_and_with_it_back_all_is_well(
    http: httpx.AsyncClient, agent: ScriptedAgent, method: str, path: str, headers: dict[str, str]
) -> None:
    body = {"message": "hello"} if method == "POST" else None
    await agent.stop()

    down = await http.request(method, path, json=body, headers=headers)

    assert (down.status_code, down.json()["code"]) == (503, "agent_unavailable")
    assert down.json()["retryable"] is True
    assert int(down.headers["retry-after"]) >= 1

    await agent.start()
    up = await _when_ready(http, method, path, body, headers)
    assert up.status_code in {200, 404}


async def _when_ready(
    http: httpx.AsyncClient, method: str, path: str, body: object, headers: dict[str, str]
) -> httpx.Response:
    """Ask readiness until it says so; its own limit of two seconds, and the test's, bound this."""
    while (await http.get("/readyz")).status_code != 200:
        pass
    return await http.request(method, path, json=body, headers=headers)


async def test_several_agents_share_the_work_and_one_that_leaves_is_not_missed(agent: ScriptedAgent) -> None:
    async with scripted_agent() as other:
        target = f"ipv4:{agent.target},{other.target}"
        async with running_edge(target) as edge:
            while not (agent.calls and other.calls):
                assert (await edge.http.post("/api/chat", json={"message": "hello"})).status_code == 200
            await other.stop()
            answers = [await edge.http.post("/api/chat", json={"message": "hello"}) for _ in range(6)]

    # The first may meet the connection as it closes.
    assert [answer.status_code for answer in answers][1:] == [200] * 5


async def test_an_agent_that_drains_gets_no_new_turns_and_serves_the_running_ones(agent: ScriptedAgent) -> None:
    go_on = asyncio.Event()

    async def wait(_context: object) -> None:
        await go_on.wait()

    async with scripted_agent() as other:
        agent.names_turns_by_request = other.names_turns_by_request = True
        steps = [started(), wait, *events(*answer("x"))[1:]]
        async with running_edge(f"ipv4:{agent.target},{other.target}") as edge:
            while not (agent.calls and other.calls):
                await edge.http.post("/api/chat", json={"message": "hello"})
            before = len(agent.calls)
            agent.turns.append(steps)
            other.turns.append(steps)
            running = [asyncio.create_task(edge.http.post("/api/chat", json={"message": "hello"})) for _ in range(2)]
            while len(agent.calls) == before:
                await edge.http.get("/livez")
            await agent.serving(AGENT_SERVICE, value=False)
            # Its health stream tells the edge, which takes a moment.
            elsewhere = 0
            while elsewhere < 4:
                taken = len(agent.calls)
                await edge.http.post("/api/chat", json={"message": "hello"})
                elsewhere = elsewhere + 1 if len(agent.calls) == taken else 0
            taken = len(agent.calls)
            replies = [await edge.http.post("/api/chat", json={"message": "hello"}) for _ in range(6)]
            go_on.set()
            ended = await asyncio.gather(*running)

    assert [reply.status_code for reply in [*replies, *ended]] == [200] * 8
    assert len(agent.calls) == taken


async def test_where_no_agent_takes_turns_it_is_503_at_once_with_the_agents_own_reason(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    await agent.serving(AGENT_SERVICE, value=False)
    agent.turns.extend([[status(grpc.StatusCode.UNAVAILABLE, "DRAINING", retry_s=3)]] * 20)

    replies = [await http.post("/api/chat", json={"message": "hello"}) for _ in range(20)]

    assert {reply.status_code for reply in replies} == {503}
    assert replies[-1].json()["code"] == "draining"
    assert (await http.get("/api/agents")).status_code == 200


async def test_a_question_goes_over_the_channel_that_has_an_agent(agent: ScriptedAgent) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with (
            grpc.aio.insecure_channel(agent.target) as channel,
            grpc.aio.insecure_channel(f"127.0.0.1:{nobody.getsockname()[1]}") as turns,
        ):
            client = AgentClient(channel, signer=None, grace_s=30, turns=turns)
            while (state := turns.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await turns.wait_for_state_change(state)

            call = client.ask(Question(request_id="r", message="hello"), Caller("ada", DEFAULT_TENANT), timeout_s=5)
            seen = [event async for event in call.events()]

    assert isinstance(seen[-1], Completed)


async def test_an_agent_that_dies_mid_answer_leaves_a_retryable_error_and_a_session_that_goes_on(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    session = (await http.post("/api/chat", json={"message": "one"})).json()["session_id"]

    async def die(_context: object) -> None:
        while agent.calls[-1].sent < 2:
            await http.get("/livez")
        dying.append(asyncio.create_task(agent.stop()))
        await asyncio.Event().wait()

    dying: list[asyncio.Task[None]] = []
    agent.turns.append([started(), token("half"), die])
    found = await events_of(http, f"/api/chat/{session}", message="two")
    await dying[0]
    assert found[-1].type == "error"
    assert (found[-1].json["status"], found[-1].json["retryable"]) == (503, True)

    await agent.start()
    after = await _when_ready(http, "POST", f"/api/chat/{session}", {"message": "three"}, {})
    assert after.status_code == 200
    history = [(each.role, each.content) for each in agent.calls[-1].request.history]
    assert [content for _, content in history][2:] == ["two", "half"]


async def test_503_can_be_read_by_a_page_with_its_retry_after(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    await agent.stop()

    response = await http.post("/chat", json={"message": "x"}, headers={"Origin": "http://localhost:3000"})

    assert response.status_code == 503
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "Retry-After" in response.headers["access-control-expose-headers"]


async def test_a_server_error_is_a_warning(
    http: httpx.AsyncClient, agent: ScriptedAgent, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    await agent.stop()
    await http.get("/api/agents")

    while not (lines := [line for line in log_lines() if line.get("route") == "/api/agents"]):
        await http.get("/livez")
    (line,) = lines
    assert (line["level"], line["status"]) == ("warning", 503)
