"""The edge's internal tokens: who is believed, and which spellings of a key are understood."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from agent_service.errors import StartupError, UnauthenticatedError
from agent_service.rpc.tokens import MAX_KEYS, MAX_TOKEN_BYTES, TokenVerifier
from agent_service.types import Caller
from tests.support.tokens import AUDIENCE, internal_token, key_pair

PRIVATE, PUBLIC = key_pair()
OTHER_PRIVATE, OTHER_PUBLIC = key_pair()


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier(PUBLIC)


def token(**changes: Any) -> str:
    return internal_token(PRIVATE, **({"subject": "ada", "tenant": "acme", "groups": ("staff",)} | changes))


def encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: object, payload: object) -> str:
    """Truly signed, whatever it says."""
    private: Any = serialization.load_pem_private_key(PRIVATE.encode(), None)
    signing_input = f"{encoded(header)}.{encoded(payload)}"
    return f"{signing_input}.{encoded(private.sign(signing_input.encode()))}"


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 60} | changes


def hmac_with_the_public_key() -> str:
    # PyJWT refuses to sign with a key in PEM; whoever attacks does not use PyJWT.
    header, payload = encoded({"alg": "HS256", "typ": "JWT"}), encoded(claims())
    algorithm = jwt.get_algorithm_by_name("HS256")
    return f"{header}.{payload}.{encoded(algorithm.sign(f'{header}.{payload}'.encode(), PUBLIC.encode()))}"


def resigned(**changes: Any) -> str:
    """A true signature under other claims."""
    header, _, signature = token().split(".")
    return f"{header}.{encoded(claims(**changes))}.{signature}"


# --- accepted ---


def test_a_token_says_who_calls(verifier: TokenVerifier) -> None:
    assert verifier.verify(token()) == Caller("ada", "acme", ("staff",))


def test_tenant_and_groups_may_be_left_out(verifier: TokenVerifier) -> None:
    assert verifier.verify(signed({"alg": "EdDSA"}, claims())) == Caller("ada", "default")


ACCEPTED: dict[str, Callable[[float], dict[str, Any]]] = {
    "expired within the leeway": lambda now: {"iat": now - 85, "exp": now - 25},
    "issued ahead within the leeway": lambda now: {"iat": now + 25, "exp": now + 85},
    "fractions of seconds": lambda now: {"iat": now + 0.5, "exp": now + 60.5},
    "claims that mean nothing here": lambda now: {"scope": ["*"], "jti": "1", "iss": "edge", "operator": True},
    "at the bounds": lambda now: {"sub": "s" * 256, "tenant": "t" * 128, "groups": ["g" * 64] * 63 + ["g" * 128]},
    "no groups": lambda now: {"groups": []},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_token_is_taken(verifier: TokenVerifier, case: str) -> None:
    changes = ACCEPTED[case](time.time())

    caller = verifier.verify(token(**changes))

    assert caller.subject == changes.get("sub", "ada")
    assert caller.tenant == changes.get("tenant", "acme")
    assert list(caller.groups) == changes.get("groups", ["staff"])


@pytest.mark.parametrize("header", [{"kid": "unknown"}, {"kid": ""}, {"jku": "https://evil.example/keys"}])
def test_headers_that_name_a_key_decide_nothing(header: dict[str, str]) -> None:
    one, two = TokenVerifier(PUBLIC), TokenVerifier(OTHER_PUBLIC + PUBLIC)

    for verifier in (one, two):
        assert verifier.verify(signed({"alg": "EdDSA"} | header, claims())).subject == "ada"


# --- refused ---

NOT_VALID: dict[str, Callable[[], str]] = {
    "another audience": lambda: token(aud="answerdesk-edge"),
    "no audience": lambda: token(aud=None),
    "several audiences": lambda: token(aud=[AUDIENCE, "x"]),
    "no exp": lambda: token(exp=None),
    "no iat": lambda: token(iat=None),
    "no sub": lambda: token(sub=None),
    "issued in the future": lambda: token(iat=time.time() + 40, exp=time.time() + 100),
    "not yet valid": lambda: token(nbf=time.time() + 40),
    "exp as text": lambda: token(exp=str(int(time.time()) + 60)),
    "exp as words": lambda: token(exp="never"),
    "exp without end": lambda: token(exp=float("inf")),
    "exp beyond all numbers": lambda: token(exp=10**4_000),
    "iat as truth": lambda: token(iat=True),
    "iat of nothing": lambda: token(iat=float("nan")),
    "sub empty": lambda: token(sub=""),
    "sub as number": lambda: signed({"alg": "EdDSA"}, claims(sub=7)),
    "sub too long": lambda: token(sub="s" * 257),
    "sub no text": lambda: token(sub="\ud800"),
    "tenant empty": lambda: token(tenant=""),
    "tenant too long": lambda: token(tenant="t" * 129),
    "tenant as list": lambda: token(tenant=["acme"]),
    "tenant null": lambda: signed({"alg": "EdDSA"}, claims(tenant=None)),
    "groups as text": lambda: signed({"alg": "EdDSA"}, claims(groups="staff")),
    "groups as object": lambda: signed({"alg": "EdDSA"}, claims(groups={"staff": True})),
    "groups null": lambda: signed({"alg": "EdDSA"}, claims(groups=None)),
    "group as number": lambda: token(groups=["staff", 1]),
    "group empty": lambda: token(groups=[""]),
    "group too long": lambda: token(groups=["g" * 129]),
    "too many groups": lambda: token(groups=["g"] * 65),
    "alg none": lambda: jwt.encode(claims(), "", "none"),
    "alg none, with a signature": lambda: signed({"alg": "none"}, claims()),
    "alg in other letters": lambda: signed({"alg": "eddsa"}, claims()),
    "alg missing": lambda: signed({"typ": "JWT"}, claims()),
    "alg as list": lambda: signed({"alg": ["EdDSA"]}, claims()),
    "alg HS256 under the public key": hmac_with_the_public_key,
    "alg ES256": lambda: jwt.encode(claims(), ec.generate_private_key(ec.SECP256R1()), "ES256"),
    "another key": lambda: internal_token(OTHER_PRIVATE, subject="ada"),
    "another curve": lambda: jwt.encode(claims(), ed448.Ed448PrivateKey.generate(), "EdDSA"),
    "a key that the token brings along": lambda: jwt.encode(
        claims(), OTHER_PRIVATE, "EdDSA", {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": _raw(OTHER_PUBLIC)}}
    ),
    "other claims under the signature": lambda: resigned(tenant="umbrella"),
    "signature cut": lambda: token()[:-4],
    "signature missing": lambda: token().rpartition(".")[0] + ".",
    "kid no text": lambda: signed({"alg": "EdDSA", "kid": 1}, claims()),
    "critical header": lambda: signed({"alg": "EdDSA", "crit": ["exp"], "exp": 1}, claims()),
    "payload elsewhere": lambda: signed({"alg": "EdDSA", "b64": False, "crit": ["b64"]}, b""),
    "payload no object": lambda: signed({"alg": "EdDSA"}, ["ada"]),
    "payload no JSON": lambda: signed({"alg": "EdDSA"}, b"\xff{"),
    "payload deep": lambda: signed({"alg": "EdDSA"}, b"[" * 5_000),
    "header deep": lambda: signed(b"[" * 5_000, claims()),
    "empty": lambda: "",
    "dots": lambda: "..",
    "garbage": lambda: "not a token",
    "not ASCII": lambda: "\u00e9.\ud800.\0",
}


def _raw(public_pem: str) -> str:
    key: Any = load_pem_public_key(public_pem.encode())
    return encoded(key.public_bytes_raw())


@pytest.mark.parametrize("case", NOT_VALID)
def test_a_token_is_refused(verifier: TokenVerifier, case: str) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        verifier.verify(NOT_VALID[case]())

    assert str(refused.value) == "the token is not valid"


def test_a_token_that_has_expired_is_told_so(verifier: TokenVerifier) -> None:
    with pytest.raises(UnauthenticatedError, match=r"^the token has expired$"):
        verifier.verify(token(exp=time.time() - 31))


def test_only_a_true_token_is_told_that_it_has_expired(verifier: TokenVerifier) -> None:
    with pytest.raises(UnauthenticatedError, match="not valid"):
        verifier.verify(internal_token(OTHER_PRIVATE, subject="ada", exp=1))


def test_a_token_beyond_8_kib_is_not_even_read(verifier: TokenVerifier) -> None:
    too_long = token(padding="x" * MAX_TOKEN_BYTES)

    with pytest.raises(UnauthenticatedError, match="longer than 24,576 bytes"):
        verifier.verify(too_long)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["exp", "iat", "nbf", "sub", "aud", "tenant", "groups", "jti", "iss"]), JSON))
def test_whatever_a_signed_token_says_it_is_taken_or_refused(changes: dict[str, Any]) -> None:
    try:
        caller = TokenVerifier(PUBLIC).verify(signed({"alg": "EdDSA"}, claims(**changes)))
    except UnauthenticatedError:
        return
    assert isinstance(caller.subject, str)
    assert 1 <= len(caller.subject) <= 256


@given(st.text(max_size=200))
def test_whatever_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        TokenVerifier(PUBLIC).verify(text)


# --- keys ---

SPELLINGS: dict[str, Callable[[], str]] = {
    "PEM": lambda: PUBLIC,
    "PEM without a last line end": PUBLIC.strip,
    "PEM in one line": lambda: PUBLIC.replace("\n", "\\n"),
    "PEM with line ends of Windows": lambda: PUBLIC.replace("\n", "\r\n"),
    "PEM below a comment": lambda: f"# of the edge\n{PUBLIC}",
    "base64": lambda: base64.b64encode(base64.urlsafe_b64decode(_raw(PUBLIC) + "=")).decode(),
    "base64url": lambda: _raw(PUBLIC),
    "base64url, filled up": lambda: f" {_raw(PUBLIC)}=\n",
    "two": lambda: OTHER_PUBLIC + PUBLIC,
    "two in one line": lambda: (PUBLIC + OTHER_PUBLIC).replace("\n", "\\n"),
    "as many as allowed": lambda: OTHER_PUBLIC * (MAX_KEYS - 1) + PUBLIC,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_is_understood(spelling: str) -> None:
    assert TokenVerifier(SPELLINGS[spelling]()).verify(token()).subject == "ada"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_in_a_file_is_understood(tmp_path: Path, spelling: str) -> None:
    path = tmp_path / "agent-verify.pem"
    path.write_text(SPELLINGS[spelling]())

    assert TokenVerifier(str(path)).verify(token()).subject == "ada"


def test_every_raw_key_is_understood_in_both_alphabets() -> None:
    for _ in range(50):
        private, public = key_pair()
        raw = _raw(public)
        for spelling in (raw, raw.replace("-", "+").replace("_", "/")):
            assert TokenVerifier(spelling).verify(internal_token(private, subject="ada")).subject == "ada"


def test_while_keys_change_tokens_of_both_are_taken_and_of_a_third_refused() -> None:
    third, _ = key_pair()
    verifier = TokenVerifier(PUBLIC + OTHER_PUBLIC)

    assert [verifier.verify(internal_token(key, subject="ada")).subject for key in (PRIVATE, OTHER_PRIVATE)] == [
        "ada",
        "ada",
    ]
    with pytest.raises(UnauthenticatedError, match="not valid"):
        verifier.verify(internal_token(third, subject="ada"))
    for key in (PRIVATE, OTHER_PRIVATE):
        with pytest.raises(UnauthenticatedError, match="expired"):
            verifier.verify(internal_token(key, subject="ada", exp=1))


def _pem(private: Any) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    text: str = private.public_key().public_bytes(encoding, form).decode()
    return text


NO_KEYS: dict[str, tuple[Callable[[], str], str]] = {
    "a private key": (lambda: PRIVATE, "private key, which belongs to the edge"),
    "a private key in one line": (lambda: PRIVATE.replace("\n", "\\n"), "private key"),
    "a private key behind a public one": (lambda: PUBLIC + PRIVATE, "private key"),
    "an encrypted private key": (lambda: PRIVATE.replace("PRIVATE", "ENCRYPTED PRIVATE"), "private key"),
    "another curve": (lambda: _pem(ed448.Ed448PrivateKey.generate()), "another kind"),
    "another kind": (lambda: _pem(ec.generate_private_key(ec.SECP256R1())), "another kind"),
    "a certificate": (lambda: PUBLIC.replace("PUBLIC KEY", "CERTIFICATE"), "no public key in PEM"),
    "PEM cut off": (lambda: PUBLIC[:60], "no public key in PEM"),
    "PEM of which the second is cut off": (lambda: PUBLIC + PUBLIC[:60], "no public key in PEM"),
    "PEM of garbage": (lambda: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no public key in PEM"),
    "PEM with no text in it": (lambda: PUBLIC.replace("M", "\udcff"), "no public key in PEM"),
    "too many": (lambda: PUBLIC * (MAX_KEYS + 1), "holds 9 keys, at most 8"),
    "no such file": (lambda: "/nowhere/agent-verify.pem", "neither an Ed25519 public key nor a file"),
    "no path": (lambda: "x" * 10_000, "neither"),
    "no text": (lambda: "\0", "neither"),
    "a folder": (lambda: "/", "neither"),
    "blank": (lambda: " ", "neither"),
    "a short raw key": (lambda: _raw(PUBLIC)[:-1], "neither"),
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_what_is_no_key_keeps_the_service_from_starting(case: str) -> None:
    make, says = NO_KEYS[case]

    with pytest.raises(StartupError, match=says) as refused:
        TokenVerifier(make())

    assert str(refused.value).startswith("AGENT_VERIFY_KEY: ")
    assert PRIVATE.splitlines()[1] not in str(refused.value)


@pytest.mark.parametrize(("content", "says"), [(b"", "no public key"), (b"key", "no public key"), (b"\xff", "neither")])
def test_a_file_without_a_key_keeps_the_service_from_starting(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "agent-verify.pem"
    path.write_bytes(content)

    with pytest.raises(StartupError, match=says):
        TokenVerifier(str(path))


def test_a_private_key_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edge-signing.pem"
    path.write_text(PRIVATE)

    with pytest.raises(StartupError, match="private key"):
        TokenVerifier(str(path))
