"""Writes requirements/*.txt from pyproject.toml: every dependency with its hashes, for Python 3.11 to 3.13.

Run as `python -m tests.support.locks`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LOCKS = {
    "agent": ("--extra", "agent"),
    "edge": ("--extra", "edge"),
    "run": ("--extra", "agent", "--extra", "edge", "--group", "run"),
    "dev": ("--extra", "agent", "--extra", "edge", "--group", "dev"),
}

OPTIONS = (
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-header",
    "--quiet",
)


def lock(name: str, *options: str) -> None:
    """Resolve one set of dependencies into its file, keeping locked versions where they still fit."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *LOCKS[name], *OPTIONS, *options]
    subprocess.run([*command, "--output-file", f"requirements/{name}.txt"], cwd=ROOT, check=True)


if __name__ == "__main__":
    for target in LOCKS:
        lock(target, *sys.argv[1:])
