"""The secret scan fails where it should: planted secrets, now and in the past, and a history that cannot be read."""

import subprocess
from pathlib import Path

import pytest

from tests.support.secret_scan import scan

pytestmark = pytest.mark.needs("gitleaks")

# In two parts, so that this file is no finding itself.
AWS_KEY = "AKIA" + "Q3RGTH5XWPL7ZWKB"
PRIVATE_KEY = "-----BEGIN " + f"PRIVATE KEY-----\n{'MC4CAQAwBQYDK2VwBCIEIHk9' * 4}\n-----END PRIVATE " + "KEY-----\n"
PLANTED = 'SECRET = "hunter2-' + 'sk-live-4711"\n'


def git(repository: Path, *arguments: str) -> None:
    person = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *person, *arguments], cwd=repository, check=True, capture_output=True)


def write(repository: Path, name: str, text: str) -> None:
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    git(repository, "add", name)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    write(tmp_path, "README.md", "# Nothing to see\n")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_repository_passes(repository: Path) -> None:
    assert scan(repository) == 0


@pytest.mark.parametrize("secret", [f'key = "{AWS_KEY}"\n', PRIVATE_KEY])
def test_a_secret_in_a_tracked_file_is_found_and_not_printed(
    repository: Path, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(repository, "deploy/key.txt", secret)

    assert scan(repository) == 1
    printed = capsys.readouterr().err
    assert "deploy/key.txt" in printed
    assert AWS_KEY not in printed
    assert "MC4CAQ" not in printed


def test_a_secret_that_was_removed_again_is_found_in_the_history(repository: Path) -> None:
    write(repository, "key.txt", PRIVATE_KEY)
    git(repository, "commit", "-qm", "oops")
    git(repository, "rm", "-q", "key.txt")
    git(repository, "commit", "-qm", "gone")

    assert scan(repository) == 1


def test_what_only_a_merge_brought_in_is_found_in_the_history(repository: Path) -> None:
    git(repository, "checkout", "-qb", "side")
    write(repository, "side.txt", "side\n")
    git(repository, "commit", "-qm", "side")
    git(repository, "checkout", "-q", "main")
    git(repository, "merge", "-q", "--no-ff", "--no-commit", "side")
    write(repository, "key.txt", PRIVATE_KEY)
    git(repository, "commit", "-qm", "merge")
    git(repository, "rm", "-q", "key.txt")
    git(repository, "commit", "-qm", "gone")

    assert scan(repository) == 1


def test_what_git_ignores_may_hold_secrets(repository: Path) -> None:
    write(repository, ".gitignore", ".env\n")
    (repository / ".env").write_text(PRIVATE_KEY)

    assert scan(repository) == 0


@pytest.mark.parametrize(("name", "code"), [("tests/unit/test_leaks.py", 0), ("edge_api/leaks.py", 1)])
def test_a_made_up_secret_is_one_in_the_tests_only(repository: Path, name: str, code: int) -> None:
    write(repository, name, PLANTED)

    assert scan(repository) == code


def test_a_real_looking_secret_is_found_in_the_tests_too(repository: Path) -> None:
    write(repository, "tests/unit/test_leaks.py", f'SECRET = "{AWS_KEY}"\n')

    assert scan(repository) == 1


def test_a_history_that_cannot_be_read_fails(repository: Path) -> None:
    (head,) = (repository / ".git/refs/heads").iterdir()
    head.write_text("0" * 39 + "1\n")

    assert scan(repository) == 1
