"""The systems under load, each as it would be run: the pair of services, and the peer."""

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import Target
from tests.bench.sampler import pinned
from tests.support.processes import Pair, Process, free_port, is_ready_within
from tests.support.tokens import key_pair

PEOPLE = 20
"""How many guests ask; streams take them in turns."""

MODEL_KEY = "sk-scripted"
JWT_SECRET = "x7Kq2vN9sT4bW8mJ3pR6yD1fH5gL0zCa"


@dataclass(frozen=True, slots=True)
class Upstream:
    """The running upstream."""

    port: int
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """What makes a client of OpenAI ask it."""
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{self.port}/v1", "OPENAI_API_KEY": MODEL_KEY}

    def counts(self) -> dict[str, float]:
        """What it has done since it was last asked; see `upstream.Counts`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/counts")
            counts: dict[str, float] = json.load(connection.getresponse())
            return counts
        finally:
            connection.close()


class StartError(RuntimeError):
    """A process did not come up; says what it has printed."""


@contextlib.contextmanager
def running_upstream(folder: Path, core: int) -> Iterator[Upstream]:
    """The scripted upstream."""
    port = free_port()
    process = Process(["-m", "tests.bench.upstream", str(port)], {}, folder / "upstream.log")
    with _running(process, core):
        upstream = Upstream(port, process.popen.pid)
        _wait(process, lambda: bool(upstream.counts()))
        yield upstream


@contextlib.contextmanager
def running_peer(folder: Path, core: int, upstream: Upstream) -> Iterator[Target]:
    """The hand-written peer under uvicorn, without its access log."""
    port = free_port()
    command = ["-m", "uvicorn", "tests.bench.peer:app", "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log"]
    process = Process(command, upstream.environment, folder / "peer.log")
    with _running(process, core):
        _wait(process, lambda: _listens(port))
        yield Target("peer", ("127.0.0.1", port), "/chat", [{}], {}, b"[DONE]", {"peer": process.popen.pid})


@contextlib.contextmanager
def running_pair(folder: Path, core: int, upstream: Upstream) -> Iterator[Target]:
    """The pair in its production shape: guests with tokens, sessions in SQLite, callers vouched for, sample documents.

    Only the limits of rates are off.
    """
    private, public = key_pair()
    pair = Pair(
        folder,
        {
            "AGENT_MODEL_PROVIDER": "openai",
            **upstream.environment,
            "AGENT_VERIFY_KEY": public,
            "EDGE_AGENT_SIGNING_KEY": private,
            "EDGE_ENV": "production",
            "EDGE_JWT_SECRET": JWT_SECRET,
            "EDGE_RATE_LIMIT": "off",
        },
    )
    with _running(pair.agent, core), _running(pair.edge, core):
        pair.wait_ready()
        yield Target(
            "pair",
            ("127.0.0.1", pair.edge_port),
            "/api/chat",
            [pair.guest() for _ in range(PEOPLE)],
            {"agent": "technical"},
            b'"status":"completed"',
            {"agent": pair.agent.popen.pid, "edge": pair.edge.popen.pid},
        )


@contextlib.contextmanager
def _running(process: Process, core: int) -> Iterator[None]:
    try:
        with pinned(core):
            process.start()
        yield
    finally:
        process.stop()


def _wait(process: Process, ready: Callable[[], bool]) -> None:
    if not is_ready_within(ready):
        raise StartError(process.output()[-4000:])


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/openapi.json")
        return connection.getresponse().status == 200
    finally:
        connection.close()
