"""The edge's own access tokens, and which verifier a token goes to."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_api.auth.schemas import OWN_ISSUER, Principal, UserId
from edge_api.auth.tokens import AUDIENCE, MAX_TOKEN_CHARS, OwnTokens, Verifier, user_id_of
from edge_api.errors import TokenExpiredError, UnauthenticatedError
from tests.support.jwks_server import signing_key

SECRET = "nK7v-2pQ9x_ZrT4wLm8cYb1GfHs6DjEa"
NOW_S = 1_000_000.25
USER = UserId("d0c9b2a6-6f0c-4a6e-9d4f-3f8f3c1f2b11")
ADA = Principal(USER, OWN_ISSUER, USER, "acme", ("staff", "zürich"), frozenset({"chat", "documents:write"}))

HEADER = {"alg": "HS256", "typ": "at+jwt"}
CLAIMS = {
    "iss": "answerdesk",
    "aud": "answerdesk-edge",
    "sub": USER,
    "tenant": "acme",
    "groups": ["staff", "zürich"],
    "scope": "chat documents:write",
    "iat": 1_000_000,
    "exp": 1_000_901,
    "jti": "1",
}

NESTED = b"[" * 5_000


def tokens(now_s: float = NOW_S) -> OwnTokens:
    return OwnTokens(SECRET, ttl_s=900, clock=lambda: now_s)


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def signed(
    claims: Mapping[str, Any] | bytes = CLAIMS,
    header: Mapping[str, Any] | bytes = HEADER,
    secret: bytes = SECRET.encode(),
) -> str:
    """A token by hand: PyJWT would refuse to make most of these."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims)]
    content = ".".join(map(base64url, parts))
    return f"{content}.{base64url(hmac.digest(secret, content.encode(), hashlib.sha256))}"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def test_a_token_brings_back_the_user_it_was_issued_to() -> None:
    assert tokens().verify(tokens().issue(ADA)) == ADA


def test_a_token_made_by_hand_as_documented_is_taken() -> None:
    assert tokens().verify(signed()) == ADA


def test_a_token_says_what_it_is_and_what_it_allows() -> None:
    token = tokens().issue(ADA)

    assert jwt.get_unverified_header(token) == HEADER
    claims = jwt.decode(token, options={"verify_signature": False})
    assert len(claims["jti"]) == 32
    assert claims | {"jti": "1"} == CLAIMS


def test_only_guests_are_called_guests() -> None:
    guest = Principal(USER, OWN_ISSUER, USER, scopes=frozenset(), guest=True)
    token = tokens().issue(guest)

    assert tokens().verify(token) == guest
    assert jwt.decode(token, options={"verify_signature": False})["guest"] is True


@pytest.mark.parametrize("after_s", [0, 899.9, 900.7])
def test_a_token_is_valid_for_its_time(after_s: float) -> None:
    assert tokens(NOW_S + after_s).verify(tokens().issue(ADA)) == ADA


def test_a_token_expires() -> None:
    with pytest.raises(TokenExpiredError):
        tokens(NOW_S + 901).verify(tokens().issue(ADA))


def test_a_token_may_be_made_for_a_shorter_time() -> None:
    with pytest.raises(TokenExpiredError):
        tokens(NOW_S + 11).verify(tokens().issue(ADA, ttl_s=10))


def test_a_token_of_an_edge_whose_clock_is_ahead_is_taken() -> None:
    assert tokens(NOW_S - 60).verify(tokens().issue(ADA)) == ADA


def test_an_expired_token_of_somebody_else_is_only_invalid() -> None:
    with pytest.raises(UnauthenticatedError) as raised:
        tokens(NOW_S + 901).verify(signed(secret=b"another secret of 32 bytes ......"))

    assert not isinstance(raised.value, TokenExpiredError)


