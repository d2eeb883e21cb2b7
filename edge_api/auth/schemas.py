"""Who calls, and the bodies of the account endpoints."""

from dataclasses import dataclass
from typing import Literal, NewType, TypeAlias

UserId = NewType("UserId", str)
Scope: TypeAlias = Literal["chat", "documents:write", "admin"]

OWN_ISSUER = "answerdesk"
"""The issuer of this edge's own accounts and guests."""

DEFAULT_TENANT = "default"
"""Where built-in accounts live unless told otherwise, and external users without a tenant claim."""


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
