"""Many people at once, and many that wait."""

import asyncio
import io
import json
import re
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from pydantic import SecretStr

from tests.integration.edge.conftest import Edge, running_edge
from tests.integration.edge.store.steps import rows
from tests.support.scripted_agent import Context, ScriptedAgent, answer, events

# The edge, its agent and all its clients share this process; traced, they would take three times as long.
pytestmark = [pytest.mark.no_cover, pytest.mark.alone]

GUESTS = 200
STREAMS = 1_000
AT_ONCE = 100
FILES_NEEDED = 4 * STREAMS


class EchoingAgent(ScriptedAgent):
    """Answers every question with itself.

    Attributes:
        held: by question, what an answer waits for before its last step; None: no answer waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, asyncio.Event] | None = None

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:  # noqa: N802
        """See the class."""
        steps = events(*answer(f"echo of {request.message}"), turn_id=request.request_id)
        for step in steps[:-1]:
            yield step
        if self.held is not None:
            await self.held.setdefault(request.message, asyncio.Event()).wait()
        yield steps[-1]


@asynccontextmanager
async def edge_beside(url: str) -> AsyncIterator[tuple[Edge, EchoingAgent]]:
    agent = EchoingAgent()
    await agent.start()
    try:
        async with running_edge(agent.target, database_url=SecretStr(url)) as edge:
            yield edge, agent
    finally:
        await agent.stop()


@asynccontextmanager
async def many_clients(port: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of a hundred connections together: one pool of that size is slow."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
            )
            for _ in range(10)
        ]


async def two_messages(client: httpx.AsyncClient, number: int) -> tuple[str, list[dict[str, Any]]]:
    """A guest's whole visit: the session, and its messages as the edge shows them."""
    token = (await client.post("/api/auth/guest")).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    first = await client.post("/api/chat", json={"message": f"one of {number}"}, headers=headers)
    assert first.status_code == 200, first.text
    session: str = first.json()["session_id"]
    second = await client.post(f"/api/chat/{session}", json={"message": f"two of {number}"}, headers=headers)
    assert second.status_code == 200, second.text
    shown = await client.get(f"/api/session/{session}/messages", headers=headers)
    return session, shown.json()["messages"]


async def test_two_hundred_guests_at_once_each_get_their_own_answers(url: str, log_text: io.StringIO) -> None:
    async with edge_beside(url) as (edge, _), many_clients(edge.port) as clients:
        visits = await asyncio.gather(*(two_messages(clients[n % len(clients)], n) for n in range(GUESTS)))
        stored = await rows(edge.database, "messages")
        turns = {row["status"] for row in await rows(edge.database, "turns")}

    for number, (session, shown) in enumerate(visits):
        expected = [f"{kind}{word} of {number}" for word in ("one", "two") for kind in ("", "echo of ")]
        assert [each["content"] for each in shown] == expected
        of_session = [row for row in stored if row["session_id"] == session]
        assert [row["content"] for row in sorted(of_session, key=lambda row: row["position"])] == expected
    assert len({session for session, _ in visits}) == GUESTS
    assert len(stored) == 4 * GUESTS
    assert turns == {"completed"}
    levels = {json.loads(line)["level"] for line in log_text.getvalue().splitlines()}
    assert levels == {"info"}
    assert not re.search(r"lock|timeout", log_text.getvalue(), re.IGNORECASE)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for a thousand connections, both ends of which are here."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < FILES_NEEDED:
        pytest.skip(f"this machine allows {most} open files, and {FILES_NEEDED} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, FILES_NEEDED), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_stream(port: int, authorization: str, number: int) -> Connection:
    """Ask, and read until the answer is being held. Raw: a thousand of httpx's streams take longer than the edge."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"message": f"question {number}"})
    head = (
        f"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {authorization}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write((head + body).encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await reader.readuntil(b"event: token")
    return reader, writer


async def rest_of(connection: Connection) -> bytes:
    """Read to the end, and hang up."""
    reader, writer = connection
    try:
        return await reader.read()
    finally:
        writer.close()


async def checked_out(edge: Edge) -> int:
    """Connections that are in use now; the next one to ask asks at another moment."""
    await edge.anonymous.get("/livez")
    return int(edge.database.engine.pool.checkedout())  # type: ignore[attr-defined]


# Where there is one connection for all: the other engine's pool has twenty.
@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_thousand_open_streams_hold_no_connection_to_the_database(url: str, many_files: None) -> None:
    waves = [range(first, first + AT_ONCE) for first in range(0, STREAMS, AT_ONCE)]
    async with edge_beside(url) as (edge, agent):
        agent.held = {}
        authorization = edge.http.headers["Authorization"]
        streams: list[Connection] = []
        for wave in waves:
            streams += await asyncio.gather(*(open_stream(edge.port, authorization, number) for number in wave))
        while len(agent.held) < STREAMS:
            await edge.anonymous.get("/livez")
        # What the edge does beside them, such as looking for turns that nobody follows, takes a moment now and then.
        held = min([await checked_out(edge) for _ in range(20)])
        running = [row["status"] for row in await rows(edge.database, "turns")]
        ready = await edge.anonymous.get("/readyz")

        ends: list[bytes] = []
        for wave in waves:
            for number in wave:
                agent.held[f"question {number}"].set()
            ends += await asyncio.gather(*(rest_of(streams[number]) for number in wave))
        stored = [row["content"] for row in await rows(edge.database, "messages") if row["role"] == "assistant"]

    assert held == 0
    assert running == ["running"] * STREAMS
    assert ready.status_code == 200
    assert [number for number, end in enumerate(ends) if b"event: complete" not in end] == []
    assert sorted(stored) == sorted(f"echo of question {number}" for number in range(STREAMS))
