"""The edge on a real socket, beside a scripted agent service on another."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from edge_api.__main__ import Server, listen, server_for
from edge_api.app import create_app
from edge_api.chat.stream import DEFAULT_PACE, Pace
from edge_api.settings import Settings
from edge_api.telemetry import JsonFormatter
from tests.support.scripted_agent import ScriptedAgent, scripted_agent


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Edge:
    """A running edge."""

    http: httpx.AsyncClient
    port: int
    server: Server
    app: FastAPI
    clock: Clock
    served: asyncio.Task[None]


class StartEdge(Protocol):
    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[Edge]: ...


@asynccontextmanager
async def running_edge(
    target: str, *, pace: Pace = DEFAULT_PACE, send_buffer: int = 0, **settings: Any
) -> AsyncIterator[Edge]:
    """An edge on a port of its own, asked over a real socket."""
    values: dict[str, Any] = {"agent_target": target, "port": 0, "shutdown_grace_s": 0.0}
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
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            yield Edge(http, port, server, app, clock, served)
    finally:
        server.should_exit = True
        await served


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
