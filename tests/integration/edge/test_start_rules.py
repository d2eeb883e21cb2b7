"""What an edge refuses to start with: exit code 2 and one line that names what to correct, never a secret.

`main` is asked in this process, for a new one takes seconds to begin; a few cases are shown in a process as well.
"""

import os
import secrets
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from edge_api.__main__ import main
from tests.support.jwks_server import signing_key
from tests.support.processes import Process, clean_environment, free_port, is_ready_within
from tests.support.tokens import key_pair

STRONG = secrets.token_urlsafe(48)
PRODUCTION = {"EDGE_ENV": "production"}
POSTGRES = "postgresql://answerdesk:planted-password@127.0.0.1:1/answerdesk"
ISSUER = {
    "EDGE_JWKS_URL": "https://issuer.test/jwks",
    "EDGE_JWT_ISSUER": "https://issuer.test",
    "EDGE_JWT_AUDIENCE": "answerdesk",
}


def without(settings: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in names}


Refusal = Callable[[Path, Mapping[str, str]], str]


def line_of(output: str) -> str:
    """The one line for the person at the terminal."""
    # Others are log lines, for machines; none may hold a traceback.
    (line,) = [each for each in output.splitlines() if not each.startswith("{")]
    assert "Traceback" not in output
    assert line.startswith("edge_api: ")
    return line


