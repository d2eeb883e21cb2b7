"""Access tokens: this edge's own, what is common to all of them, and who verifies which."""

import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import jwt
from jwt.types import Options

from edge_api.auth.schemas import OWN_ISSUER, Principal, UserId
from edge_api.errors import TokenExpiredError, UnauthenticatedError

AUDIENCE = "answerdesk-edge"
ALGORITHM = "HS256"
TYPE = "at+jwt"
"""An access token (RFC 9068, section 2.1): no other JWT that the same secret may ever sign passes for one."""

# Issuers sign what fits into a header; common servers take 8 KiB of those.
MAX_TOKEN_CHARS = 8_192
MAX_SUBJECT_CHARS = 255
MAX_TENANT_CHARS = 128
MAX_GROUPS = 64
MAX_GROUP_CHARS = 128

# Neither control characters, which a log or a database might refuse, nor halves of UTF-16 pairs, which no UTF-8 has.
TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
SEPARATORS = re.compile(r"[\s,]+")

USERS: Final = uuid.UUID("59f2e837-aab8-4d84-8d79-cfd4b4a723ea")
"""Names the ids of external users. Never to be changed: every user would become another one."""

_OWN_CLAIMS = ("iss", "aud", "sub", "tenant", "groups", "scope", "iat", "exp", "jti")


class TokenIssuer(Protocol):
    """Somebody else whose tokens are taken."""

    @property
    def issuer(self) -> str:
        """The `iss` of its tokens."""
        ...

    async def verify(self, token: str) -> Principal:
        """See `Verifier.verify`."""
        ...


class OwnTokens:
    """Access tokens of this edge's accounts and guests: HS256, for this edge only.

    Args:
        secret: strong, as `own_secret` gives it.
        ttl_s: how long a token is valid unless told otherwise; lasts up to a second longer, never shorter.
        clock: Unix time in seconds.
    """

    def __init__(self, secret: str, *, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock
        self.ttl_s = ttl_s

    def issue(self, principal: Principal, *, ttl_s: float | None = None) -> str:
        """A token for a user of this edge: one whose issuer is `OWN_ISSUER` and whose subject is the user's id.

        `ttl_s`: how long it is valid, where that is less than for other tokens.
        """
        now_s = self._clock()
        claims: dict[str, Any] = {
            "iss": OWN_ISSUER,
            "aud": AUDIENCE,
            "sub": principal.user_id,
            "tenant": principal.tenant,
            "groups": list(principal.groups),
            "scope": " ".join(sorted(principal.scopes)),
            "iat": int(now_s),
            "exp": math.ceil(now_s + (self.ttl_s if ttl_s is None else ttl_s)),
            "jti": uuid.uuid4().hex,
        }
        if principal.guest:
            claims["guest"] = True
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM, headers={"typ": TYPE})

    def verify(self, token: str) -> Principal:
        """Who a token was issued to. Its times are exact: what issued it has this clock.

        Raises:
            TokenExpiredError: it was valid once.
            UnauthenticatedError: it is not a token of this edge.
        """
        if header_of(token).get("typ") != TYPE:
            raise UnauthenticatedError("the token is not an access token")
        claims = claims_of(token, self._secret, ALGORITHM, issuer=OWN_ISSUER, audience=AUDIENCE, required=_OWN_CLAIMS)
        guest = claims.get("guest", False)
        if not isinstance(guest, bool):
            raise UnauthenticatedError("the token's guest claim is malformed")
        user_id = text_of(claims, "sub", MAX_SUBJECT_CHARS)
        principal = Principal(
            user_id=UserId(user_id),
            issuer=OWN_ISSUER,
            subject=user_id,
            tenant=text_of(claims, "tenant", MAX_TENANT_CHARS),
            groups=names_of(claims, "groups"),
            scopes=frozenset(names_of(claims, "scope")),
            guest=guest,
        )
        check_times(claims, now_s=self._clock(), leeway_s=0)
        return principal


class Verifier:
    """Takes the tokens of this edge and, where there is one, of an external issuer."""

    def __init__(self, own: OwnTokens, external: TokenIssuer | None = None) -> None:
        self._own = own
        self._external = external

    async def verify(self, token: str) -> Principal:
        """Who calls.

        Raises:
            TokenExpiredError: the token was valid once.
            UnauthenticatedError: it is not a token that is taken here.
            IssuerUnavailableError: the external issuer's keys are not known.
        """
        # Whoever it says, it is verified as theirs: a lie only chooses who refuses it.
        if self._external is not None and _said_issuer(token) == self._external.issuer:
            return await self._external.verify(token)
        return self._own.verify(token)


