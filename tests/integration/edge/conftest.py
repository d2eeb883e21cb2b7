"""The edge on a real socket, beside a scripted agent service on another."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from edge_api.__main__ import Server, listen, server_for
from edge_api.app import create_app
from edge_api.auth import passwords
from edge_api.auth.schemas import Principal
from edge_api.auth.tokens import user_id_of
from edge_api.chat.stream import DEFAULT_PACE, Pace
from edge_api.db import Database
from edge_api.settings import Settings
from edge_api.telemetry import JsonFormatter
from tests.support.folders import quick_folder
from tests.support.scripted_agent import ScriptedAgent, scripted_agent


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """Every edge makes a hash when it starts: 64 MiB and 0.2 s of a processor. tests/unit and processes have that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "TIME_COST", 1)
        patch.setattr(passwords, "MEMORY_KIB", 1_024)
        yield


class Clock:
    """The time of day, which a test may move."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def pass_s(self, seconds: float) -> None:
        """Let time pass at once."""
        self.ahead += timedelta(seconds=seconds)


SECRET = "a test's own secret: 0123456789 ABCDEFGHIJ"


def principal(user: str = "ada", **changes: Any) -> Principal:
    """An external user: one that no test has to make an account for."""
    issuer = "https://issuer.test"
    values: dict[str, Any] = {"user_id": user_id_of(issuer, user), "issuer": issuer, "subject": user}
    return Principal(**(values | changes))


@dataclass
class Edge:
    """A running edge. `http` carries the token of a guest, `anonymous` none."""

    http: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    port: int
    server: Server
    app: FastAPI
    clock: Clock
    served: asyncio.Task[None]

    @property
    def database(self) -> Database:
        """What it stores in."""
        database: Database = self.app.state.database
        return database

    async def guest(self) -> dict[str, str]:
        """The headers of a new guest."""
        response = await self.anonymous.post("/api/auth/guest")
        assert response.status_code == 201, response.text
        return {"Authorization": f"Bearer {response.json()['access_token']}"}


class StartEdge(Protocol):
    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[Edge]: ...


@asynccontextmanager
async def running_edge(
    target: str, *, pace: Pace = DEFAULT_PACE, send_buffer: int = 0, **settings: Any
) -> AsyncIterator[Edge]:
    """An edge on a port of its own, asked over a real socket."""
    with quick_folder() as folder:
        values: dict[str, Any] = {
            "agent_target": target,
            "port": 0,
            "shutdown_grace_s": 0.0,
            "data_dir": folder,
            "jwt_secret": SecretStr(SECRET),
            "rate_limit": "off",
        }
        chosen = Settings(**(values | settings))
        clock = Clock()
        app = create_app(chosen, pace=pace, clock=clock)
        server = server_for(chosen, app)
        sockets = listen(chosen.host, 0)
        port = sockets[0].getsockname()[1]
        if send_buffer:
            # Inherited by what it accepts: a reader that stops reading is felt sooner.
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        served = asyncio.create_task(server.serve(sockets))
        try:
            async with client_of(port) as http, client_of(port) as anonymous:
                edge = Edge(http, anonymous, port, server, app, clock, served)
                if chosen.guests == "on":
                    http.headers.update(await edge.guest())
                yield edge
        finally:
            server.should_exit = True
            await served


def client_of(port: int) -> httpx.AsyncClient:
    """A client without a token."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)


@pytest.fixture
async def agent() -> AsyncIterator[ScriptedAgent]:
    async with scripted_agent() as agent:
        yield agent


@pytest.fixture
def start_edge(agent: ScriptedAgent) -> StartEdge:
    """Starts an edge with other settings than the usual ones."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Edge]:
        return running_edge(**({"target": agent.target} | settings))

    return start


@pytest.fixture
async def edge(start_edge: StartEdge) -> AsyncIterator[Edge]:
    async with start_edge() as edge:
        yield edge


@pytest.fixture
def http(edge: Edge) -> httpx.AsyncClient:
    return edge.http


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """What the process writes to its log, as it writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def log_lines(log_text: io.StringIO) -> Callable[[], list[dict[str, Any]]]:
    """The same as objects."""
    return lambda: [json.loads(line) for line in log_text.getvalue().splitlines()]
