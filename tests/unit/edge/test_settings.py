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


# TLS to the agent service


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["CERT"], "KEY"),
        (["KEY"], "CERT"),
        (["CERT", "KEY"], "CA"),
        (["NAME"], "CA"),
        (["CA", "CERT"], "KEY"),
    ],
)
def test_a_part_of_tls_is_refused_by_the_name_of_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, given: list[str], missing: str
) -> None:
    for name in given:
        monkeypatch.setenv(f"EDGE_AGENT_TLS_{name}", "agent")

    with pytest.raises(StartupError, match=rf"^EDGE_AGENT_TLS_{missing}: must be set"):
        load_settings()


def test_several_addresses_under_tls_need_the_name_that_all_certificates_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AGENT_TARGET", "ipv4:10.0.0.1:50051,10.0.0.2:50051")
    assert load_settings().agent_tls_ca is None

    monkeypatch.setenv("EDGE_AGENT_TLS_CA", "/ca.pem")
    with pytest.raises(StartupError, match=r"^EDGE_AGENT_TLS_NAME: must be set where EDGE_AGENT_TARGET"):
        load_settings()

    monkeypatch.setenv("EDGE_AGENT_TLS_NAME", "agent.internal")
    assert load_settings().agent_tls_name == "agent.internal"


@pytest.mark.parametrize("name", ["agent.internal:50051", "https://agent", "agent internal", ".", "a..b", "*.internal"])
def test_a_name_that_no_certificate_is_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EDGE_AGENT_TLS_CA", "/ca.pem")
    monkeypatch.setenv("EDGE_AGENT_TLS_NAME", name)

    with pytest.raises(StartupError, match=r"^EDGE_AGENT_TLS_NAME: must be a host's name"):
        load_settings()


# Settings of accounts, issuers and limits


ISSUER = {
    "EDGE_JWKS_URL": "https://issuer.example/jwks",
    "EDGE_JWT_ISSUER": "https://issuer.example",
    "EDGE_JWT_AUDIENCE": "answerdesk",
}
RATES = ("EDGE_RATE_LIMIT", "EDGE_ADDRESS_RATE_LIMIT", "EDGE_LOGIN_RATE_LIMIT", "EDGE_GUEST_RATE_LIMIT")
PLANTED = "planted-0123456789"


