"""What every suite shares: programs that must be there, and where the project is."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TOOLS = {
    "buf": ROOT / "tests/support/tools/node_modules/.bin/buf",
    "grpcurl": ROOT / ".tools/bin/grpcurl",
}


def tool(name: str) -> str | None:
    """The path of a program: the project's pinned one, else the machine's."""
    pinned = TOOLS.get(name)
    return str(pinned) if pinned is not None and pinned.exists() else shutil.which(name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose program is missing on a person's machine; in CI that is an error."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if tool(name) is None:
                message = f"{name} is not installed: make tools"
                if os.environ.get("CI"):
                    pytest.fail(message)
                pytest.skip(message)
