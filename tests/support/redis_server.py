"""A real Redis for tests: a process of its own on a free port that keeps nothing on disk."""

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import free_port, is_ready_within

START_S = 15.0
END_S = 10.0


def binary() -> Path | None:
    """The installed server; None without one."""
    found = shutil.which("redis-server")
    return None if found is None else Path(found)


@dataclass
class RedisServer:
    """One server, always on the same port; what it held is gone when it is started again."""

    folder: Path
    port: int = field(default_factory=free_port)
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = binary()
        assert program is not None, "redis-server is not installed"
        log = self.folder / f"redis-{self.port}.log"
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [program, *options, "--dir", str(self.folder)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert is_ready_within(self._answers, START_S), log.read_text()

    def pause(self) -> None:
        """Let it answer nothing, its connections open: what a host that hangs looks like."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again, also what came in meanwhile."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, paused or not."""
        if self._popen is None:
            return
        self._popen.send_signal(signal.SIGCONT)
        self._popen.terminate()
        try:
            self._popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen = None

    def flush(self) -> None:
        """Forget all keys of all databases."""
        assert self.ask("FLUSHALL") == "+OK"

    def ask(self, command: str) -> str:
        """The first line that the server answers to a command, as it is on the wire."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("r", encoding="utf-8") as answer:
                return answer.readline().strip()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "not started"
        return self._popen

    def _answers(self) -> bool:
        # Another server on this port would answer too: ours has to be alive.
        return self._running().poll() is None and self.ask("PING") == "+PONG"


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A server that is ready; ended when the block is left. Its log is in the folder."""
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
