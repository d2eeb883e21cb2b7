"""Health of the pair, as load balancers and people ask for it."""

import asyncio
import socket
import time

import httpx
import pytest
from sqlalchemy import event

from edge_api.health import KEPT_S
from tests.integration.edge.conftest import Edge, StartEdge
from tests.support.scripted_agent import AGENT_SERVICE, KNOWLEDGE_SERVICE, ScriptedAgent


async def test_with_everything_up_all_is_ok(http: httpx.AsyncClient) -> None:
    checks = {"edge": "ok", "database": "ok", "agent": "ok", "knowledge": "ok"}

    ready, health, live = [await http.get(path) for path in ("/readyz", "/health", "/livez")]

    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": checks})
    assert (health.status_code, live.status_code, live.json()) == (200, 200, {"status": "ok"})
    assert (health.json()["status"], health.json()["checks"]) == ("ok", {**checks, "limits": "ok"})
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
    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/health")).status_code == 200


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
