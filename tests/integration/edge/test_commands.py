"""What operators do at the terminal: accounts, migrations, tokens."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_service.rpc.tokens import TokenVerifier
from agent_service.types import Caller
from edge_api.__main__ import main
from edge_api.migrations import schema
from tests.support.folders import quick_folder
from tests.support.tokens import key_pair

Run = Callable[..., tuple[int, list[str], str]]
PASSWORD = "hunter2-of-the-operators"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Runs a command on a database of its own: exit code, lines printed, what was said on standard error."""
    with quick_folder() as folder:
        monkeypatch.setenv("EDGE_DATA_DIR", str(folder))

        def command(*arguments: str, password: str = PASSWORD) -> tuple[int, list[str], str]:
            monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
            code = main(arguments)
            printed = capsys.readouterr()
            return code, printed.out.splitlines(), printed.err

        yield command


def test_accounts_are_made_listed_changed_and_disabled(run: Run) -> None:
    assert run("users", "list") == (0, [], "")
    assert run("users", "add", "Ada", "--tenant", "acme", "--group", "sales", "--group", "hr")[0] == 0
    assert run("users", "add", "bob", "--scope", "chat", "--scope", "admin")[0] == 0
    assert [" ".join(line.split()) for line in run("users", "list")[1]] == [
        "Ada tenant=acme groups=sales,hr scopes=chat",
        "bob tenant=default groups=- scopes=chat,admin",
    ]

    assert run("users", "set", "ADA", "--no-groups", "--scope", "documents:write")[0] == 0
    assert run("users", "disable", "bob")[0] == 0
    assert run("users", "password", "bob")[0] == 0
    assert [" ".join(line.split()) for line in run("users", "list")[1]] == [
        "Ada tenant=acme groups=- scopes=documents:write",
        "bob tenant=default groups=- scopes=chat,admin disabled",
    ]

    assert run("users", "enable", "bob")[0] == 0
    assert "disabled" not in run("users", "list")[1][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "ada", "--tenant", "a b"), "tenant: must be"),
        (("add", "ada", "--group", ""), "groups: at most"),
        (("add", "ada", "--group", "g" * 65), "groups: at most"),
        (("set", "nobody", "--tenant", "acme"), "there is no account 'nobody'"),
        (("password", "nobody"), "there is no account 'nobody'"),
        (("disable", "nobody"), "there is no account 'nobody'"),
        (("add", "ab"), "username: "),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, lines, error = run("users", *arguments)

    assert (code, lines) == (1, [])
    assert error.startswith("edge_api: ")
    assert said in error
    assert PASSWORD not in error


def test_a_name_is_taken_once(run: Run) -> None:
    assert run("users", "add", "ada")[0] == 0

    assert run("users", "add", "ADA")[2] == "edge_api: somebody has an account of that name\n"


@pytest.mark.parametrize("password", ["short", "", "ada-ada-ada"])
def test_a_weak_password_is_refused_and_not_quoted(run: Run, password: str) -> None:
    code, _, error = run("users", "add", "ada-ada-ada", password=password)

    assert code == 1
    assert "password" in error
    assert not password or f"'{password}'" not in error


def test_a_database_is_migrated_once(run: Run) -> None:
    assert run("migrate")[:2] == (0, [f"schema {schema.head()}: migrated"])
    assert run("migrate")[:2] == (0, [f"schema {schema.head()}: up to date"])


def test_a_token_says_what_it_was_asked_to_say(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    private, public = key_pair()
    path = tmp_path / "key.pem"
    path.write_text(private)
    monkeypatch.setenv("EDGE_AGENT_SIGNING_KEY", str(path))

    _, (token,), _ = run("token", "--subject", "eve", "--tenant", "acme", "--group", "sales", "--group", "sales")

    assert TokenVerifier(public).verify(token) == Caller("eve", "acme", ("sales",))


def test_without_a_key_there_is_no_token(run: Run) -> None:
    code, lines, error = run("token")

    assert (code, lines) == (2, [])
    assert "EDGE_AGENT_SIGNING_KEY" in error


@pytest.mark.parametrize("ttl", ["0", "3601", "a while"])
def test_a_token_lasts_an_hour_at_most(run: Run, ttl: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("token", "--ttl-s", ttl)

    assert ended.value.code == 2
    assert "--ttl-s" in capsys.readouterr().err
