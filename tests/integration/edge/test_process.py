"""The process: start-up errors a person can act on, and an end in bounded time."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_api.__main__ import UNREAD_TIMEOUT_MS, listen, main
from edge_api.errors import StartupError
from tests.integration.edge.streams import streaming
from tests.support.folders import quick_folder
from tests.support.scripted_agent import ScriptedAgent, started, token

ROOT = Path(__file__).parents[3]


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("EDGE_", "AGENT_"))}
    return kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos/gen'}"} | settings


@dataclass
class Process:
    """A running edge in a process of its own."""

    port: int
    child: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the exit code; its log is in `lines`."""
        self.child.send_signal(number)
        _, errors = await asyncio.wait_for(self.child.communicate(), 20)
        self.lines += [json.loads(line) for line in errors.splitlines()]
        assert self.child.returncode is not None
        return self.child.returncode


@asynccontextmanager
async def edge_process(**settings: str) -> AsyncIterator[Process]:
    with quick_folder() as folder:
        async with edge_process_in(folder, **settings) as process:
            yield process


@asynccontextmanager
async def edge_process_in(folder: Path, **settings: str) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge_api", "serve"),
        env=environment(**({"EDGE_PORT": "0", "EDGE_DATA_DIR": str(folder)} | settings)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr
    seen: list[dict[str, Any]] = []
    try:
        while "url" not in (line := json.loads(await asyncio.wait_for(child.stderr.readline(), 30))):
            seen.append(line)
        yield Process(int(line["url"][0].rpartition(":")[2]), child, seen)
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()


async def guest(http: httpx.AsyncClient) -> dict[str, str]:
    token = (await http.post("/api/auth/guest")).json()["access_token"]
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_and_cuts_open_streams_without_an_end(
    agent: ScriptedAgent, number: signal.Signals
) -> None:
    async def forever(_context: object) -> None:
        await asyncio.Event().wait()

    agent.turns.append([started(), token("half"), forever])
    async with (
        edge_process(EDGE_AGENT_TARGET=agent.target, EDGE_SHUTDOWN_GRACE_S="0.2") as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port}", timeout=20, trust_env=False) as http,
        streaming(http, message="planted question", headers=await guest(http)) as stream,
    ):
        await stream.until("half")
        ended = asyncio.create_task(process.end(number))
        found = await stream.rest()
        code = await ended

    # The answer goes on, and can be resumed.
    assert [event.type for event in found] == ["start", "token"]
    assert code == 0
    await agent.calls[0].ended.wait()
    requests = [line for line in process.lines if line["logger"] == "edge_api.requests"]
    assert [(line["route"], line["status"]) for line in requests] == [("/api/auth/guest", 201), ("/chat", 200)]
    assert "planted" not in str(process.lines)
    assert {line["logger"] for line in process.lines} <= {
        "edge_api.requests",
        "edge_api.__main__",
        "edge_api.wiring",
        "uvicorn.error",
    }


async def test_it_serves_without_the_word_serve_and_ends_when_idle(agent: ScriptedAgent) -> None:
    async with edge_process(EDGE_AGENT_TARGET=agent.target) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port}", trust_env=False) as http:
            assert (await http.get("/readyz")).status_code == 200
        assert await process.end(signal.SIGTERM) == 0


async def run_to_the_end(*arguments: str, **settings: str) -> tuple[int | None, str]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge_api", *arguments),
        env=environment(**settings),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(child.communicate(), 30)
    return child.returncode, errors.decode()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"EDGE_PORT": "eighty"}, "EDGE_PORT: "),
        ({"EDGE_PROT": "1"}, "did you mean EDGE_PORT?"),
        ({"EDGE_CORS_ORIGINS": "*"}, "EDGE_CORS_ORIGINS: * is refused"),
    ],
)
async def test_a_wrong_setting_ends_it_with_one_clear_line(settings: dict[str, str], said: str) -> None:
    code, errors = await run_to_the_end(**settings)

    assert code == 2
    assert said in errors
    assert len(errors.splitlines()) == 1


async def test_a_taken_port_ends_it_with_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, errors = await run_to_the_end("serve", EDGE_PORT=str(port))

    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in errors
    assert "EDGE_PORT" in errors
    assert len(errors.splitlines()) == 1


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on 203\.0\.113\.1:0: .*EDGE_HOST"):
        listen("203.0.113.1", 0)


def test_a_wrong_setting_is_an_exit_code_of_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_PORT", "x")

    assert main(["serve"]) == 2
    assert capsys.readouterr().err.startswith("edge_api: EDGE_PORT: ")


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dance"])

    assert ended.value.code == 2
    assert "dance" in capsys.readouterr().err


def test_every_address_of_a_host_is_listened_on() -> None:
    sockets = listen("localhost", 0)
    try:
        assert {sock.getsockname()[0] for sock in sockets} <= {"127.0.0.1", "::1"}
    finally:
        for sock in sockets:
            sock.close()


def test_where_one_address_is_taken_none_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(StartupError):
        listen("localhost", holder.getsockname()[1])


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_reader_that_takes_nothing_is_dropped_by_the_system_in_the_end() -> None:
    (listener,) = listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNREAD_TIMEOUT_MS
