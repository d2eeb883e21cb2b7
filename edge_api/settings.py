"""Everything the process reads from outside, read once in `__main__`."""

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from edge_api.errors import StartupError

PREFIX = "EDGE_"
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
TARGET = re.compile(r"(?:(?:ipv4|ipv6|dns|unix|unix-abstract):\S+|[^\s:/]+:[0-9]{1,5}|\[[0-9a-fA-F:.]+\]:[0-9]{1,5})")
LOOPBACK_TARGET = re.compile(r"(?:ipv4:|ipv6:|dns:)?(?:127\.[0-9.]+|localhost|\[::1\]):[0-9]+|unix(?:-abstract)?:\S+")
TLS_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|[0-9a-fA-F]*:[0-9a-fA-F:.]+")
# As in auth.schemas, which nothing down here may import.
OWN_ISSUER = "answerdesk"
# At most a million: a bucket keeps the time of each request.
RATE = re.compile(r"(?:[1-9][0-9]{0,5}|1000000)/(?:second|minute|hour)")

Words = Annotated[tuple[str, ...], NoDecode]
"""Several values in one variable, separated by commas."""


class Settings(BaseSettings):
    """Settings of the edge; defaults serve one machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    env: Literal["development", "production"] = "development"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    data_dir: Path = Path(".data/edge")
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None

    agent_target: str = "127.0.0.1:50051"
    agent_signing_key: SecretStr | None = None
    agent_tls_ca: Path | None = None
    agent_tls_cert: Path | None = None
    agent_tls_key: Path | None = None
    agent_tls_name: str | None = None

    jwt_secret: SecretStr | None = None
    access_token_ttl_s: float = Field(default=900.0, ge=1, le=86_400)
    refresh_token_ttl_s: float = Field(default=2_592_000.0, ge=1, le=31_536_000)
    registration: Literal["open", "closed"] = "open"
    guests: Literal["on", "off"] = "on"

    jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_algorithm: Literal["RS256", "ES256", "EdDSA"] | None = None
    jwt_tenant_claim: str = "tenant"
    jwt_groups_claim: str = "groups"
    jwt_scope_claim: str = "scope"
    jwt_default_scope: str = "chat"

    cors_origins: Words = ("http://localhost:3000",)
    trusted_proxies: Words = ()
    rate_limit: str = "60/minute"
    address_rate_limit: str = "600/minute"
    login_rate_limit: str = "10/minute"
    account_rate_limit: str = "100/minute"
    guest_rate_limit: str = "20/minute"
    max_user_turns: int = Field(default=4, ge=1, le=1_000)

    max_body_bytes: int = Field(default=1_048_576, ge=1_024, le=67_108_864)
    turn_timeout_s: float = Field(default=120.0, gt=0, le=3_600)
    disconnect_grace_s: float = Field(default=30.0, ge=0, le=600)
    session_ttl_s: float = Field(default=2_592_000.0, gt=0, le=315_360_000)
    history_tokens: int = Field(default=16_000, ge=0, le=64_000)
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=600)

    @field_validator("agent_target")
    @classmethod
    def _target(cls, value: str) -> str:
        if not TARGET.fullmatch(value):
            raise ValueError("must be HOST:PORT, ipv4:HOST:PORT,HOST:PORT or dns:NAME:PORT, such as 127.0.0.1:50051")
        return value

    @field_validator("agent_tls_name")
    @classmethod
    def _tls_name(cls, value: str | None) -> str | None:
        if value is not None and not TLS_NAME.fullmatch(value):
            raise ValueError("must be a host's name or address as in the certificate, without a port")
        return value

    @field_validator("cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if "*" in origin:
                raise ValueError(
                    "* is refused, because browsers send credentials to this API; list the origins, separated by "
                    "commas, such as https://app.example.com"
                )
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    "must be origins separated by commas: scheme, lower-case host and port, without a path"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                network = ipaddress.ip_network(proxy)
            except ValueError as err:
                raise ValueError(
                    "must be addresses or networks separated by commas, such as 10.0.0.7,10.1.0.0/16"
                ) from err
            if network.prefixlen == 0:
                raise ValueError("a network of all addresses is refused: anybody could name any address as their own")
        return value

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme.partition("+")[0] not in {
            "sqlite",
            "postgresql",
            "postgres",
        }:
            raise ValueError("must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_redis(value.get_secret_value()):
            raise ValueError("must be redis://HOST:PORT/DB, rediss://... or unix://PATH; escape / ? # @ in a password")
        return value

    @field_validator("jwks_url")
    @classmethod
    def _jwks(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme != "https" or not urlsplit(value).hostname):
            raise ValueError("must be an https:// address: who can change these keys can be anybody")
        return value

    @field_validator("jwt_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value == OWN_ISSUER:
            raise ValueError(f"must not be {OWN_ISSUER}: this edge's own tokens have that name")
        return value

    @field_validator("rate_limit", "address_rate_limit", "login_rate_limit", "account_rate_limit", "guest_rate_limit")
    @classmethod
    def _rate(cls, value: str) -> str:
        if value != "off" and not RATE.fullmatch(value):
            raise ValueError("must be one COUNT/second, COUNT/minute or COUNT/hour, with a count from 1, or off")
        return value

    @model_validator(mode="after")
    def _issuer_is_whole(self) -> Self:
        given = {
            "EDGE_JWKS_URL": self.jwks_url,
            "EDGE_JWT_ISSUER": self.jwt_issuer,
            "EDGE_JWT_AUDIENCE": self.jwt_audience,
        }
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"{', '.join(missing)}: an external issuer needs its URL, its name and our audience")
        return self

    @model_validator(mode="after")
    def _agent_tls_is_whole(self) -> Self:
        cert, key, name = self.agent_tls_cert, self.agent_tls_key, self.agent_tls_name
        for given, needed, missing in (
            (cert, key, "EDGE_AGENT_TLS_KEY: must be set, because EDGE_AGENT_TLS_CERT is"),
            (key, cert, "EDGE_AGENT_TLS_CERT: must be set, because EDGE_AGENT_TLS_KEY is"),
            (cert, self.agent_tls_ca, "EDGE_AGENT_TLS_CA: must be set, because EDGE_AGENT_TLS_CERT is"),
            (name, self.agent_tls_ca, "EDGE_AGENT_TLS_CA: must be set, because EDGE_AGENT_TLS_NAME is"),
        ):
            if given and not needed:
                raise ValueError(missing)
        if self.agent_tls_ca and not name and "," in self.agent_target:
            raise ValueError(
                "EDGE_AGENT_TLS_NAME: must be set where EDGE_AGENT_TARGET has several addresses: the name that all "
                "their certificates have"
            )
        return self

    @property
    def agent_is_local(self) -> bool:
        """Whether every agent is on this machine, as far as the target tells."""
        return all(LOOPBACK_TARGET.fullmatch(each) for each in self.agent_target.split(",")) or bool(
            re.fullmatch(r"ipv4:127\.[0-9.]+:[0-9]+(,127\.[0-9.]+:[0-9]+)*", self.agent_target)
        )


def load_settings(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Read the settings.

    Args:
        environ: where unknown names with our prefix are looked for.
        overrides: fields given on the command line.

    Raises:
        StartupError: a variable is unknown (the nearest is suggested) or its value is not allowed; names it.
    """
    known = {_variable(name) for name in Settings.model_fields}
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise StartupError(f"{name} is not a setting of the edge{hint}")
    try:
        return Settings(**overrides)
    except ValidationError as err:
        raise StartupError("; ".join(map(_problem, err.errors()))) from err


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _is_redis(address: str) -> bool:
    try:
        parts = urlsplit(address)
        # Reading a port that is none raises, and quotes it: a part of a password with an unescaped slash, for one.
        return parts.scheme == "unix" or (parts.scheme in {"redis", "rediss"} and bool(parts.hostname or parts.port))
    except ValueError:
        return False


def _problem(error: Mapping[str, Any]) -> str:
    """One line for a broken rule: the variable and the rule, never the value (it may be a secret)."""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{_variable(str(error['loc'][0]))}: {message}" if error["loc"] else message