REFUSED: Mapping[str, str] = {
    "nothing": "",
    "dots": "..",
    "not base64": "a.b.c",
    "no signature": signed().rpartition(".")[0],
    "an empty signature": signed().rpartition(".")[0] + ".",
    "a changed payload": signed().replace(".", ".A", 1),
    "another secret": signed(secret=b"another secret of 32 bytes ......"),
    "an empty secret": signed(secret=b""),
    "no algorithm": signed(header={"typ": "at+jwt"}),
    "alg none": signed(header=HEADER | {"alg": "none"}).rpartition(".")[0] + ".",
    "alg None, signed": signed(header=HEADER | {"alg": "None"}),
    "alg HS512": jwt.encode(CLAIMS, SECRET * 2, algorithm="HS512", headers={"typ": "at+jwt"}),
    "alg of a key": signing_key("EdDSA").token(CLAIMS, typ="at+jwt"),
    "alg a list": signed(header=HEADER | {"alg": ["HS256"]}),
    "typ JWT": signed(header=HEADER | {"typ": "JWT"}),
    "no typ": signed(header={"alg": "HS256"}),
    "typ a number": signed(header=HEADER | {"typ": 1}),
    "kid a number": signed(header=HEADER | {"kid": 1}),
    "crit": signed(header=HEADER | {"crit": ["exp"], "exp": 1}),
    "crit that PyJWT takes": signed(header=HEADER | {"crit": ["b64"], "b64": True}),
    "crit empty": signed(header=HEADER | {"crit": []}),
    "b64": signed(header=HEADER | {"b64": False}),
    "header a list": signed(header=b"[]"),
    "header not UTF-8": signed(header=b"\xff\xfe{"),
    "header nested": signed(header=NESTED),
    "payload a list": signed(b"[]"),
    "payload not UTF-8": signed(b'{"iss": "\xff"}'),
    "payload nested": signed(NESTED),
    "payload nested deep within": signed(json.dumps(CLAIMS)[:-1].encode() + b', "x": ' + NESTED),
    "a number of many digits": signed(json.dumps(without("exp"))[:-1].encode() + b', "exp": ' + b"9" * 4_999 + b"}"),
    "too long": signed(CLAIMS | {"x": "x" * MAX_TOKEN_CHARS}),
    "not ASCII": signed() + "é",
    "half a pair": "\ud800" + signed(),
    "another issuer": signed(CLAIMS | {"iss": "https://issuer.example"}),
    "issuer a list": signed(CLAIMS | {"iss": ["answerdesk"]}),
    "another audience": signed(CLAIMS | {"aud": "answerdesk-agent"}),
    "audience an object": signed(CLAIMS | {"aud": {AUDIENCE: 1}}),
    "not valid yet": signed(CLAIMS | {"nbf": NOW_S + 1}),
    "nbf a string": signed(CLAIMS | {"nbf": "0"}),
    **{f"{name} missing": signed(without(name)) for name in CLAIMS},
    **{f"{name} null": signed(CLAIMS | {name: None}) for name in CLAIMS},
    **{f"{name} an object": signed(CLAIMS | {name: {}}) for name in CLAIMS if name != "iat"},
    **{f"exp {value}": signed(CLAIMS | {"exp": value}) for value in ("9999999999", True, -1, [1])},
    "exp infinite": signed(CLAIMS | {"exp": float("inf")}),
    "exp not a number": signed(CLAIMS | {"exp": float("nan")}),
    "exp in a million years": signed(CLAIMS | {"exp": 10**400}),
    "sub empty": signed(CLAIMS | {"sub": ""}),
    "sub long": signed(CLAIMS | {"sub": "x" * 256}),
    "sub with NUL": signed(CLAIMS | {"sub": "a\x00"}),
    "sub half a pair": signed(CLAIMS | {"sub": "\ud800"}),
    "tenant empty": signed(CLAIMS | {"tenant": ""}),
    "tenant long": signed(CLAIMS | {"tenant": "x" * 129}),
    "tenant of two lines": signed(CLAIMS | {"tenant": "a\nb"}),
    "groups of numbers": signed(CLAIMS | {"groups": [1]}),
    "group empty": signed(CLAIMS | {"groups": [""]}),
    "group long": signed(CLAIMS | {"groups": ["x" * 129]}),
    "groups many": signed(CLAIMS | {"groups": [f"g{number}" for number in range(65)]}),
    "group half a pair": signed(CLAIMS | {"groups": ["\udfff"]}),
    "scope a number": signed(CLAIMS | {"scope": 1}),
    "guest a string": signed(CLAIMS | {"guest": "false"}),
    "guest a number": signed(CLAIMS | {"guest": 1}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_token_is_refused_and_not_quoted(case: str) -> None:
    token = REFUSED[case]

    with pytest.raises(UnauthenticatedError) as raised:
        tokens().verify(token)

    assert not isinstance(raised.value, TokenExpiredError)
    assert len(str(raised.value)) < 80
    assert not token or token not in str(raised.value)


@given(st.text() | st.binary().map(lambda value: value.decode("latin-1")) | st.text("abcABC012-_=.", max_size=60))
def test_no_text_is_more_than_unauthenticated(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens().verify(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*CLAIMS, "nbf", "guest"]), JSON),
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), JSON),
)
def test_no_claims_however_signed_are_more_than_unauthenticated(claims: dict[str, Any], header: dict[str, Any]) -> None:
    for token in (signed(CLAIMS | claims), signed(CLAIMS | claims, HEADER | header)):
        try:
            principal = tokens().verify(token)
        except UnauthenticatedError:
            continue
        assert principal.subject == (CLAIMS | claims)["sub"]


