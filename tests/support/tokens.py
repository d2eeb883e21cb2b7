"""Internal tokens, as the edge makes them, and the keys to sign and verify them."""

import time
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

AUDIENCE = "answerdesk-agent"
LIFE_S = 60


def key_pair() -> tuple[str, str]:
    """A new pair of Ed25519 keys: the private PEM, the public PEM."""
    private = Ed25519PrivateKey.generate()
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private_pem.decode(), public_pem.decode()


def internal_token(
    private_pem: str, *, subject: str, tenant: str = "default", groups: Sequence[str] = (), **changes: Any
) -> str:
    """A token that the agent service takes, but for `changes`: claims by name; None leaves a claim out."""
    now = int(time.time())
    claims = {
        "aud": AUDIENCE,
        "sub": subject,
        "tenant": tenant,
        "groups": list(groups),
        "iat": now,
        "exp": now + LIFE_S,
    } | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, private_pem, "EdDSA")
