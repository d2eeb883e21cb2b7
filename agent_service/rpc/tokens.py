"""Who calls, by the edge's internal token. Only public keys come here: who has them can verify, not sign."""

import base64
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field

from agent_service.errors import StartupError, UnauthenticatedError
from agent_service.types import Caller

AUDIENCE = "answerdesk-agent"

LEEWAY_S = 30
"""How far the clocks of edge and agent may be apart."""

MAX_TOKEN_BYTES = 24 * 1024
"""More than the edge can ever need: its own callers' tokens have 8 KiB, of which groups with names beyond ASCII become
three times as much here. `server.OPTIONS` lets that much metadata in."""

MAX_KEYS = 8
"""A token is tried against every key (0.1 ms each): two while keys are changed, some more for several edges."""

_BEGIN = "-----BEGIN"
_RAW = re.compile(r"([A-Za-z0-9+/_-]{43})=?")
_STANDARD_ALPHABET = str.maketrans("-_", "+/")


class _Claims(BaseModel):
    """What a token says. Strict: nothing is made to fit."""

    model_config = ConfigDict(strict=True)

    sub: Annotated[str, Field(min_length=1, max_length=256)]
    tenant: Annotated[str, Field(min_length=1, max_length=128)] = "default"
    groups: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=64)] = []
    # Their values are checked before; PyJWT takes "1" and true for numbers.
    exp: Annotated[float, Field(allow_inf_nan=False)]
    iat: Annotated[float, Field(allow_inf_nan=False)]


class TokenVerifier:
    """Verifies internal tokens: Ed25519, for this service, and of now."""

    def __init__(self, verify_key: str) -> None:
        """Take the keys, any one of which may have signed a token.

        Args:
            verify_key: one or more public keys as PEM, in one line with backslash-n also, or the base64 of the raw
                32 bytes of one; or the path of a file that holds such.

        Raises:
            StartupError: that is no Ed25519 public key, or a private one, or more than 8.
        """
        self._keys = _public_keys(verify_key)

    def verify(self, token: str) -> Caller:
        """Who calls.

        Raises:
            UnauthenticatedError: the token has expired or is not valid; it is not quoted.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise UnauthenticatedError(f"the token is longer than {MAX_TOKEN_BYTES:,} bytes")
        try:
            claims = _Claims.model_validate(self._decode(token))
        except jwt.ExpiredSignatureError as err:
            raise UnauthenticatedError("the token has expired") from err
        except (jwt.PyJWTError, ValueError) as err:
            raise UnauthenticatedError("the token is not valid") from err
        return Caller(claims.sub, claims.tenant, tuple(claims.groups))

    def _decode(self, token: str) -> dict[str, Any]:
        *others, last = self._keys
        for key in others:
            with suppress(jwt.InvalidSignatureError):
                return _decode(token, key)
        return _decode(token, last)


def _decode(token: str, key: Ed25519PublicKey) -> dict[str, Any]:
    # The list of algorithms is what keeps a public key from being taken for the secret of an HMAC.
    return jwt.decode(
        token,
        key,
        algorithms=["EdDSA"],
        audience=AUDIENCE,
        leeway=LEEWAY_S,
        options={"require": ["exp", "iat", "sub"], "strict_aud": True},
    )


def _public_keys(setting: str) -> list[Ed25519PublicKey]:
    keys = _keys_in(setting) or _keys_in(_content(setting))
    if not keys:
        raise StartupError(
            "AGENT_VERIFY_KEY: its file holds no public key; give one as PEM (-----BEGIN PUBLIC KEY-----)"
        )
    if len(keys) > MAX_KEYS:
        raise StartupError(f"AGENT_VERIFY_KEY: holds {len(keys)} keys, at most {MAX_KEYS} are taken")
    return keys


def _keys_in(text: str) -> list[Ed25519PublicKey]:
    """The keys that a text spells out; none where it is something else, such as a path."""
    text = text.replace("\\n", "\n").strip()
    if _BEGIN in text:
        return [_from_pem(_BEGIN + block) for block in text.split(_BEGIN)[1:]]
    if raw := _RAW.fullmatch(text):
        return [Ed25519PublicKey.from_public_bytes(base64.b64decode(raw[1].translate(_STANDARD_ALPHABET) + "="))]
    return []


def _from_pem(block: str) -> Ed25519PublicKey:
    if "PRIVATE KEY-----" in block:
        raise StartupError(
            "AGENT_VERIFY_KEY: holds a private key, which belongs to the edge alone; give the public one "
            "(openssl pkey -in edge-signing.pem -pubout)"
        )
    try:
        key = load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm) as err:
        raise StartupError("AGENT_VERIFY_KEY: holds something that is no public key in PEM") from err
    if not isinstance(key, Ed25519PublicKey):
        raise StartupError("AGENT_VERIFY_KEY: holds a public key of another kind than Ed25519")
    return key


def _content(path: str) -> str:
    try:
        return Path(path.strip()).read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        # Never its value: it may be a private key in a spelling that is not known here.
        raise StartupError("AGENT_VERIFY_KEY: is neither an Ed25519 public key nor a file that can be read") from err