def user_id_of(issuer: str, subject: str) -> UserId:
    """The id of an external user: the same one for ever, without a table."""
    return UserId(str(uuid.uuid5(USERS, f"{issuer}\n{subject}")))


def header_of(token: str) -> Mapping[str, Any]:
    """The header of a token, unverified; `kid`, where there is one, is a string.

    Raises:
        UnauthenticatedError: the token is too long, not a JWT, or demands an extension (`crit`).
    """
    # The size before anything is decoded; PyJWT encodes the token, which fails for half a UTF-16 pair.
    if len(token) > MAX_TOKEN_CHARS or not token.isascii():
        raise UnauthenticatedError("the token is not a JWT of at most 8 KiB")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as err:
        raise UnauthenticatedError("the token is not a JWT") from err
    # PyJWT takes the extension "b64"; nobody who signs in here needs one (RFC 7515, section 4.1.11).
    if "crit" in header:
        raise UnauthenticatedError("the token demands an extension")
    return header


def claims_of(
    token: str, key: Any, algorithm: str, *, issuer: str, audience: str, required: Sequence[str]
) -> Mapping[str, Any]:
    """The claims of a token whose signature, issuer and audience are right; its times are not checked.

    Args:
        token: one that `header_of` took.
        key: verifies the signature.
        algorithm: the only one that is taken, whatever the header says.
        issuer: what `iss` must be.
        audience: what `aud` must be, or hold where it is a list.
        required: claims that must be there and not null.

    Raises:
        UnauthenticatedError: something is missing or wrong.
    """
    options: Options = {"require": list(required), "verify_exp": False, "verify_nbf": False, "verify_iat": False}
    try:
        return jwt.decode(token, key, algorithms=[algorithm], options=options, issuer=issuer, audience=audience)
    except jwt.PyJWTError as err:
        raise UnauthenticatedError("the token is not valid here") from err


def check_times(claims: Mapping[str, Any], *, now_s: float, leeway_s: float) -> None:
    """Check `exp`, and `nbf` where there is one. `iat` is no reason to refuse a token (RFC 7519, section 4.1.6).

    Raises:
        TokenExpiredError: its time is over.
        UnauthenticatedError: its time has not come, or is not a number of seconds.
    """
    if _seconds(claims, "nbf", 0) > now_s + leeway_s:
        raise UnauthenticatedError("the token is not valid yet")
    if _seconds(claims, "exp", None) <= now_s - leeway_s:
        raise TokenExpiredError("the token has expired")


def text_of(claims: Mapping[str, Any], name: str, max_chars: int) -> str:
    """A claim of 1 to `max_chars` characters.

    Raises:
        UnauthenticatedError: it is missing or something else.
    """
    value = claims.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= max_chars or not TEXT.fullmatch(value):
        raise UnauthenticatedError(f"the token's {name} claim is malformed")
    return value


def names_of(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A claim of names: a list, or one string with spaces or commas between them.

    Returns:
        In the claim's order, without duplicates; at most 64, of 1 to 128 characters each; may be empty.

    Raises:
        UnauthenticatedError: it is missing or something else.
    """
    value = claims.get(name)
    names = [each for each in SEPARATORS.split(value) if each] if isinstance(value, str) else value
    if not isinstance(names, list) or len(names) > MAX_GROUPS or not all(map(_is_name, names)):
        raise UnauthenticatedError(f"the token's {name} claim is malformed")
    return tuple(dict.fromkeys(names))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_GROUP_CHARS and TEXT.fullmatch(value) is not None


def _seconds(claims: Mapping[str, Any], name: str, default: float | None) -> float:
    value = claims.get(name, default)
    # Infinity and "not a number" are JSON to Python, and a token that never expires to a comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise UnauthenticatedError(f"the token's {name} claim is malformed")
    return value


def _said_issuer(token: str) -> object:
    header_of(token)
    try:
        return jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError as err:
        raise UnauthenticatedError("the token is not a JWT") from err
