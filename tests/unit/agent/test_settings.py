"""Settings: what each variable does, and that a bad one is told by its name and never by its value."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from agent_service.errors import StartupError
from agent_service.settings import PREFIX, Settings, load_settings

SECRET = "sk-SECRET-that-must-not-be-shown"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith((PREFIX, "OPENAI_")):
            monkeypatch.delenv(name)


def loaded(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], **overrides: Any) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings(**overrides)


def problem(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(StartupError) as caught:
        loaded(monkeypatch, variables)
    return str(caught.value)


# --- defaults ---


def test_the_defaults_run_on_one_machine_without_key_or_server() -> None:
    settings = load_settings()

    assert settings.provider == "offline"
    assert settings.listen == "127.0.0.1:50051"
    assert settings.data_dir == Path(".data/agent")
    assert settings.openai_api == "responses"
    assert settings.offline_delay_s == 0.02
    assert settings.turn_keep_s == 300
    assert settings.drain_s == 60
    assert settings.turn_timeout_s == 120
    assert (settings.qdrant_url, settings.openai_api_key, settings.openai_base_url, settings.roster) == (None,) * 4


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.listen = "0.0.0.0:1"


# --- every variable ---

VARIABLES: dict[str, tuple[str, str, Any]] = {
    "AGENT_LISTEN": ("[::1]:6000", "listen", "[::1]:6000"),
    "AGENT_DATA_DIR": ("/srv/agent", "data_dir", Path("/srv/agent")),
    "AGENT_LOG_LEVEL": ("DEBUG", "log_level", "DEBUG"),
    "AGENT_ROSTER": ("/etc/roster.toml", "roster", Path("/etc/roster.toml")),
    "AGENT_VERIFY_KEY": ("/etc/agent-verify.pem", "verify_key", "/etc/agent-verify.pem"),
    "AGENT_TOKEN": ("a.b-c_d.e", "token", SecretStr("a.b-c_d.e")),
    "AGENT_TLS_CERT": ("/etc/agent.pem", "tls_cert", Path("/etc/agent.pem")),
    "AGENT_TLS_KEY": ("/etc/agent.key", "tls_key", Path("/etc/agent.key")),
    "AGENT_TLS_CLIENT_CA": ("/etc/clients.pem", "tls_client_ca", Path("/etc/clients.pem")),
    "AGENT_TLS_CA": ("/etc/ca.pem", "tls_ca", Path("/etc/ca.pem")),
    "AGENT_MODEL_PROVIDER": ("offline", "model_provider", "offline"),
    "AGENT_OPENAI_API": ("chat_completions", "openai_api", "chat_completions"),
    "AGENT_MODEL": ("large", "model", "large"),
    "AGENT_FALLBACK_MODELS": ("second, third", "fallback_models", "second, third"),
    "AGENT_FALLBACK_BASE_URL": ("http://127.0.0.1:2/v1", "fallback_base_url", "http://127.0.0.1:2/v1"),
    "AGENT_FALLBACK_API_KEY": ("sk-2", "fallback_api_key", SecretStr("sk-2")),
    "AGENT_MODEL_TIMEOUT_S": ("2.5", "model_timeout_s", 2.5),
    "AGENT_OFFLINE_DELAY_S": ("0", "offline_delay_s", 0.0),
    "OPENAI_API_KEY": ("sk-1", "openai_api_key", SecretStr("sk-1")),
    "OPENAI_BASE_URL": ("http://127.0.0.1:1/v1", "openai_base_url", "http://127.0.0.1:1/v1"),
    "AGENT_QDRANT_URL": ("http://127.0.0.1:6333", "qdrant_url", "http://127.0.0.1:6333"),
    "AGENT_QDRANT_API_KEY": ("k", "qdrant_api_key", SecretStr("k")),
    "AGENT_REDIS_URL": ("redis://r:6379/1", "redis_url", SecretStr("redis://r:6379/1")),
    "AGENT_RETRIEVAL_TIMEOUT_S": ("1", "retrieval_timeout_s", 1.0),
    "AGENT_TURN_KEEP_S": ("0", "turn_keep_s", 0.0),
    "AGENT_TURN_TIMEOUT_S": ("30", "turn_timeout_s", 30.0),
    "AGENT_DRAIN_S": ("0.5", "drain_s", 0.5),
    "AGENT_MAX_TURNS": ("7", "max_turns", 7),
}


PAIR = {"AGENT_TLS_CERT": "/pair.pem", "AGENT_TLS_KEY": "/pair.key"}
NEEDED = {"AGENT_TLS_CERT": PAIR, "AGENT_TLS_KEY": PAIR, "AGENT_TLS_CLIENT_CA": PAIR}
"""What else must be set."""


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    value, field, expected = VARIABLES[variable]

    assert getattr(loaded(monkeypatch, NEEDED.get(variable, {}) | {variable: value}), field) == expected


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "AGENT_FALLBACK_BASE_URL"])
@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "http://", "http://x:port/v1"])
def test_an_address_of_a_model_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    with pytest.raises(StartupError, match=rf"^{variable}: must be http"):
        loaded(monkeypatch, {variable: address})


def test_the_table_above_has_every_variable() -> None:
    assert sorted(Settings.model_fields) == sorted(field for _, field, _ in VARIABLES.values())


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `.env` files and container platforms pass what is not set."""
    settings = loaded(monkeypatch, {"AGENT_LISTEN": "", "OPENAI_API_KEY": "", "AGENT_QDRANT_URL": ""})

    assert settings == load_settings({})
    assert settings.provider == "offline"


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, {"AGENT_LISTEN": "127.0.0.1:1"}, listen="127.0.0.1:2").listen == "127.0.0.1:2"


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, {"EDGE_PORT": "x", "AGENTS_HOME": "y", "OPENAI_ORG_ID": "z"}) == load_settings({})


