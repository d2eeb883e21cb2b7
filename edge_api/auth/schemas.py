"""Who calls, and the bodies of the account endpoints."""

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NewType, Self, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from edge_api.agent_client.signing import DEFAULT_TENANT

UserId = NewType("UserId", str)
Scope: TypeAlias = Literal["chat", "documents:write", "admin"]

OWN_ISSUER = "answerdesk"
"""The issuer of this edge's own accounts and guests."""

MAX_COMPARABLE_CHARACTERS = 600
"""Of a name in the form in which names are compared."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller. A user is (issuer, subject).

    Attributes:
        user_id: names the user everywhere in this edge and at the agent service; a UUID.
        issuer: who vouches for the subject: `OWN_ISSUER` or the external issuer's name.
        subject: the issuer's name of the user.
        tenant: whose documents and conversations; 1 to 128 characters.
        groups: at most 64 names; decide which documents of the tenant are visible.
        scopes: what the token allows. Unknown ones are kept and mean nothing here.
        guest: a guest of this edge.
    """

    user_id: UserId
    issuer: str
    subject: str
    tenant: str = DEFAULT_TENANT
    groups: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset({"chat"})
    guest: bool = False


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to make. Guests have neither a name nor a password."""

    username: str | None = None
    username_key: str | None = None
    password_hash: str | None = None
    tenant: str = DEFAULT_TENANT
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("chat",)
    guest: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a sign-in gives: an access token for the body, and a refresh token for the cookie.

    Attributes:
        access_token: goes with every request.
        expires_in_s: how long it is valid. Whole seconds.
        refresh_token: good for one refresh.
        refresh_for_s: how long that is valid. Whole seconds.
    """

    access_token: str
    expires_in_s: int
    refresh_token: str
    refresh_for_s: int


def comparable(username: str) -> str:
    """The form in which names are compared: names that look alike are one, in any case.

    Source: RFC 8265 (UsernameCaseMapped), with NFKC for its width mapping.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", username).casefold())


class Registration(BaseModel):
    """A new account."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"username": "ada", "password": "a long sentence that nobody else uses"}]},
    )

    username: str = Field(
        min_length=3,
        max_length=254,
        validation_alias=AliasChoices("username", "email"),
        description="A name or an email address; case does not matter. `email` is another name for this field.",
    )
    password: str = Field(min_length=8, max_length=256, description="8 to 256 characters; long beats complicated.")

    @field_validator("username")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value != value.strip() or not value.isprintable():
            raise ValueError("must be printable and must not begin or end with white space")
        # One letter may stand for eighteen; an index entry of PostgreSQL takes 2,704 bytes.
        if len(comparable(value)) > MAX_COMPARABLE_CHARACTERS:
            raise ValueError("is too long when its letters are written out")
        return value

    @field_validator("password")
    @classmethod
    def _is_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be only white space")
        return value

    @model_validator(mode="after")
    def _password_is_not_the_name(self) -> Self:
        if comparable(self.password) == comparable(self.username):
            raise ValueError("the password must not be the name")
        return self


class LoginForm(BaseModel):
    """The OAuth2 password form (RFC 6749, section 4.3.2)."""

    # Clients send more, such as `client_id`; none of it matters here. Scopes are given by operators.
    model_config = ConfigDict(extra="ignore")

    grant_type: Literal["password"] | None = None
    username: str = Field(min_length=1, max_length=254)
    password: str = Field(min_length=1, max_length=256, json_schema_extra={"format": "password"})
    scope: str = Field(default="", max_length=1_000, description="Ignored: an account's scopes are given by operators.")


class TokenReply(BaseModel):
    """An access token, for `Authorization: Bearer`. The refresh token is in a cookie that pages cannot read."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the name of a scheme
    expires_in: int = Field(description="Seconds.")


class Me(BaseModel):
    """The caller."""

    user_id: str
    username: str | None = Field(description="Of a built-in account; else null.")
    issuer: str
    subject: str
    tenant: str
    groups: list[str]
    scopes: list[str]
    guest: bool
