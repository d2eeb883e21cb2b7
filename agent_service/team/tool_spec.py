"""What the roster says of tools, of the servers they come from, and of guardrails."""

from typing import Annotated, Literal, Self

import regex
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,64}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Callable_ = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`package.module:name`."""


class McpServerSpec(BaseModel):
    """A server of tools: a program of this machine (`command`), or an address (`url`, streamable HTTP)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    command: tuple[str, ...] = ()
    env: tuple[Variable, ...] = ()
    url: str | None = None
    headers: dict[str, Variable] = Field(default_factory=dict)
    connect_timeout_s: float = Field(default=10.0, gt=0, le=120)

    @model_validator(mode="after")
    def _one_way_to_it(self) -> Self:
        if bool(self.command) == (self.url is not None):
            raise ValueError(f"MCP server {self.name!r}: give either a command or a url")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"MCP server {self.name!r}: url must begin with http:// or https://")
        if self.headers and self.url is None:
            raise ValueError(f"MCP server {self.name!r}: headers go with a url")
        if self.env and not self.command:
            raise ValueError(f"MCP server {self.name!r}: env goes with a command")
        return self


class ToolSpec(BaseModel):
    """A tool that agents may be given by name: the search of their documents, a function, or one of an MCP server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    builtin: Literal["search"] | None = None
    function: Callable_ | None = None
    mcp_server: Name | None = None
    timeout_s: float = Field(default=10.0, gt=0, le=300)
    max_characters: int = Field(default=8_000, ge=1, le=200_000)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.builtin, self.function, self.mcp_server)) != 1:
            raise ValueError(f"tool {self.name!r}: give exactly one of builtin, function, mcp_server")
        return self


class GuardrailSpec(BaseModel):
    """A check of messages (`on = "input"`) or answers (`on = "output"`); who fails it is refused with `message`.

    A text fails where it is longer than `max_characters`, where `pattern` is found in it, or where `function` says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    on: Literal["input", "output"]
    max_characters: int | None = Field(default=None, ge=1, le=1_000_000)
    pattern: str | None = None
    function: Callable_ | None = None
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    message: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] = "I cannot help with that."

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                regex.compile(value)
            except regex.error as err:
                raise ValueError(f"is no regular expression: {err}") from err
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if sum(rule is not None for rule in (self.max_characters, self.pattern, self.function)) != 1:
            raise ValueError(f"guardrail {self.name!r}: give exactly one of max_characters, pattern, function")
        return self
