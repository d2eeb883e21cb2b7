"""Secrets in the repository: gitleaks over the tracked files as they are now, and over every commit.

Run as `python -m tests.support.secret_scan`. Made-up secrets are listed in `.gitleaks.toml`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
GITLEAKS = ROOT / ".tools/bin/gitleaks"
CONFIG = ROOT / ".gitleaks.toml"
SCAN_TIMEOUT_S = 600.0

# What a merge itself brought in is in no other commit.
HISTORY = "--log-opts=--all --full-history --diff-merges=first-parent"


def scan(repository: Path = ROOT) -> int:
    """Print what was found, without the secrets. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        tracked = Path(folder)
        _copy_tracked(repository, tracked)
        clean = [_gitleaks(tracked, "dir"), _gitleaks(repository, "git", HISTORY)]
    if not all(clean):
        return 1
    print("secret scan: nothing found in the tracked files and the history")  # noqa: T201 - for the person at the terminal
    return 0


def _copy_tracked(repository: Path, into: Path) -> None:
    # gitleaks cannot leave out what git ignores, and .env and .data hold real secrets, rightly.
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (source := repository / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, into / name)


def _gitleaks(folder: Path, mode: str, *options: str) -> bool:
    """Whether nothing was found, and everything was looked at."""
    common = ["--config", str(CONFIG), "--no-banner", "--no-color", "--redact", "--verbose", "--log-level", "error"]
    command = [str(GITLEAKS), mode, *common, *options, "."]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SCAN_TIMEOUT_S, check=False)
    print(ran.stdout + ran.stderr, end="", file=sys.stderr)  # noqa: T201
    # Where git itself fails, gitleaks says so, and ends with 0 after 0 commits.
    return ran.returncode == 0 and not ran.stderr


if __name__ == "__main__":
    sys.exit(scan())
