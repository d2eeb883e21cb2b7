"""Health of the pair, as load balancers and people ask for it."""

import asyncio
import socket
import time
from typing import Any

import httpx
import pytest
from grpc_health.v1 import health_pb2
from sqlalchemy import event

from edge_api.health import KEPT_S
from tests.integration.edge.conftest import Edge, StartEdge
from tests.support.scripted_agent import AGENT_SERVICE, KNOWLEDGE_SERVICE, MODEL_PART, TOOLS_PART, ScriptedAgent

PARTS = {"model": "ok", "tools": "ok"}
PARTS_AWAY = dict.fromkeys(PARTS, "unreachable")


async def test_with_everything_up_all_is_ok(http: httpx.AsyncClient) -> None:
    checks = {"edge": "ok", "database": "ok", "agent": "ok", "knowledge": "ok"}

    ready, health, live = [await http.get(path) for path in ("/readyz", "/health", "/livez")]

    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": checks})
    assert (health.status_code, live.status_code, live.json()) == (200, 200, {"status": "ok"})
    assert (health.json()["status"], health.json()["checks"]) == ("ok", {**checks, **PARTS, "limits": "ok"})
    assert health.json()["version"]
    assert health.json()["uptime_s"] > 0


@pytest.mark.parametrize(("service", "part"), [(AGENT_SERVICE, "agent"), (KNOWLEDGE_SERVICE, "knowledge")])
async def test_the_part_that_does_not_serve_is_named(
    http: httpx.AsyncClient, agent: ScriptedAgent, service: str, part: str
) -> None:
    await agent.serving(service, value=False)

    ready = await http.get("/readyz")
    health = await http.get("/health")

    assert (ready.status_code, ready.json()["status"], ready.json()["checks"][part]) == (
        503,
        "unavailable",
        "not_serving",
    )
    assert list(ready.json()["checks"].values()).count("ok") == 3
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    await agent.serving(service)
    # What was seen is kept for a moment.
    async with asyncio.timeout(10):
        while (await http.get("/readyz")).status_code != 200:
            pass


@pytest.mark.parametrize(("service", "part"), [(MODEL_PART, "model"), (TOOLS_PART, "tools")])
async def test_a_part_that_answers_can_do_without_is_told_and_sends_nobody_away(
    http: httpx.AsyncClient, agent: ScriptedAgent, service: str, part: str
) -> None:
    await agent.serving(service, value=False)

    ready, health = [await http.get(path) for path in ("/readyz", "/health")]

    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert {name for name, state in health.json()["checks"].items() if state != "ok"} == {part}
    assert health.json()["checks"][part] == "not_serving"
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert not {"model", "tools"} & ready.json()["checks"].keys()
    await agent.serving(service)
    async with asyncio.timeout(10):
        while (await http.get("/health")).json()["status"] != "ok":
            pass


async def test_of_an_agent_that_does_not_know_its_parts_nothing_is_told(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    """As an earlier version."""
    for part in (MODEL_PART, TOOLS_PART):
        agent.health._server_status.pop(part)  # type: ignore[attr-defined]

    health = (await http.get("/health")).json()

    assert health["status"] == "ok"
    assert health["checks"].keys() == {"edge", "database", "agent", "knowledge", "limits"}


async def test_a_look_asks_the_agent_four_things_at_once(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = ScriptedAgent()
    asked: list[str] = []
    all_asked = asyncio.Barrier(4)
    check = agent.health.Check

    async def together(request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        asked.append(request.service)
        await all_asked.wait()
        return await check(request, context)

    monkeypatch.setattr(agent.health, "Check", together)
    await agent.start()
    try:
        async with start_edge(target=agent.target) as edge:
            health = await edge.anonymous.get("/health")
    finally:
        await agent.stop()

    assert health.json()["status"] == "ok"
    assert sorted(asked) == sorted((AGENT_SERVICE, KNOWLEDGE_SERVICE, MODEL_PART, TOOLS_PART))


async def test_a_crowd_that_asks_how_it_is_costs_a_few_looks(edge: Edge) -> None:
    began: list[object] = []
    event.listen(edge.database.engine.sync_engine, "begin", began.append)
    asked_s = time.monotonic()

    replies = [await edge.anonymous.get(path) for path in ("/readyz", "/health") * 20]

    assert {each.status_code for each in replies} == {200}
    assert 1 <= len(began) <= 2 + (time.monotonic() - asked_s) / KEPT_S < 2 * 40


async def test_a_service_that_is_not_there_does_not_serve(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.health._server_status.pop(KNOWLEDGE_SERVICE)  # type: ignore[attr-defined]

    assert (await http.get("/readyz")).json()["checks"]["knowledge"] == "not_serving"


async def test_an_agent_that_is_away_is_unreachable_while_the_process_lives(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    await agent.stop()

    ready = await http.get("/readyz")

    assert ready.status_code == 503
    assert ready.json()["checks"] == {
        "edge": "ok",
        "database": "ok",
        "agent": "unreachable",
        "knowledge": "unreachable",
    }
    health = await http.get("/health")
    assert health.json()["checks"] == {**ready.json()["checks"], **PARTS_AWAY, "limits": "ok"}
    assert health.status_code == 200
    assert (await http.get("/livez")).status_code == 200


@pytest.mark.alone
async def test_an_agent_that_does_not_answer_is_given_two_seconds(start_edge: StartEdge) -> None:
    # Takes connections, says nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        async with start_edge(target=target) as edge:
            begun_s = time.monotonic()
            ready = await edge.http.get("/readyz")

            assert time.monotonic() - begun_s < 4
            assert ready.status_code == 503
            assert ready.json()["checks"]["agent"] in {"timeout", "unreachable"}


async def test_the_edge_starts_before_its_agent(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    await agent.stop()
    async with start_edge() as edge:
        assert (await edge.http.get("/readyz")).status_code == 503
        await agent.start()
        await _ready(edge)


async def _ready(edge: Edge) -> None:
    while (await edge.http.get("/readyz")).status_code != 200:
        pass
