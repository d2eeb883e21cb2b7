"""Real processes for the suites that speak to a running pair: start, wait until ready, stop, kill."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "examples" / "knowledge"
READY_S = 60.0


def _ports() -> Iterator[int]:
    """Those of this process, again and again. Below what Linux and macOS give to connections and to port 0."""
    first, count = 20_000, 12_000
    share = count // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first += share * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # Two runs on one machine begin at different places.
    return itertools.islice(itertools.cycle(range(first, first + share)), os.getpid() * 97 % share, None)


_PORTS = _ports()


def free_port() -> int:
    """A port that was free a moment ago, and that no other test of this run is given meanwhile."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def is_ready_within(ready: Callable[[], bool], timeout_s: float = READY_S) -> bool:
    """Whether a check comes true in time; a connection that is refused counts as not yet."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError, httpx.HTTPError):
            if ready():
                return True
        time.sleep(0.05)
    return False


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer the services."""
    steering = ("AGENT_", "EDGE_", "OPENAI_")
    return {key: value for key, value in os.environ.items() if not key.startswith(steering)}


@dataclass
class Process:
    """A child of this test, in a session of its own, its output kept in a file."""

    arguments: list[str]
    environment: Mapping[str, str]
    log: Path
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> Self:
        """Start it."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=ROOT,
                env=clean_environment() | dict(self.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        """The running child."""
        assert self._popen is not None, "not started"
        return self._popen

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.popen.poll()

    def output(self) -> str:
        """All it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child."""
        self.popen.send_signal(number)

    def wait(self, timeout_s: float = 30) -> int:
        """Wait for its end."""
        return self.popen.wait(timeout_s)

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._popen is None or self._popen.poll() is not None:
            return
        self._popen.terminate()
        try:
            self._popen.wait(15)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@dataclass
class Pair:
    """An agent service and an edge on free ports over one folder."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    documents: Path | None = SAMPLES

    def __post_init__(self) -> None:
        """Choose ports; nothing is started yet."""
        self.agent_target = f"127.0.0.1:{free_port()}"
        self.edge_port = free_port()
        self.url = f"http://127.0.0.1:{self.edge_port}"
        common = {
            "AGENT_LISTEN": self.agent_target,
            "AGENT_DATA_DIR": str(self.folder / "agent"),
            "AGENT_OFFLINE_DELAY_S": "0.001",
            "AGENT_DRAIN_S": "2",
            "EDGE_AGENT_TARGET": self.agent_target,
            "EDGE_PORT": str(self.edge_port),
            "EDGE_DATA_DIR": str(self.folder / "edge"),
            "EDGE_RATE_LIMIT": "off",
        }
        environment = common | dict(self.settings)
        load = ["--load", str(self.documents)] if self.documents else []
        self.agent = Process(["-m", "agent_service", "serve", *load], environment, self.folder / "agent.log")
        self.edge = Process(["-m", "edge_api", "serve"], environment, self.folder / "edge.log")

    def ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def guest(self) -> dict[str, str]:
        """The headers of a new guest."""
        response = httpx.post(f"{self.url}/api/auth/guest", timeout=10, trust_env=False)
        assert response.status_code == 201, response.text
        return {"Authorization": f"Bearer {response.json()['access_token']}"}

    def wait_ready(self, timeout_s: float = READY_S) -> float:
        """Wait until both can be used. Returns the seconds it took."""
        started = time.monotonic()
        while not self.ready():
            for process in (self.agent, self.edge):
                assert process.exit_code is None, process.output()
            assert time.monotonic() - started < timeout_s, self.agent.output() + self.edge.output()
            time.sleep(0.05)
        return time.monotonic() - started

    def stop(self) -> None:
        """End both."""
        self.edge.stop()
        self.agent.stop()


@contextlib.contextmanager
def running_pair(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Pair]:
    """A pair, ready; ended when the block is left."""
    pair = Pair(folder, settings or {})
    try:
        pair.agent.start()
        pair.edge.start()
        pair.wait_ready()
        yield pair
    finally:
        pair.stop()
