"""Tokens of an external issuer, verified with the keys that it publishes as a JSON Web Key Set (RFC 7517).

Better Auth works as it is: EdDSA, the base URL as issuer and audience, no `scope` claim.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from edge_api.auth import tokens
from edge_api.auth.schemas import DEFAULT_TENANT, OWN_ISSUER, Principal
from edge_api.errors import IssuerUnavailableError, StartupError, UnauthenticatedError

log = logging.getLogger(__name__)

Algorithm: TypeAlias = Literal["RS256", "ES256", "EdDSA"]

# What a key can do follows from its type and curve: of each type one algorithm is taken.
ALGORITHMS: Final[Sequence[tuple[tuple[object, object], Algorithm]]] = (
    (("RSA", None), "RS256"),
    (("EC", "P-256"), "ES256"),
    (("OKP", "Ed25519"), "EdDSA"),
)

FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 262_144
MAX_KEYS = 32
MAX_KID_CHARS = 255
# Less than 2048 bits is too weak (NIST SP 800-131A); more than 8192 only makes verifying slow.
RSA_BITS = range(2_048, 8_193)

FRESH_S = 3_600.0
"""A set younger than this is used without asking; keys that the issuer withdraws are taken for that long."""
STALE_S = 86_400.0
"""A set older than this is never used."""
RETRY_S = 10.0
"""From one attempt to fetch to the next where they fail."""
UNKNOWN_KID_S = 60.0
"""How often, at most, tokens that name an unknown key make this edge ask for new ones."""

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


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the issuer: `public` is of the `cryptography` type that `algorithm` wants."""

    kid: str | None
    algorithm: Algorithm
    public: Any


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
        self._keys = _Keys(trust, self._http, clock)

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


class _Keys:
    """The issuer's keys as last seen. Callers that need them at the same time share one fetch."""

    def __init__(self, trust: Trust, http: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self._url = trust.jwks_url
        self._algorithm = trust.algorithm
        self._http = http
        self._clock = clock
        self._keys: tuple[Key, ...] = ()
        self._fetched_s = self._tried_s = self._asked_unknown_s = -math.inf
        self._failing = False
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Key | None:
        """The key of a token that names `kid`, or names none: then the only key there is."""
        before = self._fetch
        await self._refresh()
        key = self._pick(kid)
        # Not again where this very call has brought the newest set.
        if key is not None or kid is None or self._fetch is not before:
            return key
        if not self._running and self._clock() - self._asked_unknown_s >= UNKNOWN_KID_S:
            self._asked_unknown_s = self._clock()
            self._start()
        if fetch := self._running:
            await _end_of(fetch)
        return self._pick(kid)

    async def close(self) -> None:
        if fetch := self._running:
            fetch.cancel()
            await asyncio.wait({fetch})

    @property
    def _running(self) -> asyncio.Task[None] | None:
        return None if self._fetch is None or self._fetch.done() else self._fetch

    def _age_s(self) -> float:
        return self._clock() - self._fetched_s

    def _pick(self, kid: str | None) -> Key | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == kid), None)

    async def _refresh(self) -> None:
        if self._age_s() < FRESH_S:
            return
        fetch = self._running
        if not fetch and self._clock() - self._tried_s >= RETRY_S:
            fetch = self._start()
        # An issuer known to be away does not delay anybody while there are keys to go on with.
        if fetch and not (self._failing and self._age_s() < STALE_S):
            await _end_of(fetch)
        if self._age_s() >= STALE_S:
            raise IssuerUnavailableError("the keys of the token's issuer cannot be fetched")

    def _start(self) -> asyncio.Task[None]:
        self._tried_s = self._clock()
        self._fetch = asyncio.create_task(self._load(self._tried_s))
        return self._fetch

    async def _load(self, asked_s: float) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                body = await self._get()
            self._keys = _keys_in(body, self._algorithm)
        except (httpx.HTTPError, OSError, ValueError, RecursionError) as err:
            self._failing = True
            why = {"error": type(err).__name__, "reason": str(err)[:200]}
            log.warning("the keys of the external issuer cannot be fetched", extra=why)
            return
        self._failing = False
        self._fetched_s = asked_s
        if not self._keys:
            # Believed: an issuer may withdraw all of them.
            log.warning("the external issuer publishes no key that can be used")

    async def _get(self) -> bytes:
        # Not compressed, so that no chunk is larger than what came over the wire.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with self._http.stream("GET", self._url, headers=headers, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"the status is {response.status_code}")
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("the set is too large")
            return body


async def _end_of(fetch: "asyncio.Task[None]") -> None:
    """Wait without owning: who is cancelled meanwhile does not cancel the fetch for the others."""
    await asyncio.wait({fetch})
    if not fetch.cancelled():
        fetch.result()


def _keys_in(body: bytes, only: Algorithm | None) -> tuple[Key, ...]:
    """The usable keys of a set; those that are not are skipped.

    Raises:
        ValueError, RecursionError: it is not a set of at most 32 keys.
    """
    document = json.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ValueError("not a set of keys")
    found = (_key(entry) for entry in entries if isinstance(entry, dict))
    return tuple(key for key in found if key is not None and only in {None, key.algorithm})


def _key(entry: dict[str, Any]) -> Key | None:
    """A key that verifies signatures; None for any other."""
    kty, crv, kid = entry.get("kty"), entry.get("crv"), entry.get("kid")
    kind = (kty, None if kty == "RSA" else crv)
    # Compared, not looked up: what came need not be hashable.
    algorithm = next((algorithm for known, algorithm in ALGORITHMS if kind == known), None)
    if algorithm is None or not (kid is None or (isinstance(kid, str) and len(kid) <= MAX_KID_CHARS)):
        return None
    # "d": a private key that everybody can read vouches for nobody.
    if entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        public = jwt.PyJWK(entry, algorithm).key
    except jwt.PyJWTError:
        return None
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        return None
    return Key(kid, algorithm, public)


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
