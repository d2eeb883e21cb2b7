"""The agent service goes away and comes back, beside an edge that stays."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.integration.edge.conftest import running_edge
from tests.integration.edge.streams import events_of
from tests.support.scripted_agent import ScriptedAgent, scripted_agent, started, token


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


async def test_an_agent_that_dies_mid_answer_leaves_a_retryable_error_and_a_session_that_goes_on(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    session = (await http.post("/api/chat", json={"message": "one"})).json()["session_id"]

    async def die(_context: object) -> None:
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