@pytest.mark.parametrize("token", ["a b", "a\nb", " a", "a\n", "\u00e9"])
def test_a_token_that_cannot_go_into_a_header_is_a_start_up_error(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    assert problem(monkeypatch, AGENT_TOKEN=token) == "AGENT_TOKEN: must be one token, without spaces and line ends"


# --- the provider ---


def test_a_key_alone_chooses_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, {"OPENAI_API_KEY": SECRET}).provider == "openai"


def test_a_key_does_not_overrule_the_provider_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, {"OPENAI_API_KEY": SECRET, "AGENT_MODEL_PROVIDER": "offline"})

    assert settings.provider == "offline"


def test_openai_without_a_key_is_a_start_up_error_that_names_both_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    message = problem(monkeypatch, AGENT_MODEL_PROVIDER="openai")

    assert "AGENT_MODEL_PROVIDER" in message
    assert "OPENAI_API_KEY" in message


# --- TLS ---


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["AGENT_TLS_CERT"], "AGENT_TLS_KEY"),
        (["AGENT_TLS_KEY"], "AGENT_TLS_CERT"),
        (["AGENT_TLS_CLIENT_CA"], "AGENT_TLS_CERT"),
        (["AGENT_TLS_CLIENT_CA", "AGENT_TLS_CERT"], "AGENT_TLS_KEY"),
    ],
)
def test_a_part_of_tls_is_a_start_up_error_that_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, given: list[str], missing: str
) -> None:
    message = problem(monkeypatch, **dict.fromkeys(given, "/some.pem"))

    assert message.startswith(f"{missing}: must be set, because AGENT_TLS_")


# --- what is wrong ---


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("AGENT_LISEN", "AGENT_LISTEN"),
        ("AGENT_MAX_TURN", "AGENT_MAX_TURNS"),
        ("AGENT_QDRANT_URI", "AGENT_QDRANT_URL"),
    ],
)
def test_an_unknown_variable_is_a_start_up_error_that_suggests_the_nearest(
    monkeypatch: pytest.MonkeyPatch, unknown: str, meant: str
) -> None:
    message = problem(monkeypatch, **{unknown: "x"})

    assert message.startswith(unknown)
    assert f"did you mean {meant}?" in message


