"""Everything the process reads from outside, read once in `__main__`."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agent_service.errors import StartupError

PREFIX = "AGENT_"
STANDARD = frozenset({"OPENAI_API_KEY", "OPENAI_BASE_URL"})
"""Names that other programs use, too, and that keep them."""


class Settings(BaseSettings):
    """Settings of the agent service; defaults run on one machine with no key and no server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    listen: str = "127.0.0.1:50051"
    data_dir: Path = Path(".data/agent")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    roster: Path | None = None
    verify_key: str | None = None
    token: SecretStr | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_ca: Path | None = None

    model_provider: Literal["offline", "openai"] | None = None
    openai_api: Literal["responses", "chat_completions"] = "responses"
    model: str = "gpt-5-mini"
    fallback_models: str = ""
    fallback_base_url: str | None = None
    fallback_api_key: SecretStr | None = None
    model_timeout_s: float = Field(default=60.0, gt=0, le=600)
    offline_delay_s: float = Field(default=0.02, ge=0, le=5)
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")

    qdrant_url: str | None = None
    qdrant_api_key: SecretStr | None = None
    redis_url: SecretStr | None = None
    retrieval_timeout_s: float = Field(default=5.0, gt=0, le=60)

    turn_keep_s: float = Field(default=300.0, ge=0, le=86_400)
    turn_timeout_s: float = Field(default=120.0, gt=0, le=3_600)
    drain_s: float = Field(default=60.0, ge=0, le=3_600)
    max_turns: int = Field(default=1_000, ge=1, le=100_000)

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
            raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
        return value

    @field_validator("openai_base_url", "fallback_base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        # An address may carry a key: it is not quoted.
        if value is not None and not _is_http(value):
            raise ValueError("must be http://HOST... or https://HOST..., usually ending in /v1")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_redis(value.get_secret_value()):
            raise ValueError("must be redis://HOST:PORT/DB, rediss://... or unix://PATH; escape / ? # @ in a password")
        return value

    @field_validator("token")
    @classmethod
    def _one_word(cls, value: SecretStr | None) -> SecretStr | None:
        # It goes into a header.
        if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
            raise ValueError("must be one token, without spaces and line ends")
        return value

    @model_validator(mode="after")
    def _openai_needs_a_key(self) -> Self:
        if self.provider == "openai" and self.openai_api_key is None:
            raise ValueError("AGENT_MODEL_PROVIDER=openai needs OPENAI_API_KEY")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if self.tls_cert and not self.tls_key:
            raise ValueError("AGENT_TLS_KEY: must be set, because AGENT_TLS_CERT is")
        if self.tls_key and not self.tls_cert:
            raise ValueError("AGENT_TLS_CERT: must be set, because AGENT_TLS_KEY is")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("AGENT_TLS_CERT: must be set, because AGENT_TLS_CLIENT_CA is")
        return self

    @property
    def provider(self) -> Literal["offline", "openai"]:
        """The provider asked for; else openai where a key is set, else offline."""
        return self.model_provider or ("openai" if self.openai_api_key else "offline")


def load_settings(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Read the settings.

    Args:
        environ: where unknown names with our prefix are looked for.
        overrides: fields given on the command line.

    Raises:
        StartupError: a variable is unknown (the nearest is suggested) or its value is not allowed; names it.
    """
    known = {f"{PREFIX}{name.upper()}" for name, field in Settings.model_fields.items() if not field.validation_alias}
    for name in sorted(environ):
        # pydantic-settings does not tell cases apart, so neither does this check.
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            standard = name.upper().removeprefix(PREFIX)
            near = (
                [standard] if standard in STANDARD else difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            raise StartupError(f"{name} is not a setting of the agent service{hint}")
    try:
        return Settings(**overrides)
    except ValidationError as err:
        raise StartupError("; ".join(map(_problem, err.errors()))) from err


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _is_redis(address: str) -> bool:
    try:
        parts = urlsplit(address)
        # Reading a port that is none raises, and quotes it: a part of a password with an unescaped slash, for one.
        return parts.scheme == "unix" or (parts.scheme in {"redis", "rediss"} and bool(parts.hostname or parts.port))
    except ValueError:
        return False


def _problem(error: Mapping[str, Any]) -> str:
    """One line for a broken rule: the variable, the rule, never the value (it may be a secret)."""
    name = str(error["loc"][0]) if error["loc"] else ""
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    variable = name if name.isupper() else f"{PREFIX}{name.upper()}"
    return f"{variable}: {message}"
