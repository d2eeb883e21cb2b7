"""Tokens of an external issuer, verified with the keys that it publishes.

Better Auth works as it is: EdDSA, the base URL as issuer and audience, no `scope` claim.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import httpx

from edge_api.agent_client.signing import DEFAULT_TENANT
from edge_api.auth import tokens
from edge_api.auth.issuer_keys import FETCH_TIMEOUT_S, Algorithm, IssuerKeys
from edge_api.auth.schemas import OWN_ISSUER, Principal
from edge_api.errors import StartupError, UnauthenticatedError

# Clocks of two organisations.
LEEWAY_S = 30.0


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """What the issuer calls the claims that matter here."""

    tenant: str = "tenant"
    groups: str = "groups"
    scope: str = "scope"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose tokens are taken, and what for.

    Attributes:
        jwks_url: where the keys are; https.
        issuer: `iss`, exactly.
        audience: `aud`, exactly, or one of its values.
        algorithm: the only one that is taken; None: what each key is made for.
        claims: what the issuer calls the claims.
        default_scope: what tokens without a scope claim allow; names with spaces between them.
    """

    jwks_url: str
    issuer: str
    audience: str
    algorithm: Algorithm | None = None
    claims: ClaimNames = field(default_factory=ClaimNames)
    default_scope: str = "chat"


class ExternalIssuer:
    """Verifies the tokens of one external issuer.

    Args:
        trust: whose, and what for.
        http: asks for the keys; None: a client that trusts what `SSL_CERT_FILE` or `SSL_CERT_DIR` name, else the
            usual authorities.
        clock: any clock in seconds that does not jump; measures the age of keys.

    Raises:
        StartupError: the URL is not https, the issuer's name is ours, or the authorities' file cannot be read.
    """

    def __init__(
        self, trust: Trust, *, http: httpx.AsyncClient | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not _is_https(trust.jwks_url):
            raise StartupError("EDGE_JWKS_URL must be an https:// address: who can change these keys can be anybody")
        if trust.issuer == OWN_ISSUER:
            raise StartupError(f"EDGE_JWT_ISSUER must not be {OWN_ISSUER}: this edge's own tokens have that name")
        self._trust = trust
        self._owns_http = http is None
        self._http = http or _client()
        self._keys = IssuerKeys(trust.jwks_url, trust.algorithm, self._http, clock)

    @property
    def issuer(self) -> str:
        """The `iss` of its tokens."""
        return self._trust.issuer

    async def verify(self, token: str) -> Principal:
        """Who a token was issued to.

        Raises:
            TokenExpiredError: it was valid once.
            UnauthenticatedError: it is not a token of this issuer for this edge.
            IssuerUnavailableError: no keys are known, and none can be fetched.
        """
        header = tokens.header_of(token)
        algorithm = header.get("alg")
        if algorithm not in get_args(Algorithm):
            raise UnauthenticatedError("the token's algorithm is not taken")
        # Of the header nothing else counts: `jwk`, `jku`, `x5c` and `x5u` would let a token bring its own key.
        key = await self._keys.find(header.get("kid"))
        if key is None or key.algorithm != algorithm:
            raise UnauthenticatedError("no key of the issuer verifies the token")
        names = {"issuer": self.issuer, "audience": self._trust.audience}
        claims = tokens.claims_of(token, key.public, key.algorithm, required=("iss", "aud", "sub", "exp"), **names)
        principal = self._principal(claims)
        tokens.check_times(claims, now_s=time.time(), leeway_s=LEEWAY_S)
        return principal

    async def close(self) -> None:
        """Stop fetching, and close what this object opened."""
        await self._keys.close()
        if self._owns_http:
            await self._http.aclose()

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        names = self._trust.claims
        subject = tokens.text_of(claims, "sub", tokens.MAX_SUBJECT_CHARS)
        # A null claim is one of a wrong type: taken as absent it would stand for a tenant or scopes nobody gave.
        tenant = tokens.text_of({names.tenant: DEFAULT_TENANT, **claims}, names.tenant, tokens.MAX_TENANT_CHARS)
        groups = tokens.names_of({names.groups: [], **claims}, names.groups)
        scopes = tokens.names_of({names.scope: self._trust.default_scope, **claims}, names.scope)
        user_id = tokens.user_id_of(self.issuer, subject)
        return Principal(user_id, self.issuer, subject, tenant, groups, frozenset(scopes))


def _is_https(url: str) -> bool:
    try:
        return httpx.URL(url).scheme == "https" and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _client() -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(timeout=FETCH_TIMEOUT_S)
    except OSError as err:
        raise StartupError("SSL_CERT_FILE or SSL_CERT_DIR names no certificates that can be read") from err
