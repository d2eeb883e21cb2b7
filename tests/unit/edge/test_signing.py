"""The edge's word for its callers, as the agent service will check it."""

import base64
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from edge_api.agent_client.signing import Caller, CallerSigner, generate_signing_key
from edge_api.errors import StartupError

# The example key of RFC 8037, appendix A, and its thumbprint (A.3).
SEED = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(SEED + "="))
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
ENCRYPTED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")).decode()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
OTHER = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

ADA = Caller("d0c9b2a6-6f0c-4a6e-9d4f-3f8f3c1f2b11", "acme", ("staff", "zürich"))


def test_a_token_says_who_calls_for_a_minute() -> None:
    signer = CallerSigner(PEM, clock=lambda: 1_000.9)

    token = signer.sign(ADA)

    options = {"verify_exp": False}
    claims = jwt.decode(token, signer.public_key_pem(), ["EdDSA"], options, audience="answerdesk-agent")  # type: ignore[arg-type]
    assert len(claims.pop("jti")) == 32
    assert claims == {
        "iss": "answerdesk-edge",
        "aud": "answerdesk-agent",
        "sub": ADA.subject,
        "tenant": "acme",
        "groups": ["staff", "zürich"],
        "iat": 1_000,
        "exp": 1_060,
    }
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": THUMBPRINT[:16], "typ": "JWT"}


def test_a_token_may_be_made_for_longer_and_no_two_are_the_same() -> None:
    signer = CallerSigner(SEED)

    first, second = (jwt.decode(signer.sign(ADA, ttl_s=0.5), options={"verify_signature": False}) for _ in range(2))

    assert first["exp"] - first["iat"] == 1
    assert first["jti"] != second["jti"]


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        PEM.replace("\n", "\\n"),
        PEM.replace("\n", "\r\n"),
        f"  {PEM}\n",
        SEED,
        f"{SEED}=",
        f"{SEED}=\n",
        SEED.replace("_", "/"),
    ],
)
def test_a_key_may_be_written_in_many_ways(text: str) -> None:
    signer = CallerSigner(text)

    assert signer.public_key_pem() == PUBLIC
    assert signer.key_id == THUMBPRINT[:16]


@pytest.mark.parametrize("name", ["edge key.pem", "a" * 43])
def test_a_key_may_be_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text(PEM)
    monkeypatch.chdir(tmp_path)  # the name alone, so that the second one looks like a seed

    assert CallerSigner(name).public_key_pem() == PUBLIC


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "neither a private key"),
        (SEED[:42], "neither a private key"),
        ("/nonexistent/key.pem", "neither a private key"),
        ("x" * 5_000, "neither a private key"),
        ("\x00", "neither a private key"),
        ("/", "neither a private key"),
        (PUBLIC, "is a public key"),
        (ENCRYPTED, "is encrypted"),
        (OTHER.decode(), "not an Ed25519 key"),
        (PEM.replace("MC4C", "AAAA"), "not a private key in PEM"),
        ("-----BEGIN PRIVATE KEY-----", "not a private key in PEM"),
        ("-----BEGIN PRIVATE KEY-----\udcff", "not a private key in PEM"),
    ],
)
def test_anything_else_is_refused_and_not_quoted(text: str, what: str) -> None:
    with pytest.raises(StartupError, match=rf"^EDGE_AGENT_SIGNING_KEY .*{what}") as raised:
        CallerSigner(text)

    assert len(text) < 10 or text not in str(raised.value)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"\xff" * 100)

    with pytest.raises(StartupError, match="EDGE_AGENT_SIGNING_KEY"):
        CallerSigner(str(path))


def test_a_new_key_is_one_that_signs() -> None:
    first, second = generate_signing_key(), generate_signing_key()

    assert first != second
    assert CallerSigner(first).key_id != CallerSigner(second).key_id
