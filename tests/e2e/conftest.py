"""One running pair over the sample documents, shared by the tests that do not disturb it."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from edge_api.__main__ import main
from tests.conftest import logging_kept
from tests.support.processes import ROOT, Pair, clean_environment, running_pair

PASSWORD = "a quokka eats at noon"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services, ready, documents loaded."""
    with running_pair(tmp_path_factory.mktemp("pair")) as running:
        yield running


@pytest.fixture
def http(pair: Pair) -> Iterator[httpx.Client]:
    """A new guest of the shared pair."""
    with httpx.Client(base_url=pair.url, headers=pair.guest(), timeout=30, trust_env=False) as client:
        yield client


def edge_command(pair: Pair, *arguments: str, stdin: str = "") -> str:
    """Run `python -m edge_api ...` with the settings of a pair's edge, as its operator does. Returns what it prints."""
    environment = clean_environment() | dict(pair.edge.environment)
    command = [sys.executable, "-m", "edge_api", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def edge_main(pair: Pair, *arguments: str, stdin: str = "") -> str:
    """The same as `edge_command` without a process of its own, which takes seconds to begin: for many commands."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), logging_kept():
        for name in os.environ.keys() - clean_environment().keys():
            patch.delenv(name)
        for name, value in pair.edge.environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        assert main(arguments) == 0
    return printed.getvalue().strip()


def sign_in(pair: Pair, username: str, password: str = PASSWORD) -> dict[str, str]:
    """The headers of a built-in account."""
    form = {"username": username, "password": password}
    reply = httpx.post(f"{pair.url}/api/auth/login", data=form, timeout=30, trust_env=False)
    assert reply.status_code == 200, reply.text
    return {"Authorization": f"Bearer {reply.json()['access_token']}"}