def settings_in(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    return {"EDGE_DATA_DIR": str(folder / "data"), "EDGE_PORT": str(free_port()), **settings}


def refusal_of_a_process(folder: Path, settings: Mapping[str, str]) -> str:
    """The one line of a process that does not start."""
    process = Process(["-m", "edge_api", "serve"], settings_in(folder, settings), folder / "edge.log").start()
    try:
        assert process.wait(60) == 2, process.output()
    finally:
        process.stop()
    return line_of(process.output())


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refusal]:
    """The one line of `main`, which ends before it serves."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def refusal(folder: Path, settings: Mapping[str, str]) -> str:
        with monkeypatch.context() as patch:
            for name in os.environ.keys() - clean_environment().keys():
                patch.delenv(name)
            for name, value in settings_in(folder, settings).items():
                patch.setenv(name, value)
            assert main(["serve"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return line_of(printed.err)

    yield refusal
    for number, handler in handlers.items():
        signal.signal(number, handler)


# Rules for secrets


SECRETS: dict[str, tuple[dict[str, str], str]] = {
    "no secret in production": (PRODUCTION, "EDGE_JWT_SECRET"),
    "an empty secret in production": (PRODUCTION | {"EDGE_JWT_SECRET": ""}, "EDGE_JWT_SECRET"),
    "no secret beside PostgreSQL": ({"EDGE_DATABASE_URL": POSTGRES}, "EDGE_JWT_SECRET"),
    "no secret where all can reach it": ({"EDGE_HOST": "0.0.0.0"}, "EDGE_JWT_SECRET"),
    "no secret where all can reach it by IPv6": ({"EDGE_HOST": "::"}, "EDGE_JWT_SECRET"),
    "a short secret": ({"EDGE_JWT_SECRET": STRONG[:31]}, "EDGE_JWT_SECRET"),
    "a repeated letter": (PRODUCTION | {"EDGE_JWT_SECRET": "q" * 64}, "EDGE_JWT_SECRET"),
    "a repeated word": (PRODUCTION | {"EDGE_JWT_SECRET": "xK4-mQ9zTr7_" * 5}, "EDGE_JWT_SECRET"),
    "a placeholder": (PRODUCTION | {"EDGE_JWT_SECRET": "changeme-changeme-please-change-me-now"}, "EDGE_JWT_SECRET"),
    "a placeholder in development": ({"EDGE_JWT_SECRET": "your-super-secret-jwt-signing-key!"}, "EDGE_JWT_SECRET"),
    "a public key for a secret": ({"EDGE_JWT_SECRET": signing_key().public_pem().decode()}, "EDGE_JWT_SECRET"),
    "an agent on another machine without a key": (
        {"EDGE_AGENT_TARGET": "agent.internal:50051"},
        "EDGE_AGENT_SIGNING_KEY",
    ),
    "one of two agents on another machine": (
        {"EDGE_AGENT_TARGET": "ipv4:127.0.0.1:50051,10.0.0.2:50051"},
        "EDGE_AGENT_SIGNING_KEY",
    ),
    "an agent whose name begins like ours": (
        {"EDGE_AGENT_TARGET": "localhost.evil.example:50051"},
        "EDGE_AGENT_SIGNING_KEY",
    ),
    "a key that is none": ({"EDGE_AGENT_SIGNING_KEY": "planted-signing-key"}, "EDGE_AGENT_SIGNING_KEY"),
    "a broken key": (
        {"EDGE_AGENT_SIGNING_KEY": "-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----\n"},
        "EDGE_AGENT_SIGNING_KEY",
    ),
    "a public key to sign with": ({"EDGE_AGENT_SIGNING_KEY": key_pair()[1]}, "EDGE_AGENT_SIGNING_KEY"),
}


@pytest.mark.parametrize(("settings", "variable"), SECRETS.values(), ids=SECRETS.keys())
def test_a_secret_that_is_missing_or_weak_ends_the_start(
    refusal: Refusal, tmp_path: Path, settings: dict[str, str], variable: str
) -> None:
    check_refused_secret(refusal, tmp_path, settings, variable)


@pytest.mark.parametrize("name", ["no secret in production", "a placeholder in development", "a broken key"])
def test_a_secret_that_is_missing_or_weak_ends_the_process(tmp_path: Path, name: str) -> None:
    check_refused_secret(refusal_of_a_process, tmp_path, *SECRETS[name])


def check_refused_secret(refusal: Refusal, tmp_path: Path, settings: Mapping[str, str], variable: str) -> None:
    line = refusal(tmp_path, settings)

    assert variable in line
    assert "planted" not in line
    for name in ("EDGE_JWT_SECRET", "EDGE_AGENT_SIGNING_KEY"):
        for part in settings.get(name, "").splitlines():
            assert not part or part not in line
    if variable == "EDGE_JWT_SECRET":
        assert not (tmp_path / "data" / "jwt-secret").exists()


def test_a_secret_file_that_others_can_read_ends_the_start(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "data" / "jwt-secret"
    path.parent.mkdir()
    path.write_text(STRONG)
    for mode in (0o644, 0o640, 0o604):
        path.chmod(mode)

        line = refusal(tmp_path, {})

        assert str(path) in line
        assert "chmod 600" in line
        assert STRONG not in line
    assert path.read_text() == STRONG


def test_a_secret_file_that_holds_a_weak_secret_ends_the_start(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "data" / "jwt-secret"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text("planted-planted-planted-planted-planted")

    line = refusal(tmp_path, {})

    assert str(path) in line
    assert "planted" not in line.replace(str(path), "")


# Rules for the other settings


RATES: dict[str, tuple[dict[str, str], str]] = {
    f"the rate {rate!r} for {name}": ({name: rate}, name)
    for name in ("EDGE_RATE_LIMIT", "EDGE_ADDRESS_RATE_LIMIT", "EDGE_LOGIN_RATE_LIMIT", "EDGE_GUEST_RATE_LIMIT")
    for rate in ("many", "10/second;60/minute", "0/minute", "-1/minute", "60/eternity")
}
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    **RATES,
    "keys over http": (ISSUER | {"EDGE_JWKS_URL": "http://issuer.test/jwks"}, "EDGE_JWKS_URL"),
    "keys from a file": (ISSUER | {"EDGE_JWKS_URL": "file:///etc/jwks.json"}, "EDGE_JWKS_URL"),
    "keys from nowhere": (ISSUER | {"EDGE_JWKS_URL": "https://"}, "EDGE_JWKS_URL"),
    "no issuer's URL": (without(ISSUER, "EDGE_JWKS_URL"), "EDGE_JWKS_URL"),
    "no issuer's name": (without(ISSUER, "EDGE_JWT_ISSUER"), "EDGE_JWT_ISSUER"),
    "no audience": (without(ISSUER, "EDGE_JWT_AUDIENCE"), "EDGE_JWT_AUDIENCE"),
    "an empty audience": (ISSUER | {"EDGE_JWT_AUDIENCE": ""}, "EDGE_JWT_AUDIENCE"),
    "only an audience": ({"EDGE_JWT_AUDIENCE": "answerdesk"}, "EDGE_JWKS_URL"),
    "our own name for an issuer": (ISSUER | {"EDGE_JWT_ISSUER": "answerdesk"}, "EDGE_JWT_ISSUER"),
    "HS256 for an issuer": (ISSUER | {"EDGE_JWT_ALGORITHM": "HS256"}, "EDGE_JWT_ALGORITHM"),
    "no algorithm at all": (ISSUER | {"EDGE_JWT_ALGORITHM": "none"}, "EDGE_JWT_ALGORITHM"),
    "any proxy": ({"EDGE_TRUSTED_PROXIES": "*"}, "EDGE_TRUSTED_PROXIES"),
    "all addresses for proxies": ({"EDGE_TRUSTED_PROXIES": "0.0.0.0/0"}, "EDGE_TRUSTED_PROXIES"),
    "all addresses of IPv6 for proxies": ({"EDGE_TRUSTED_PROXIES": "10.0.0.1,::/0"}, "EDGE_TRUSTED_PROXIES"),
    "a proxy by its name": ({"EDGE_TRUSTED_PROXIES": "proxy.internal"}, "EDGE_TRUSTED_PROXIES"),
    "any origin": ({"EDGE_CORS_ORIGINS": "*"}, "EDGE_CORS_ORIGINS"),
    "any origin among others": ({"EDGE_CORS_ORIGINS": "http://localhost:3000,*"}, "EDGE_CORS_ORIGINS"),
    "the origin null": ({"EDGE_CORS_ORIGINS": "null"}, "EDGE_CORS_ORIGINS"),
    "an unknown setting": ({"EDGE_JWT_SECRETS": "planted"}, "EDGE_JWT_SECRET?"),
    "an unknown setting in lower case": ({"edge_rate_limits": "5/minute"}, "EDGE_RATE_LIMIT?"),
    "another database": ({"EDGE_DATABASE_URL": "mysql://ada:planted@db/x"}, "EDGE_DATABASE_URL"),
    "another store of limits": ({"EDGE_REDIS_URL": "http://:planted@redis/0"}, "EDGE_REDIS_URL"),
    "registration perhaps": ({"EDGE_REGISTRATION": "perhaps"}, "EDGE_REGISTRATION"),
    "guests perhaps": ({"EDGE_GUESTS": "maybe"}, "EDGE_GUESTS"),
    "no turns": ({"EDGE_MAX_USER_TURNS": "0"}, "EDGE_MAX_USER_TURNS"),
    "tokens for ever": ({"EDGE_ACCESS_TOKEN_TTL_S": "inf"}, "EDGE_ACCESS_TOKEN_TTL_S"),
}


@pytest.mark.parametrize(("settings", "variable"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_setting_that_breaks_a_rule_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    variable: str,
) -> None:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    assert main(["serve"]) == 2

    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("edge_api: ")
    assert variable in line
    assert "planted" not in line + printed.out


# Rules that show only while it starts


def test_a_second_edge_over_one_sqlite_database_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, {}):
        second = tmp_path / "second"
        second.mkdir()

        line = refusal_of_a_process(second, {"EDGE_DATA_DIR": str(tmp_path / "data")})

        assert "EDGE_DATA_DIR" in line


def test_authorities_that_cannot_be_read_end_the_start(tmp_path: Path) -> None:
    line = refusal_of_a_process(tmp_path, ISSUER | {"SSL_CERT_FILE": str(tmp_path / "missing.pem")})

    assert "SSL_CERT_FILE" in line


# What does start


@contextmanager
def running(folder: Path, settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client of an edge that runs; the edge is ended when the block is left."""
    environment = settings_in(folder, settings)
    process = Process(["-m", "edge_api", "serve"], environment, folder / "edge.log").start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{environment['EDGE_PORT']}", timeout=20, trust_env=False) as http:
            assert is_ready_within(lambda: http.get("/livez").status_code == 200), process.output()
            yield http
    finally:
        process.stop()
    assert STRONG not in process.output()


