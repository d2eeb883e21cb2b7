"""The word of this edge for its callers: a short-lived token that the agent service verifies."""

import base64
import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edge_api.errors import StartupError

ISSUER = "answerdesk-edge"
AUDIENCE = "answerdesk-agent"
TTL_S = 60.0

DEFAULT_TENANT = "default"
"""Whose caller the agent service takes one without a token for."""

SIGNING_KEY_FILE = "agent-signing-key.pem"
"""Where `make run` keeps its key, under the edge's data directory."""

VARIABLE = "EDGE_AGENT_SIGNING_KEY"
# 32 bytes in base64 or base64url.
SEED = re.compile(r"[A-Za-z0-9+/_-]{43}=?")
MAX_FILE_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf the edge calls: verified by the edge, believed by the agent service."""

    subject: str
    tenant: str
    groups: tuple[str, ...] = ()


class CallerSigner:
    r"""Vouches for callers with an Ed25519 key, whose public half the agent service has.

    Args:
        private_key_text: PEM (newlines may be written as `\n`), the path of a PEM file, or the 32 bytes of the seed in
            base64 or base64url.
        clock: Unix time in seconds.

    Attributes:
        key_id: names the key: the first 16 characters of its thumbprint (RFC 7638, RFC 8037).

    Raises:
        StartupError: it is not an unencrypted private Ed25519 key. The text names the variable and quotes nothing.
    """

    def __init__(self, private_key_text: str, *, clock: Callable[[], float] = time.time) -> None:
        self._key = _private_key(private_key_text.strip())
        self._clock = clock
        self.key_id = _thumbprint(self._key)[:16]

    def sign(self, caller: Caller, *, ttl_s: float = TTL_S) -> str:
        """A token for one call, valid for `ttl_s` seconds (rounded up to whole ones)."""
        now_s = int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": caller.subject,
            "tenant": caller.tenant,
            "groups": list(caller.groups),
            "iat": now_s,
            "exp": now_s + math.ceil(ttl_s),
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.key_id})

    def public_key_pem(self) -> str:
        """What the agent service verifies with (`AGENT_VERIFY_KEY`)."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def generate_signing_key() -> str:
    """A new private key, in PEM (PKCS #8)."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _private_key(text: str) -> Ed25519PrivateKey:
    if "-----BEGIN" in text:
        return _from_pem(text.replace("\\n", "\n"))
    # Some paths look like a seed, too; no seed is the path of a file that is there.
    if SEED.fullmatch(text) and not Path(text).is_file():
        seed = base64.urlsafe_b64decode(text.rstrip("=").replace("+", "-").replace("/", "_") + "=")
        return Ed25519PrivateKey.from_private_bytes(seed)
    try:
        with Path(text).open("rb") as file:
            return _from_pem(file.read(MAX_FILE_BYTES).decode())
    except (OSError, ValueError) as err:
        raise StartupError(
            f"{VARIABLE} is neither a private key (PEM, or 32 bytes in base64) nor the path of a PEM file that can be "
            "read; make a key with: openssl genpkey -algorithm ed25519"
        ) from err


def _from_pem(pem: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except TypeError as err:
        raise StartupError(f"{VARIABLE} is encrypted; give the key without a passphrase") from err
    except (ValueError, UnsupportedAlgorithm) as err:
        what = "is a public key; give the private one" if "PUBLIC KEY" in pem else "is not a private key in PEM"
        raise StartupError(f"{VARIABLE} {what}") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise StartupError(f"{VARIABLE} is not an Ed25519 key; make one with: openssl genpkey -algorithm ed25519")
    return key


def _thumbprint(key: Ed25519PrivateKey) -> str:
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    # The members that RFC 8037, section 2, requires, in the order and without the spaces of RFC 7638, section 3.
    members = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": _base64url(public)}, separators=(",", ":"))
    return _base64url(hashlib.sha256(members.encode()).digest())


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
