"""Everything the process reads from outside, read once in `__main__`."""

import difflib
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from edge_api.errors import StartupError

PREFIX = "EDGE_"
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
TARGET = re.compile(r"(?:(?:ipv4|ipv6|dns|unix|unix-abstract):\S+|[^\s:/]+:[0-9]{1,5}|\[[0-9a-fA-F:.]+\]:[0-9]{1,5})")


class Settings(BaseSettings):
    """Settings of the edge; defaults serve one machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    env: Literal["development", "production"] = "development"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    agent_target: str = "127.0.0.1:50051"
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ("http://localhost:3000",)
    max_body_bytes: int = Field(default=1_048_576, ge=1_024, le=67_108_864)
    turn_timeout_s: float = Field(default=120.0, gt=0, le=3_600)
    session_ttl_s: float = Field(default=2_592_000.0, gt=0)
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=600)

    @field_validator("agent_target")
    @classmethod
    def _target(cls, value: str) -> str:
        if not TARGET.fullmatch(value):
            raise ValueError("must be HOST:PORT, ipv4:HOST:PORT,HOST:PORT or dns:NAME:PORT, such as 127.0.0.1:50051")
        return value

    @field_validator("cors_origins", mode="before")
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


def _problem(error: Mapping[str, Any]) -> str:
    """One line for a broken rule: the variable and the rule, never the value (it may be a secret)."""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{_variable(str(error['loc'][0]))}: {message}"