GOOD: dict[str, dict[str, str]] = {
    "production with a strong secret": PRODUCTION | {"EDGE_JWT_SECRET": STRONG},
    "all addresses with a strong secret": {"EDGE_HOST": "0.0.0.0", "EDGE_JWT_SECRET": STRONG},
    "an agent elsewhere with a key": {
        "EDGE_AGENT_TARGET": "dns:///agent.invalid:50051",
        "EDGE_AGENT_SIGNING_KEY": key_pair()[0],
    },
    "an issuer that is away": ISSUER | {"EDGE_JWKS_URL": "https://127.0.0.1:1/jwks"},
}


@pytest.mark.parametrize("settings", GOOD.values(), ids=GOOD.keys())
def test_good_settings_start(tmp_path: Path, settings: dict[str, str]) -> None:
    with running(tmp_path, settings) as http:
        assert http.get("/health").status_code == 200
        assert http.get("/api/agents").status_code == 401
        assert http.post("/api/auth/guest").status_code == 201

    assert (tmp_path / "data" / "jwt-secret").exists() == ("EDGE_JWT_SECRET" not in settings)


def test_in_development_a_secret_is_made_once_and_kept_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "jwt-secret"
    with running(tmp_path, {}) as http:
        token = http.post("/api/auth/guest").json()["access_token"]
        made = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(made.strip()) >= 43
    with running(tmp_path, {}) as http:
        me = http.get("/api/auth/me", headers={"Authorization": f"Bearer {token}"})

        assert me.status_code == 200
        assert me.json()["guest"]
    assert path.read_text() == made
    assert made.strip() not in (tmp_path / "edge.log").read_text()


def test_a_token_of_one_secret_is_nothing_to_another(tmp_path: Path) -> None:
    with running(tmp_path, PRODUCTION | {"EDGE_JWT_SECRET": STRONG}) as http:
        headers = {"Authorization": f"Bearer {http.post('/api/auth/guest').json()['access_token']}"}
        assert http.get("/api/auth/me", headers=headers).status_code == 200
    with running(tmp_path, PRODUCTION | {"EDGE_JWT_SECRET": secrets.token_urlsafe(48)}) as http:
        refused = http.get("/api/auth/me", headers=headers)

        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
