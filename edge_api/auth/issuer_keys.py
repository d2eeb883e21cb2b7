"""The keys that an external issuer publishes as a JSON Web Key Set (RFC 7517): fetched, kept fresh, bounded."""

import asyncio
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from edge_api.errors import IssuerUnavailableError

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


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the issuer: `public` is of the `cryptography` type that `algorithm` wants."""

    kid: str | None
    algorithm: Algorithm
    public: Any


class IssuerKeys:
    """The issuer's keys as last seen. Callers that need them at the same time share one fetch."""

    def __init__(self, url: str, only: Algorithm | None, http: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        """`only`: the algorithm of the keys that are taken; None: what each key is made for."""
        self._url = url
        self._algorithm = only
        self._http = http
        self._clock = clock
        self._keys: tuple[Key, ...] = ()
        self._fetched_s = self._tried_s = self._asked_unknown_s = -math.inf
        self._failing = False
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Key | None:
        """The key of a token that names `kid`, or names none: then the only key there is.

        Raises:
            IssuerUnavailableError: no keys are known, and none can be fetched.
        """
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
        """Stop fetching."""
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
