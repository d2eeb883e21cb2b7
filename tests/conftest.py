"""What every suite shares: programs that must be there, servers that are started once, and where the project is."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import browser, postgres_server, redis_server
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


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test's command made of the log ends with the test: others look into theirs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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