class Elsewhere:
    """An external issuer that takes everything."""

    issuer = "https://issuer.example"

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def verify(self, token: str) -> Principal:
        self.seen.append(token)
        return Principal(user_id_of(self.issuer, "ada"), self.issuer, "ada")


async def test_a_token_goes_to_the_issuer_it_names() -> None:
    external = Elsewhere()
    verifier = Verifier(tokens(), external)
    theirs = signing_key("ES256").token({"iss": external.issuer})

    assert (await verifier.verify(theirs)).subject == "ada"
    assert await verifier.verify(tokens().issue(ADA)) == ADA
    assert external.seen == [theirs]


@pytest.mark.parametrize(
    "issuer", ["https://other.example", "https://issuer.example/", None, ["https://issuer.example"]]
)
@pytest.mark.parametrize("external", [Elsewhere(), None])
async def test_a_token_of_an_unknown_issuer_is_refused(external: Elsewhere | None, issuer: object) -> None:
    with pytest.raises(UnauthenticatedError):
        await Verifier(tokens(), external).verify(signed(CLAIMS | {"iss": issuer}))

    assert external is None or external.seen == []


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 10_000, "\ud800", signed(NESTED), signed(b"\xff"), signed(b"[]")])
async def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await Verifier(tokens(), Elsewhere()).verify(token)


@given(st.text() | st.text("abcABC012-_=.", max_size=60))
async def test_no_text_is_more_than_unauthenticated_to_the_verifier(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await Verifier(tokens(), Elsewhere()).verify(text)


def test_without_a_clock_it_is_now() -> None:
    real = OwnTokens(SECRET, ttl_s=60)

    claims = jwt.decode(real.issue(ADA), options={"verify_signature": False})

    assert real.verify(real.issue(ADA)) == ADA
    assert abs(claims["iat"] - time.time()) < 10


def test_an_external_user_is_issuer_and_subject_for_ever() -> None:
    assert user_id_of("https://issuer.example", "ada") == "225d93ae-9d12-57b0-ae15-57ed4a77424a"
    assert user_id_of("https://issuer.example", "bob") != user_id_of("https://issuer.example", "ada")
    assert user_id_of("https://other.example", "ada") != user_id_of("https://issuer.example", "ada")
