"""The database goes away and comes back, beside an edge that stays."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from edge_api.chat.recorder import Recorder
from edge_api.db import UNIT_TIMEOUT_S, Database, database_url
from edge_api.errors import StorageUnavailableError
from edge_api.migrations import schema
from tests.integration.edge.conftest import Edge, StartEdge
from tests.integration.edge.store.keeper import KeptPostgres, kept_postgres
from tests.integration.edge.store.steps import database_at, migrate, rows
from tests.integration.edge.streams import streaming
from tests.support.postgres_server import PostgresServer
from tests.support.scripted_agent import ScriptedAgent, answer, events, started, token

needs_postgres = pytest.mark.needs("postgres")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KeptPostgres]:
    with kept_postgres(tmp_path) as server:
        yield server


@pytest.fixture
async def away_edge(server: KeptPostgres, start_edge: StartEdge) -> AsyncIterator[Edge]:
    """An edge whose database is `server`'s."""
    await migrate(server.url())
    async with start_edge(database_url=SecretStr(server.url())) as edge:
        yield edge


async def when_ready(edge: Edge) -> None:
    while (await edge.anonymous.get("/readyz")).status_code != 200:
        pass


def assert_storage_is_away(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
    assert response.json()["retryable"] is True
    assert int(response.headers["retry-after"]) >= 1


@needs_postgres
async def test_without_a_database_a_message_is_503_and_with_it_back_all_is_well(
    away_edge: Edge, server: KeptPostgres, agent: ScriptedAgent
) -> None:
    http = away_edge.http
    session = (await http.post("/api/chat", json={"message": "one"})).json()["session_id"]
    await asyncio.to_thread(server.stop)
    began_s = time.monotonic()

    away = [
        await http.post("/api/chat", json={"message": "lost"}),
        await http.post(f"/api/chat/{session}", json={"message": "lost"}, headers={"Accept": "text/event-stream"}),
        await http.get(f"/api/session/{session}/messages"),
        await away_edge.anonymous.post("/api/auth/guest"),
    ]

    assert time.monotonic() - began_s < 4 * 12
    for response in away:
        assert_storage_is_away(response)
    assert (await http.get("/readyz")).json()["checks"]["database"] == "unreachable"
    assert len(agent.calls) == 1
    await asyncio.to_thread(server.start)
    assert (await http.post(f"/api/chat/{session}", json={"message": "two"})).status_code == 200
    shown = (await http.get(f"/api/session/{session}/messages")).json()["messages"]
    assert [each["content"] for each in shown][::2] == ["one", "two"]


@pytest.mark.alone
@needs_postgres
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux only")
async def test_a_database_that_hangs_is_503_within_the_time_limit(away_edge: Edge, server: KeptPostgres) -> None:
    http = away_edge.http
    assert (await http.post("/api/chat", json={"message": "one"})).status_code == 200
    stopped = server.processes()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        ready = await http.get("/readyz")
        ready_s = time.monotonic() - began_s
        away = await asyncio.gather(*(http.post("/api/chat", json={"message": "lost"}) for _ in range(30)))
        took_s = time.monotonic() - began_s - ready_s
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    assert (ready.status_code, ready.json()["checks"]["database"]) == (503, "timeout")
    assert ready_s < 3
    for response in away:
        assert_storage_is_away(response)
    assert took_s < UNIT_TIMEOUT_S + 2, took_s
    await when_ready(away_edge)
    assert (await http.post("/api/chat", json={"message": "two"})).status_code == 200


@needs_postgres
@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_that_ends_while_the_database_is_away_is_stored_when_it_returns(
    away_edge: Edge, server: KeptPostgres, agent: ScriptedAgent, streamed: bool
) -> None:
    edge, go_on = away_edge, asyncio.Event()
    recorder: Recorder = edge.app.state.recorder
    recorder._patience_s = 0.5

    async def wait(_context: object) -> None:
        await go_on.wait()

    agent.turns.append([started(), token("an answer"), wait, *events(answer("an answer")[-1])])
    headers = {"Accept": "text/event-stream" if streamed else "application/json"}
    asked = asyncio.create_task(edge.http.post("/api/chat", json={"message": "hello"}, headers=headers))
    await agent.called.wait()
    # Named after the first step: the unit of work before the answer is over.
    while not [row for row in await rows(edge.database, "turns") if row["agent_turn_id"]]:
        pass
    await asyncio.to_thread(server.stop)
    go_on.set()
    told = await asked

    if streamed:
        assert told.status_code == 200
        assert "event: complete" not in told.text
        assert '"code":"storage_unavailable"' in told.text
    else:
        assert_storage_is_away(told)
    assert len(recorder._writing) == 1
    await asyncio.to_thread(server.start)
    await asyncio.gather(*recorder._writing)
    (session,) = (await edge.http.get("/api/sessions")).json()["sessions"]
    shown = (await edge.http.get(f"/api/session/{session['session_id']}/messages")).json()["messages"]
    assert [(each["content"], each["status"]) for each in shown] == [("hello", "completed"), ("an answer", "completed")]
    assert (session["running_turn_id"], session["turns"]) == (None, 1)


@needs_postgres
async def test_an_edge_that_starts_before_its_database_is_ready_when_that_is_there(
    server: KeptPostgres, start_edge: StartEdge
) -> None:
    await migrate(server.url())
    await asyncio.to_thread(server.stop)
    async with start_edge(database_url=SecretStr(server.url()), guests="off") as edge:
        away = await edge.anonymous.get("/readyz")
        await asyncio.to_thread(server.start)
        await when_ready(edge)

    assert (away.status_code, away.json()["checks"]["database"]) == (503, "unreachable")


async def test_a_unit_of_work_that_hangs_is_ended_by_its_time_limit_and_leaves_nothing(url: str) -> None:
    database = database_at(url, timeout_s=0.2)

    async def hang() -> None:
        async with database.unit_of_work() as unit:
            await unit.execute(text("UPDATE alembic_version SET version_num = 'x'"))
            await asyncio.Event().wait()

    for _ in range(25):  # more often than there are connections
        with pytest.raises(StorageUnavailableError):
            await hang()

    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert await schema.state(database) == "ok"
    await database.close()


@pytest.mark.alone
@needs_postgres
async def test_a_statement_that_hangs_is_ended_by_its_time_limit(postgres: PostgresServer) -> None:
    database = Database(database_url(postgres.url(), Path("unused")), timeout_s=0.2)
    began_s = time.monotonic()
    for _ in range(3):
        with pytest.raises(StorageUnavailableError):
            async with database.unit_of_work() as unit:
                await unit.execute(text("SELECT pg_sleep(60)"))

    assert time.monotonic() - began_s < 5
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with database.unit_of_work() as unit:
        assert (await unit.execute(text("SELECT 1"))).scalar_one() == 1
    await database.close()


async def test_waiting_for_a_connection_is_part_of_the_time_limit(url: str) -> None:
    database = database_at(url, timeout_s=0.3)
    size = database.engine.pool.size()  # type: ignore[attr-defined]
    held = [await database.engine.connect() for _ in range(size)]

    with pytest.raises(StorageUnavailableError):
        await rows(database, "users")
    for connection in held:
        await connection.close()
    assert await rows(database, "users") == []
    await database.close()


@needs_postgres
async def test_a_stream_that_was_open_before_goes_on_without_a_database(
    away_edge: Edge, server: KeptPostgres, agent: ScriptedAgent
) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def wait(_context: object) -> None:
        await first.wait()

    async def wait_more(_context: object) -> None:
        await second.wait()

    agent.turns.append([started(), wait, token("tokens arrive"), wait_more, *events(answer("tokens arrive")[-1])])
    async with streaming(away_edge.http) as stream:
        await stream.until("event: start")
        await asyncio.to_thread(server.stop)
        first.set()
        assert "tokens arrive" in await stream.until("tokens arrive")
        await asyncio.to_thread(server.start)
        second.set()
        assert (await stream.rest())[-1].type == "complete"