def test_defaults_of_accounts_and_limits_are_the_documented_ones() -> None:
    settings = load_settings()

    assert (settings.registration, settings.guests) == ("open", "on")
    assert (settings.access_token_ttl_s, settings.refresh_token_ttl_s) == (900, 2_592_000)
    assert (settings.rate_limit, settings.trusted_proxies) == ("60/minute", ())
    assert (settings.jwt_secret, settings.jwks_url, settings.redis_url, settings.database_url) == (None,) * 4
    assert settings.agent_is_local


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", ["1/second", "60/minute", "1000000/hour", "off"])
def test_a_rate_is_a_count_per_second_minute_or_hour(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    assert getattr(load_settings(), name.removeprefix("EDGE_").lower()) == value


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(
    "value",
    [
        "60",
        "many",
        "OFF",
        "0/minute",
        "00/minute",
        "05/minute",
        "-1/minute",
        "1.5/minute",
        "1e3/minute",
        "\u0661/minute",
        "/minute",
        "60/",
        "60/fortnight",
        "60/minutes or so",
        "60/0minute",
        "10/second;60/minute",
        "10/second,60/minute",
        "10/second|0/minute",
        "1000001/hour",
        "9" * 400 + "/hour",
        "60/minute\n",
    ],
)
def test_any_other_rate_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError, match=f"^{name}: must be one COUNT/second") as refused:
        load_settings()

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EDGE_TRUSTED_PROXIES", "*"),
        ("EDGE_TRUSTED_PROXIES", "0.0.0.0/0"),
        ("EDGE_TRUSTED_PROXIES", "10.0.0.1, ::/0"),
        ("EDGE_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("EDGE_TRUSTED_PROXIES", "proxy.internal"),
        ("EDGE_TRUSTED_PROXIES", "10.0.0.1:80"),
        ("EDGE_JWKS_URL", "http://issuer.example/jwks"),
        ("EDGE_JWKS_URL", "https:///jwks"),
        ("EDGE_JWKS_URL", "issuer.example/jwks"),
        ("EDGE_JWT_ISSUER", "answerdesk"),
        ("EDGE_JWT_ALGORITHM", "HS256"),
        ("EDGE_JWT_ALGORITHM", "none"),
        ("EDGE_DATABASE_URL", "mysql://localhost/x"),
        ("EDGE_DATABASE_URL", "edge.db"),
        ("EDGE_REDIS_URL", "http://localhost"),
        ("EDGE_REDIS_URL", "localhost:6379"),
        ("EDGE_REGISTRATION", "yes"),
        ("EDGE_GUESTS", "closed"),
        ("EDGE_MAX_USER_TURNS", "0"),
        ("EDGE_MAX_USER_TURNS", "1001"),
        ("EDGE_ACCESS_TOKEN_TTL_S", "0"),
        ("EDGE_ACCESS_TOKEN_TTL_S", "nan"),
        ("EDGE_ACCESS_TOKEN_TTL_S", "86401"),
        ("EDGE_REFRESH_TOKEN_TTL_S", "-1"),
        ("EDGE_REFRESH_TOKEN_TTL_S", "inf"),
        ("EDGE_SESSION_TTL_S", "nan"),
        ("EDGE_HISTORY_TOKENS", "-1"),
    ],
)
def test_a_wrong_value_of_accounts_and_limits_is_refused_by_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for known, right in ISSUER.items():
        monkeypatch.setenv(known, right)
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError) as refused:
        load_settings()

    assert str(refused.value).startswith(f"{name}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ISSUER)
def test_an_issuer_is_given_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in ISSUER.items():
        monkeypatch.setenv(name, value)
    assert load_settings().jwks_url == ISSUER["EDGE_JWKS_URL"]

    for empty in (True, False):
        if empty:
            monkeypatch.setenv(missing, "")
        else:
            monkeypatch.delenv(missing)
        with pytest.raises(StartupError, match=f"^{missing}: an external issuer needs"):
            load_settings()


def test_all_that_an_issuer_lacks_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_JWT_ISSUER", ISSUER["EDGE_JWT_ISSUER"])

    with pytest.raises(StartupError, match=r"^EDGE_JWKS_URL, EDGE_JWT_AUDIENCE: "):
        load_settings()


def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_TRUSTED_PROXIES", "10.0.0.7, 10.1.0.0/16,::1,fd00::/8,")

    assert load_settings().trusted_proxies == ("10.0.0.7", "10.1.0.0/16", "::1", "fd00::/8")


@pytest.mark.parametrize(
    "value", ["redis://localhost", "redis://:secret@localhost:6379/1", "rediss://redis:6379", "unix:///run/redis.sock"]
)
def test_addresses_of_redis_are_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EDGE_REDIS_URL", value)
    settings = load_settings()

    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == value


@pytest.mark.parametrize(
    "value",
    ["sqlite:////var/lib/edge.db", "postgresql://u:p@h/d", "postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"],
)
def test_addresses_of_databases_are_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EDGE_DATABASE_URL", value)
    settings = load_settings()

    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == value


@pytest.mark.parametrize(
    ("target", "is_local"),
    [
        ("127.0.0.1:50051", True),
        ("127.1.2.3:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:127.0.0.1:50051,127.0.0.1:50052", True),
        ("unix:/run/agent.sock", True),
        ("agent:50051", False),
        ("10.0.0.2:50051", False),
        ("dns:///localhost.evil.example:50051", False),
        ("localhost.evil.example:50051", False),
        ("127.0.0.1.evil.example:50051", False),
        ("ipv4:127.0.0.1:50051,10.0.0.2:50051", False),
        ("ipv4:10.0.0.2:50051,127.0.0.1:50051", False),
        ("[::2]:50051", False),
        ("0.0.0.0:50051", False),
    ],
)
def test_an_agent_is_local_only_where_every_address_is(
    monkeypatch: pytest.MonkeyPatch, target: str, is_local: bool
) -> None:
    monkeypatch.setenv("EDGE_AGENT_TARGET", target)

    assert load_settings().agent_is_local is is_local


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EDGE_DATABASE_URL", f"mysql://ada:{PLANTED}@db/x"),
        ("EDGE_DATABASE_URL", PLANTED),
        ("EDGE_DATABASE_URL", f"postgresql://ada:{PLANTED}@[db/x"),
        ("EDGE_REDIS_URL", f"http://:{PLANTED}@redis:6379/0"),
        ("EDGE_REDIS_URL", PLANTED),
        ("EDGE_REDIS_URL", f"redis://:{PLANTED}@[redis/0"),
        ("EDGE_JWKS_URL", f"http://ada:{PLANTED}@issuer.example/jwks"),
        ("EDGE_PLANTED", PLANTED),
        ("EDGE_JWT_SECERT", PLANTED),
        ("EDGE_AGENT_SIGNING_KYE", PLANTED),
    ],
)
def test_no_message_holds_a_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("EDGE_JWT_SECRET", f"{PLANTED}-secret")
    monkeypatch.setenv("EDGE_AGENT_SIGNING_KEY", f"{PLANTED}-key")
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError) as refused:
        load_settings()

    assert name in str(refused.value)
    assert PLANTED not in str(refused.value)


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "EDGE_JWT_SECRET": PLANTED,
        "EDGE_AGENT_SIGNING_KEY": PLANTED,
        "EDGE_DATABASE_URL": f"postgresql://u:{PLANTED}@h/d",
        "EDGE_REDIS_URL": f"redis://:{PLANTED}@h/0",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()

    assert PLANTED not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
