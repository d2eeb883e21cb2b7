"""Two edges and two agents over one PostgreSQL, one Redis and one scripted model: what the fault suite breaks.

Each agent has an embedded store of its own, with the same few documents.
"""

import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.cluster_model import KEY, Script, ScriptedModel
from tests.support.postgres_server import PostgresServer, postgres_server
from tests.support.processes import ROOT, Process, clean_environment, free_port
from tests.support.redis_server import RedisServer, redis_server
from tests.support.tokens import key_pair

READY_S = 60.0
DATABASE = "cluster"
GRACE_S = 5
"""How long a turn of this cluster runs on without a follower."""

LEASE_S = 10
"""After what silence an edge counts as dead. As in DESIGN.md, Recovery."""

DOCUMENTS: Mapping[str, str] = {
    "billing/plans.md": "# Plans\n\nThe Enterprise plan costs 499 EUR a month. The Team plan costs 49 EUR a month.\n",
    "policy/privacy.md": "# Privacy\n\nWe comply with the GDPR. Data of customers is kept in the European Union.\n",
    "technical/webhooks.md": "# Webhooks\n\nEvery webhook is signed. Verify its signature before you read it.\n",
}


class Cluster:
    """Processes by number: `edges[0]`, `edges[1]`, `agents[0]`, `agents[1]`; the neighbours by name.

    Attributes:
        folder: data directories, logs and documents.
        urls: where the edges listen.
        targets: where the agents listen.
        signing_key: the private key that all edges vouch with; its public half is what the agents verify with.
    """

    def __init__(self, folder: Path, postgres: PostgresServer, redis: RedisServer, model: ScriptedModel) -> None:
        """Choose ports and settings; nothing is started yet."""
        self.folder = folder
        self.postgres = postgres
        self.redis = redis
        self.model = model
        self.targets = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.signing_key, self._verify_key = key_pair()
        self.documents = folder / "documents"
        _write(self.documents)
        load = ["-m", "agent_service", "serve", "--load", str(self.documents)]
        self.agents = [Process(load, self._agent(n), folder / f"agent{n}.log") for n in range(2)]
        serve = ["-m", "edge_api", "serve"]
        self.edges = [Process(serve, self._edge(n), folder / f"edge{n}.log") for n in range(2)]
        self._edge_settings: dict[str, str] = {}

    @property
    def processes(self) -> dict[str, Process]:
        """Ours by name."""
        named = {"agent": self.agents, "edge": self.edges}
        return {f"{name}{n}": process for name, each in named.items() for n, process in enumerate(each)}

    def start(self) -> None:
        """Migrate the database, start all, wait until they can be used."""
        self.postgres.create(DATABASE)
        migrate = [sys.executable, "-m", "edge_api", "migrate"]
        environment = clean_environment() | self._edge(0)
        done = subprocess.run(
            migrate, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for process in self.processes.values():
            process.start()
        self.wait_ready()

    def stop(self) -> None:
        """End all of ours at once, whatever state they are in."""
        for process in self.processes.values():
            if is_running(process):
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()

    def kill(self, process: Process) -> float:
        """SIGKILL. Returns when, in `time.monotonic()`."""
        killed_s = time.monotonic()
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        return killed_s

    def use(self, **settings: str) -> None:
        """Start both edges anew with these settings beside the usual ones."""
        for edge in self.edges:
            edge.stop()
        for number, edge in enumerate(self.edges):
            edge.environment = self._edge(number) | settings
            edge.start()
        self._edge_settings = settings
        self.wait_ready()

    def heal(self) -> None:
        """Make whole what a test has broken: all run, with their usual settings, and are ready."""
        for server in (self.redis, self.postgres):
            if server._popen is None:
                server.start()
        away = [process for process in self.processes.values() if not is_running(process)]
        for process in self.processes.values():
            if process in away:
                process.start()
            else:
                process.signal(signal.SIGCONT)
        if self._edge_settings:
            self.use()
        else:
            self.wait_ready()
        if any(agent in away for agent in self.agents):
            self.wait_until_shared()

    def wait_until_shared(self, timeout_s: float = 10) -> None:
        """Wait until each edge gives turns to both agents: one that comes back is found within two seconds."""
        headers, end_s = self.guest(), time.monotonic() + timeout_s
        for url in self.urls:
            asked: set[int] = set()
            while len(asked) < len(self.agents):
                assert time.monotonic() < end_s, f"{url} asks only the agents {asked}"
                script = Script.of(1, 0)
                body = {"message": script.question, "agent": "billing"}
                reply = httpx.post(f"{url}/api/chat", json=body, headers=headers, timeout=10, trust_env=False)
                assert reply.status_code == 200, reply.text
                asked.add(self.model.call(script).agent)

    def wait_ready(self, *names: str, timeout_s: float = READY_S) -> None:
        """Wait until these can be used; without names, all."""
        end_s = time.monotonic() + timeout_s
        for name in names or self.processes:
            process = self.processes[name]
            while not self._is_ready(name):
                assert process.exit_code is None, f"{name} ended:\n{process.output()[-4000:]}"
                assert time.monotonic() < end_s, f"{name} is not ready:\n{process.output()[-4000:]}"
                time.sleep(0.05)

    def guest(self, edge: int = 0) -> dict[str, str]:
        """The headers of a new guest, whom both edges know."""
        response = httpx.post(f"{self.urls[edge]}/api/auth/guest", timeout=10, trust_env=False)
        assert response.status_code == 201, response.text
        return {"Authorization": f"Bearer {response.json()['access_token']}"}

    @contextlib.asynccontextmanager
    async def person(self, *, read_s: float = 20.0) -> AsyncIterator[httpx.AsyncClient]:
        """A new guest's client, without an address: every request names its edge. `read_s`: longest silence."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        timeout = httpx.Timeout(10, read=read_s)
        async with httpx.AsyncClient(headers=self.guest(), limits=limits, timeout=timeout, trust_env=False) as http:
            yield http

    def complaints(self, lines: int = 15) -> str:
        """The last warnings and errors of each process, for a test that failed."""
        return "\n".join(f"--- {name}: {_state(each)}\n{_tail(each, lines)}" for name, each in self.processes.items())

    def _is_ready(self, name: str) -> bool:
        number = int(name[-1])
        if name.startswith("agent"):
            return is_serving(self.targets[number])
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.urls[number]}/readyz", timeout=3, trust_env=False).status_code == 200
        return False

    def _agent(self, number: int) -> dict[str, str]:
        return {
            "AGENT_LISTEN": self.targets[number],
            "AGENT_DATA_DIR": str(self.folder / f"agent{number}"),
            "AGENT_DRAIN_S": "15",
            "AGENT_REDIS_URL": self.redis.url,
            "AGENT_VERIFY_KEY": self._verify_key,
            "AGENT_MODEL_PROVIDER": "openai",
            "AGENT_OPENAI_API": "responses",
            "OPENAI_API_KEY": f"{KEY}{number}",
            "OPENAI_BASE_URL": self.model.base_url,
        }

    def _edge(self, number: int) -> dict[str, str]:
        return {
            "EDGE_PORT": self.urls[number].rpartition(":")[2],
            "EDGE_DATA_DIR": str(self.folder / f"edge{number}"),
            "EDGE_AGENT_TARGET": f"ipv4:{','.join(self.targets)}",
            "EDGE_AGENT_SIGNING_KEY": self.signing_key,
            "EDGE_DATABASE_URL": self.postgres.url(DATABASE),
            "EDGE_REDIS_URL": self.redis.url,
            "EDGE_JWT_SECRET": "x7Kq2vN9sT4bW8mJ3pR6yD1fH5gL0zCa",
            "EDGE_RATE_LIMIT": "off",
            "EDGE_DISCONNECT_GRACE_S": str(GRACE_S),
        }


def is_running(process: Process) -> bool:
    """Whether it was started and has not ended."""
    return process._popen is not None and process.exit_code is None


def is_serving(target: str) -> bool:
    """Whether the agent there says so of itself."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        # Its stubs describe no methods.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _state(process: Process) -> str:
    return f"exit code {process.exit_code}" if process._popen is not None else "not started"


def _tail(process: Process, lines: int) -> str:
    printed = process.output().splitlines() if process.log.exists() else []
    return "\n".join([line[:600] for line in printed if '"level": "info"' not in line][-lines:])


def memory_mib(process: Process) -> float:
    """What the process holds in memory now."""
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(process.popen.pid)], capture_output=True, text=True, timeout=10, check=True
    )
    return int(shown.stdout) / 1024


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster, ready; ended when the block is left. Its PostgreSQL and Redis are its own: tests stop them."""
    model = ScriptedModel()
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(postgres_server(folder))
        redis = stack.enter_context(redis_server(folder))
        model.start()
        stack.callback(model.stop)
        cluster = Cluster(folder, postgres, redis, model)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def _write(folder: Path) -> None:
    for name, text in DOCUMENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share (0 to 1) of them does not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
