"""Settings, and what a person reads when one is wrong."""

import os

import pytest

from edge_api.errors import StartupError
from edge_api.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("EDGE_"):
            monkeypatch.delenv(name)


def test_defaults_serve_one_machine() -> None:
    settings = load_settings()

    assert (settings.host, settings.port, settings.env) == ("127.0.0.1", 8000, "development")
    assert settings.agent_target == "127.0.0.1:50051"
    assert settings.cors_origins == ("http://localhost:3000",)
    assert (settings.max_body_bytes, settings.turn_timeout_s, settings.session_ttl_s) == (1_048_576, 120, 2_592_000)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("EDGE_PROT", "EDGE_PORT"), ("EDGE_CORS_ORIGIN", "EDGE_CORS_ORIGINS"), ("edge_hots", "EDGE_HOST")],
)
def test_an_unknown_name_is_refused_and_the_nearest_suggested(
    monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.setenv(given, "1")

    with pytest.raises(StartupError, match=f"{given} is not a setting of the edge; did you mean {meant}\\?"):
        load_settings()


def test_an_unknown_name_like_no_other_gets_no_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_ZZZZZZZZZZZZ", "1")

    with pytest.raises(StartupError, match=r"^EDGE_ZZZZZZZZZZZZ is not a setting of the edge$"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EDGE_PORT", "eighty"),
        ("EDGE_PORT", "70000"),
        ("EDGE_ENV", "staging"),
        ("EDGE_LOG_LEVEL", "loud"),
        ("EDGE_AGENT_TARGET", "agent"),
        ("EDGE_AGENT_TARGET", "http://agent:50051"),
        ("EDGE_AGENT_TARGET", "agent 1:50051"),
        ("EDGE_CORS_ORIGINS", "*"),
        ("EDGE_CORS_ORIGINS", "https://*.example.com"),
        ("EDGE_CORS_ORIGINS", "https://a.example, *"),
        ("EDGE_CORS_ORIGINS", "https://a.example/"),
        ("EDGE_CORS_ORIGINS", "a.example"),
        ("EDGE_CORS_ORIGINS", "null"),
        ("EDGE_MAX_BODY_BYTES", "10"),
        ("EDGE_TURN_TIMEOUT_S", "0"),
        ("EDGE_SESSION_TTL_S", "-1"),
        ("EDGE_SHUTDOWN_GRACE_S", "forever"),
    ],
)
def test_a_wrong_value_is_refused_by_the_variables_name_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError) as refused:
        load_settings()

    assert str(refused.value).startswith(f"{name}: ")
    assert "\n" not in str(refused.value)


def test_every_origin_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CORS_ORIGINS", "*")

    with pytest.raises(StartupError, match="list the origins"):
        load_settings()


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_PORT", "x")
    monkeypatch.setenv("EDGE_ENV", "y")

    with pytest.raises(StartupError, match=r"EDGE_PORT: .*; EDGE_ENV: "):
        load_settings()


@pytest.mark.parametrize(
    "target",
    [
        "agent:50051",
        "127.0.0.1:50051",
        "[::1]:50051",
        "ipv4:10.0.0.1:50051,10.0.0.2:50051",
        "ipv6:[::1]:50051",
        "dns:///agent.internal:50051",
        "dns:agent:50051",
        "unix:/run/agent.sock",
    ],
)
def test_targets_that_grpc_knows_are_taken(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setenv("EDGE_AGENT_TARGET", target)

    assert load_settings().agent_target == target


def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CORS_ORIGINS", "https://a.example, http://localhost:3000,http://[::1]:5173,")

    assert load_settings().cors_origins == ("https://a.example", "http://localhost:3000", "http://[::1]:5173")


def test_an_empty_value_is_the_default_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_PORT", "")
    assert load_settings().port == 8000

    monkeypatch.setenv("EDGE_PORT", "9000")
    assert load_settings().port == 9000
    assert load_settings(port=1).port == 1


def test_origins_may_be_given_as_values() -> None:
    assert Settings(cors_origins=("https://a.example",)).cors_origins == ("https://a.example",)
