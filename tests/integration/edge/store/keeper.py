"""A PostgreSQL that may be stopped and started beside a running edge, kept by a process of its own.

A server of another user is started with `fork`, and a child forked beside gRPC's threads may crash before it begins.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.postgres_server import SUPERUSER, postgres_server
from tests.support.processes import ROOT, clean_environment

END_S = 60.0


@dataclass
class KeptPostgres:
    """The server as a test uses it. `stop` and `start` return when it is done."""

    keeper: "subprocess.Popen[str]"
    port: int = 0
    pid: int = 0

    def url(self) -> str:
        """A database's address."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, on the same port as before."""
        self._do("start")

    def stop(self) -> None:
        """Stop it; what it holds is kept."""
        self._do("stop")

    def processes(self) -> list[int]:
        """The server's process and its children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return [self.pid, *map(int, children.split())]

    def wait_done(self) -> None:
        """Until the keeper has done what it was told."""
        assert self.keeper.stdout is not None
        port, pid = self.keeper.stdout.readline().split()
        self.port, self.pid = int(port), int(pid)

    def _do(self, word: str) -> None:
        assert self.keeper.stdin is not None
        self.keeper.stdin.write(f"{word}\n")
        self.keeper.stdin.flush()
        self.wait_done()


@contextmanager
def kept_postgres(folder: Path) -> Iterator[KeptPostgres]:
    """A server that is ready; ended and deleted when the block is left."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        kept = KeptPostgres(keeper)
        kept.wait_done()
        yield kept
        # The end of its input tells it to end.
        keeper.communicate(timeout=END_S)


def _keep(folder: Path) -> None:
    with postgres_server(folder) as server:
        print(server.port, _pid(server._popen), flush=True)  # noqa: T201 - read by `KeptPostgres`
        for line in sys.stdin:
            {"start": server.start, "stop": server.stop}[line.strip()]()
            print(server.port, _pid(server._popen), flush=True)  # noqa: T201


def _pid(popen: "subprocess.Popen[bytes] | None") -> int:
    return 0 if popen is None else popen.pid


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
