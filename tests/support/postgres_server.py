"""A real PostgreSQL for tests: a cluster of its own on a free port, made for speed and thrown away."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from tests.support.processes import free_port, is_ready_within

START_S = 30.0
END_S = 30.0
SUPERUSER = "postgres"

# The same case rules for non-ASCII letters as a production database has; macOS has no C.UTF-8.
LOCALE = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"

# A cluster takes 40 MB, a database 8 MB more; containers often have 64 MB of /dev/shm, which is too little.
MEMORY_FOLDER = Path("/dev/shm")
MEMORY_NEEDED_BYTES = 2 * 1024**3

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # TCP only: a socket's path may have 107 characters, pytest's folders have more
    "max_connections": "300",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


def binaries() -> Path | None:
    """The folder of the installed server's programs, the newest version of Debian's; None without one."""
    in_path = shutil.which("initdb")
    if in_path is not None:
        return Path(in_path).parent
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(installed, key=lambda folder: float(folder.parent.name), default=None)


def as_other_user() -> list[str]:
    """What stands before a command so that it does not run as root, which PostgreSQL refuses.

    Not `subprocess`'s own `user=`: that forks, and a child forked beside gRPC's threads may crash before it begins.
    """
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={SUPERUSER}", f"--regid={SUPERUSER}", "--clear-groups", "--"]


@dataclass
class PostgresServer:
    """One cluster, always on the same port; what it holds survives `stop` and `start`.

    Attributes:
        data: the cluster's folder.
        log: what the server prints.
    """

    data: Path
    log: Path
    port: int = field(default_factory=free_port)
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def url(self, database: str = "postgres") -> str:
        """A database's address, as the superuser; no password is asked for."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create(self, name: str, template: str | None = None) -> None:
        """Make a database: empty, or a copy of one that nobody is connected to."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        self._execute(statement)

    def drop(self, name: str) -> None:
        """Delete a database if it is there, and end who is connected to it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def initialise(self) -> None:
        """Make the cluster's files."""
        options = ["--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8", f"--locale={LOCALE}", "--no-sync"]
        made = subprocess.run(
            [*as_other_user(), _folder_of_binaries() / "initdb", *options, "--pgdata", self.data],
            cwd=self.data.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [f"--{name}={value}" for name, value in OPTIONS.items()]
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*as_other_user(), _folder_of_binaries() / "postgres", "-D", self.data, "-p", str(self.port), *options],
                cwd=self.data,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert is_ready_within(self._answers, START_S), self.log.read_text()

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, connections closed."""
        if self._popen is None:
            return
        self._popen.send_signal(signal.SIGINT)
        try:
            self._popen.wait(END_S)
        except subprocess.TimeoutExpired:
            # Its immediate shutdown: killing the postmaster alone would leave its children running.
            self._popen.send_signal(signal.SIGQUIT)
            self._popen.wait(END_S)
        self._popen = None

    def _answers(self) -> bool:
        assert self._popen is not None, "not started"
        if self._popen.poll() is not None:
            return False
        with contextlib.suppress(psycopg.OperationalError):
            self._execute(sql.SQL("SELECT 1"))
            return True
        return False

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        # Not a `with` of the connection: that would open a transaction, where no database can be made.
        with contextlib.closing(psycopg.connect(self.url(), autocommit=True, connect_timeout=5)) as connection:
            connection.execute(statement)


@contextlib.contextmanager
def postgres_server(folder: Path) -> Iterator[PostgresServer]:
    """A server that is ready; ended and deleted when the block is left. Its log stays in the folder."""
    home = Path(tempfile.mkdtemp(prefix="answerdesk-pg-", dir=_room_for_data()))
    if as_other_user():
        # Its parent can be entered by every user; pytest's own folders can not.
        shutil.chown(home, SUPERUSER, SUPERUSER)
    server = PostgresServer(home / "data", folder / "postgres.log")
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _folder_of_binaries() -> Path:
    found = binaries()
    assert found is not None, "PostgreSQL is not installed"
    return found


def _room_for_data() -> Path:
    if MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > MEMORY_NEEDED_BYTES:
        return MEMORY_FOLDER
    return Path(tempfile.gettempdir())
