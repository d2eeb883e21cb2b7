"""What every suite shares: programs that must be there, servers that are started once, and where the project is."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import certifi
import pytest
from coverage import Coverage

from tests.support import browser, postgres_server, redis_server
from tests.support.certificates import make_authority
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parent.parent

TOOLS = {
    "buf": ROOT / "tests/support/tools/node_modules/.bin/buf",
    "gitleaks": ROOT / ".tools/bin/gitleaks",
    "grpcurl": ROOT / ".tools/bin/grpcurl",
}

SERVERS: Mapping[str, Callable[[], Path | None]] = {
    "chromium": browser.binary,
    "postgres": postgres_server.binaries,
    "redis": redis_server.binary,
}


def tool(name: str) -> str | None:
    """The path of a program: the project's pinned one, else the machine's. For a server, where its programs are."""
    if name in SERVERS:
        found = SERVERS[name]()
        return None if found is None else str(found)
    pinned = TOOLS.get(name)
    return str(pinned) if pinned is not None and pinned.exists() else shutil.which(name)


def require(name: str) -> None:
    """Skip the test at hand when a program is missing on a person's machine; in CI that is an error."""
    if tool(name) is not None:
        return
    remedy = "the package manager has it" if name in SERVERS else "make tools"
    message = f"{name} is not installed: {remedy}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold tests back whose program is missing."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            require(name)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End the measuring that a worker takes over from the main process, or it would go on where `no_cover` says no."""
    if hasattr(session.config, "workerinput"):
        while (inherited := Coverage.current()) is not None:
            inherited.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test beside those of other workers, or `alone`. First of all, so that no time limit counts the wait."""
    with _room(item):
        return (yield)


@contextmanager
def _room(item: pytest.Item) -> Iterator[None]:
    """A room that every test of a run enters, and that is left to a test marked `alone`."""
    if not hasattr(item.config, "workerinput"):
        yield
        return
    shared = Path(item.config.getoption("basetemp")).parent
    with (shared / "door").open("w") as door, (shared / "room").open("w") as room:
        # Who waits until the room is empty holds the door, so that nobody enters meanwhile.
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody here asks the Internet, and reading all of its authorities takes httpx 40 ms for every client."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    path.write_bytes(make_authority().pem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(path))
        yield


@contextmanager
def logging_kept() -> Iterator[None]:
    """What a command makes of the log ends with the block: others look into theirs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test's command made of the log ends with the test."""
    with logging_kept():
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run, started when first asked for. Make a database of your own in it."""
    require("postgres")
    with postgres_server.postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the whole run, started when first asked for. Who stops or pauses one starts a private one."""
    require("redis")
    with redis_server.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server