@pytest.mark.parametrize("standard", ["OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_a_standard_name_with_our_prefix_is_pointed_to_its_own(monkeypatch: pytest.MonkeyPatch, standard: str) -> None:
    """The likeliest slip; another suggestion would have a key put into the variable of something else."""
    message = problem(monkeypatch, **{f"AGENT_{standard}": SECRET})

    assert f"did you mean {standard}?" in message
    assert SECRET not in message


def test_an_unknown_variable_that_is_near_to_none_gets_no_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    message = problem(monkeypatch, AGENT_ZZZZZZZZZZZZZZZZZZ="x")

    assert "AGENT_ZZZZZZZZZZZZZZZZZZ" in message
    assert "did you mean" not in message


def test_an_unknown_variable_is_told_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in problem(monkeypatch, AGENT_OPENAI_KEY=SECRET)


def test_the_environment_to_look_for_unknown_names_in_may_be_given() -> None:
    with pytest.raises(StartupError, match="AGENT_LISEN"):
        load_settings({"AGENT_LISEN": "x"})


BAD = {
    "AGENT_LISTEN": ["127.0.0.1", ":50051", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1"],
    "AGENT_LOG_LEVEL": ["LOUD"],
    "AGENT_MODEL_PROVIDER": ["anthropic"],
    "AGENT_OPENAI_API": ["completions"],
    "AGENT_MODEL_TIMEOUT_S": ["0", "601", "soon", "nan"],
    "AGENT_OFFLINE_DELAY_S": ["-1", "6"],
    "AGENT_RETRIEVAL_TIMEOUT_S": ["0", "61"],
    "AGENT_TURN_KEEP_S": ["-1", "86401"],
    "AGENT_TURN_TIMEOUT_S": ["0", "3601", "inf"],
    "AGENT_DRAIN_S": ["-1", "3601"],
    "AGENT_MAX_TURNS": ["0", "100001", "1.5", "many"],
}


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_that_is_not_allowed_is_a_start_up_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    assert problem(monkeypatch, **{variable: value}).startswith(f"{variable}: ")


def test_every_bad_value_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = problem(monkeypatch, AGENT_MAX_TURNS="0", AGENT_DRAIN_S="-1")

    assert "AGENT_MAX_TURNS: " in message
    assert "AGENT_DRAIN_S: " in message


def test_a_bad_value_from_the_command_line_names_the_variable_too() -> None:
    with pytest.raises(StartupError, match=r"^AGENT_LISTEN: "):
        load_settings(listen="nowhere")


def test_a_field_that_is_not_there_is_told() -> None:
    with pytest.raises(StartupError, match="AGENT_LISEN"):
        load_settings(lisen="127.0.0.1:1")


# --- secrets ---


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "AGENT_QDRANT_API_KEY"])
def test_a_secret_is_not_shown_by_the_settings_themselves(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    settings = loaded(monkeypatch, {variable: SECRET})

    assert SECRET not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    "bad",
    [
        {"AGENT_MAX_TURNS": SECRET},
        {"AGENT_LISTEN": SECRET},
        {"AGENT_MODEL_PROVIDER": SECRET},
        {"AGENT_MAX_TURNS": "0", "OPENAI_API_KEY": SECRET},
        {"AGENT_MODEL_PROVIDER": "openai", "AGENT_QDRANT_API_KEY": SECRET},
    ],
    ids=["number", "address", "choice", "beside a key", "without a key"],
)
def test_a_problem_never_shows_a_value(monkeypatch: pytest.MonkeyPatch, bad: dict[str, str]) -> None:
    """It may be a secret in the wrong variable."""
    assert SECRET not in problem(monkeypatch, **bad)


def test_the_traceback_of_a_problem_does_not_show_a_secret_either(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError) as caught:
        loaded(monkeypatch, {"AGENT_MODEL_PROVIDER": "openai", "AGENT_QDRANT_API_KEY": SECRET})

    assert SECRET not in "".join(traceback.format_exception(caught.value))


# --- Redis ---


@pytest.mark.parametrize(
    "value", ["redis://localhost", "redis://:secret@localhost:6379/1", "rediss://redis:6379", "unix:///run/redis.sock"]
)
def test_addresses_of_redis_are_taken_and_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AGENT_REDIS_URL", value)

    settings = load_settings()

    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == value
    assert value not in repr(settings)


@pytest.mark.parametrize("value", ["http://:planted@redis:6379/0", "planted", "redis://:planted@[redis/0"])
def test_what_is_no_address_of_redis_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AGENT_REDIS_URL", value)

    with pytest.raises(StartupError, match="AGENT_REDIS_URL") as raised:
        load_settings()

    assert "planted" not in str(raised.value)


def test_without_a_redis_there_is_one_agent() -> None:
    assert load_settings({}).redis_url is None
