"""Tokens of an external issuer, whose keys come over real HTTPS."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edge_api.auth import issuer_keys
from edge_api.auth.issuer_keys import Algorithm
from edge_api.auth.jwks import ClaimNames, ExternalIssuer, Trust
from edge_api.auth.tokens import OwnTokens, Verifier, user_id_of
from edge_api.errors import IssuerUnavailableError, StartupError, TokenExpiredError, UnauthenticatedError
from tests.support.jwks_server import JwksServer, Reply, SigningKey, jwks_server, signing_key

ALGORITHMS: tuple[Algorithm, ...] = ("EdDSA", "ES256", "RS256")
FIRST, SECOND = signing_key(), signing_key(kid="second")
HOUR_S, DAY_S = 3_600, 86_400


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JwksServer]:
    with jwks_server(tmp_path_factory.mktemp("issuer")) as server:
        yield server


@pytest.fixture
def server(served: JwksServer) -> JwksServer:
    """The issuer, as if nobody had asked it yet."""
    served.keys = [FIRST.jwk()]
    served.reply = None
    served.paths.clear()
    return served


@pytest.fixture
async def http(server: JwksServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(verify=server.ssl_context(), trust_env=False) as http:
        yield http


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def issuer(server: JwksServer, http: httpx.AsyncClient, clock: Clock) -> AsyncIterator[ExternalIssuer]:
    issuer = ExternalIssuer(trust_in(server), http=http, clock=clock)
    yield issuer
    await issuer.close()


def trust_in(server: JwksServer, **changes: Any) -> Trust:
    return Trust(**({"jwks_url": server.url, "issuer": server.issuer, "audience": server.issuer} | changes))


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def signed_with(secret: bytes, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """An HMAC token by hand: PyJWT would not take a public key for the secret."""
    content = ".".join(base64url(json.dumps(each).encode()) for each in (header, claims))
    return f"{content}.{base64url(hmac.digest(secret, content.encode(), hashlib.sha256))}"


def signed_payload(payload: bytes, key: SigningKey = FIRST) -> str:
    header = {"alg": key.algorithm, "kid": key.kid}
    return jwt.api_jws.encode(payload, key.private, algorithm=key.algorithm, headers=header)


async def taken(issuer: ExternalIssuer, token: str) -> None:
    assert (await issuer.verify(token)).subject == "mXk2vT8w"


async def refused(issuer: ExternalIssuer, token: str) -> None:
    with pytest.raises(UnauthenticatedError) as raised:
        await issuer.verify(token)
    assert not isinstance(raised.value, TokenExpiredError)
    assert not token or token not in str(raised.value)


# What is taken


async def test_a_token_of_better_auth_is_taken_as_it_is(issuer: ExternalIssuer, server: JwksServer) -> None:
    entry = FIRST.jwk()
    assert set(entry) == {"kty", "crv", "x", "kid", "alg"}

    principal = await issuer.verify(FIRST.token(server.claims()))

    assert principal.user_id == user_id_of(server.issuer, "mXk2vT8w")
    assert (principal.issuer, principal.subject) == (server.issuer, "mXk2vT8w")
    assert (principal.tenant, principal.groups, principal.scopes) == ("default", (), frozenset({"chat"}))
    assert not principal.guest
    assert server.paths == ["/api/auth/jwks"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("alg", [True, False])
async def test_each_algorithm_is_taken_with_the_keys_made_for_it(
    server: JwksServer, http: httpx.AsyncClient, algorithm: Algorithm, pinned: bool, alg: bool
) -> None:
    key = signing_key(algorithm)
    server.keys = [key.jwk() if alg else key.jwk(alg=None, use="sig")]
    issuer = ExternalIssuer(trust_in(server, algorithm=algorithm if pinned else None), http=http)

    assert (await issuer.verify(key.token(server.claims()))).subject == "mXk2vT8w"


@pytest.mark.parametrize(
    ("claims", "tenant", "groups", "scopes"),
    [
        ({}, "default", (), {"chat"}),
        ({"org": "acme"}, "acme", (), {"chat"}),
        ({"roles": ["staff", "hr", "staff"]}, "default", ("staff", "hr"), {"chat"}),
        ({"roles": "staff, hr,legal"}, "default", ("staff", "hr", "legal"), {"chat"}),
        ({"roles": ""}, "default", (), {"chat"}),
        ({"roles": []}, "default", (), {"chat"}),
        ({"scp": "documents:write admin"}, "default", (), {"documents:write", "admin"}),
        ({"scp": ["chat", "profile"]}, "default", (), {"chat", "profile"}),
        ({"scp": ""}, "default", (), frozenset()),
        ({"scp": []}, "default", (), frozenset()),
        ({"tenant": "other", "groups": ["x"], "scope": "admin"}, "default", (), {"chat"}),
    ],
)
async def test_claims_are_read_by_their_configured_names(
    server: JwksServer, http: httpx.AsyncClient, claims: Any, tenant: str, groups: Any, scopes: Any
) -> None:
    trust = trust_in(server, claims=ClaimNames("org", "roles", "scp"))

    principal = await ExternalIssuer(trust, http=http).verify(FIRST.token(server.claims(**claims)))

    assert (principal.tenant, principal.groups, principal.scopes) == (tenant, groups, scopes)


@pytest.mark.parametrize(("default", "scopes"), [("chat documents:write", {"chat", "documents:write"}), ("", set())])
async def test_a_token_without_a_scope_claim_allows_what_the_settings_say(
    server: JwksServer, http: httpx.AsyncClient, default: str, scopes: set[str]
) -> None:
    issuer = ExternalIssuer(trust_in(server, default_scope=default), http=http)

    assert (await issuer.verify(FIRST.token(server.claims()))).scopes == scopes


@pytest.mark.parametrize("changes", [{"exp": -25}, {"nbf": 25}, {"iat": 3_600}])
async def test_clocks_may_differ_by_half_a_minute(issuer: ExternalIssuer, server: JwksServer, changes: Any) -> None:
    now_s = int(time.time())

    await taken(issuer, FIRST.token(server.claims(**{name: now_s + by for name, by in changes.items()})))


async def test_the_audience_may_be_one_of_several(issuer: ExternalIssuer, server: JwksServer) -> None:
    await taken(issuer, FIRST.token(server.claims(aud=["https://other.example", server.issuer])))


async def test_a_token_without_kid_is_taken_where_there_is_one_usable_key(
    issuer: ExternalIssuer, server: JwksServer
) -> None:
    server.keys = [{"kty": "oct", "k": "c2VjcmV0"}, FIRST.jwk(kid=None)]

    await taken(issuer, FIRST.token(server.claims(), kid=None))


async def test_a_token_without_kid_is_refused_where_there_are_two_keys(
    issuer: ExternalIssuer, server: JwksServer
) -> None:
    server.keys = [FIRST.jwk(), SECOND.jwk()]

    await refused(issuer, FIRST.token(server.claims(), kid=None))
    assert server.requests == 1


async def test_the_verifier_sends_a_token_to_the_issuer_it_names(issuer: ExternalIssuer, server: JwksServer) -> None:
    own = OwnTokens("nK7v-2pQ9x_ZrT4wLm8cYb1GfHs6DjEa", ttl_s=60)

    assert (await Verifier(own, issuer).verify(FIRST.token(server.claims()))).issuer == server.issuer
    with pytest.raises(UnauthenticatedError):
        await Verifier(own, issuer).verify(FIRST.token(server.claims(iss="answerdesk")))


# What is refused


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("secret", ["pem", "pem without its last line end", "jwk", "raw"])
async def test_a_public_key_is_no_secret(
    issuer: ExternalIssuer, server: JwksServer, algorithm: Algorithm, secret: str
) -> None:
    key = signing_key(algorithm)
    server.keys = [key.jwk()]
    entry = key.jwk()
    secrets = {
        "pem": key.public_pem(),
        "pem without its last line end": key.public_pem().rstrip(),
        "jwk": json.dumps(entry).encode(),
        "raw": base64.urlsafe_b64decode(f"{entry.get('x', entry.get('n'))}=="),
    }

    for alg in ("HS256", algorithm):
        header = {"alg": alg, "typ": "JWT", "kid": key.kid}
        await refused(issuer, signed_with(secrets[secret], header, server.claims()))


def _tokens(server: JwksServer) -> dict[str, str]:
    now_s = int(time.time())
    good = FIRST.token(server.claims())
    head, payload, signature = good.split(".")
    unsigned = base64url(json.dumps({"alg": "none", "kid": "first"}).encode())
    other = SigningKey("first", "EdDSA", SECOND.private)
    claims: dict[str, Any] = {
        "another issuer": {"iss": "https://other.example"},
        "the issuer with a slash": {"iss": server.issuer + "/"},
        "issuer missing": {"iss": None},
        "another audience": {"aud": "https://other.example"},
        "an audience that begins alike": {"aud": server.issuer + "0"},
        "audiences of others": {"aud": ["https://other.example"]},
        "audiences of wrong types": {"aud": [server.issuer, 1]},
        "audience missing": {"aud": None},
        "audience empty": {"aud": []},
        "exp missing": {"exp": None},
        "exp a string": {"exp": str(now_s + 900)},
        "exp infinite": {"exp": float("inf")},
        "exp not a number": {"exp": float("nan")},
        "exp huge": {"exp": 10**400},
        "exp true": {"exp": True},
        "nbf in the future": {"nbf": now_s + 60},
        "nbf a string": {"nbf": "0"},
        "sub missing": {"sub": None},
        "sub empty": {"sub": ""},
        "sub long": {"sub": "x" * 256},
        "sub a number": {"sub": 7},
        "sub with NUL": {"sub": "a\x00b"},
        "sub half a pair": {"sub": "\ud800"},
        "tenant a list": {"tenant": ["acme"]},
        "tenant empty": {"tenant": ""},
        "tenant long": {"tenant": "x" * 129},
        "groups an object": {"groups": {"staff": True}},
        "groups of numbers": {"groups": [1]},
        "groups many": {"groups": [f"g{number}" for number in range(65)]},
        "groups many in a string": {"groups": ",".join(f"g{number}" for number in range(65))},
        "scope a number": {"scope": 1},
        "scope true": {"scope": True},
        "huge": {"x": "x" * 8_192},
    }
    nulls = {
        f"{name} null": json.dumps(server.claims() | {name: None}).encode() for name in ("tenant", "groups", "scope")
    }
    payloads = nulls | {
        "payload a list": b"[]",
        "payload not UTF-8": b'{"sub": "\xff"}',
        "payload nested": b"[" * 5_000,
        "payload nested deep within": json.dumps(server.claims())[:-1].encode() + b', "x": ' + b"[" * 4_000,
    }
    headers: dict[str, Any] = {
        "crit": {"crit": ["exp"]},
        "crit that PyJWT takes": {"crit": ["b64"], "b64": True},
        "kid of another key": {"kid": "second"},
        "kid long": {"kid": "x" * 300},
        "kid empty": {"kid": ""},
    }
    return {
        "alg none": f"{unsigned}.{payload}.",
        "alg none with a signature": f"{unsigned}.{payload}.{signature}",
        "no signature": f"{head}.{payload}",
        "an empty signature": f"{head}.{payload}.",
        "another key of that kid": other.token(server.claims()),
        "a key of another algorithm": signing_key("ES256").token(server.claims()),
        "not ASCII": good + "é",
        "half a pair": good + "\ud800",
        **{name: FIRST.token(server.claims(**changes)) for name, changes in claims.items()},
        **{name: signed_payload(payload) for name, payload in payloads.items()},
        **{name: FIRST.token(server.claims(), **changes) for name, changes in headers.items()},
    }


async def test_wrong_tokens_are_refused(issuer: ExternalIssuer, server: JwksServer, subtests: pytest.Subtests) -> None:
    await taken(issuer, FIRST.token(server.claims()))

    for case, token in _tokens(server).items():
        with subtests.test(case):
            await refused(issuer, token)


async def test_an_expired_token_is_told_apart(issuer: ExternalIssuer, server: JwksServer) -> None:
    with pytest.raises(TokenExpiredError):
        await issuer.verify(FIRST.token(server.claims(exp=int(time.time()) - 31)))


@pytest.mark.parametrize("header", ["jku", "x5u", "jwk", "x5c"])
async def test_a_token_does_not_bring_its_own_key(issuer: ExternalIssuer, server: JwksServer, header: str) -> None:
    values: dict[str, Any] = {
        "jku": f"{server.issuer}/theirs",
        "x5u": f"{server.issuer}/theirs",
        "jwk": SECOND.jwk(kid="first"),
        "x5c": [base64.b64encode(SECOND.public_pem()).decode()],
    }
    forged = SigningKey("first", "EdDSA", SECOND.private)

    await refused(issuer, forged.token(server.claims(), **{header: values[header]}))
    await taken(issuer, FIRST.token(server.claims(), **{header: values[header]}))

    assert server.paths == ["/api/auth/jwks"]


async def test_no_other_algorithm_than_the_pinned_one_is_taken(server: JwksServer, http: httpx.AsyncClient) -> None:
    server.keys = [signing_key(algorithm, algorithm).jwk() for algorithm in ALGORITHMS]
    issuer = ExternalIssuer(trust_in(server, algorithm="ES256"), http=http)

    await taken(issuer, signing_key("ES256", "ES256").token(server.claims()))
    await refused(issuer, signing_key("RS256", "RS256").token(server.claims()))
    await refused(issuer, signing_key("EdDSA", "EdDSA").token(server.claims()))


async def test_a_token_that_cannot_be_one_asks_for_no_keys(issuer: ExternalIssuer, server: JwksServer) -> None:
    hs256 = signed_with(b"x" * 32, {"alg": "HS256", "kid": "first"}, server.claims())
    for token in ("", "a.b.c", hs256, signing_key("RS256").token(server.claims(x="x" * 8_192))):
        await refused(issuer, token)

    assert server.requests == 0


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text() | st.text("abcABC012-_=.", max_size=60), st.binary(max_size=60))
async def test_no_text_and_no_signed_bytes_are_more_than_unauthenticated(
    issuer: ExternalIssuer, text: str, payload: bytes
) -> None:
    for token in (text, signed_payload(payload)):
        with pytest.raises(UnauthenticatedError):
            await issuer.verify(token)


# Keys that are skipped

RSA_1024 = SigningKey("first", "RS256", rsa.generate_private_key(65_537, 1_024))
P384 = ec.generate_private_key(ec.SECP384R1())
ED448 = ed448.Ed448PrivateKey.generate()


def _okp(**changes: Any) -> dict[str, Any]:
    return FIRST.jwk(kid="odd", **changes)


USELESS: dict[str, Any] = {
    "symmetric": {"kty": "oct", "kid": "odd", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
    "for encryption": _okp(use="enc"),
    "use a list": _okp(use=["sig"]),
    "with its private half": json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(FIRST.private)) | {"kid": "odd"},  # type: ignore[arg-type]
    "a short RSA key": RSA_1024.jwk(kid="odd"),
    "of another curve": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(P384.public_key())) | {"kid": "odd"},
    "Ed448": json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ED448.public_key())) | {"kid": "odd"},
    "alg of another type": _okp(alg="RS256"),
    "alg PS256": signing_key("RS256").jwk(kid="odd", alg="PS256"),
    "alg HS256": _okp(alg="HS256"),
    "alg a list": _okp(alg=["EdDSA"]),
    "kty unknown": _okp(kty="XYZ"),
    "kty a list": _okp(kty=["OKP"]),
    "crv an object": _okp(crv={}),
    "kid a number": FIRST.jwk(kid=1),
    "kid long": FIRST.jwk(kid="x" * 256),
    "x missing": _okp(x=None),
    "x a number": _okp(x=1),
    "x short": _okp(x="AAAA"),
    "x not base64": _okp(x="é" * 43),
    "a point off the curve": signing_key("ES256").jwk(kid="odd", x="A" * 43),
    "n a list": signing_key("RS256").jwk(kid="odd", n=[1]),
    "e even": signing_key("RS256").jwk(kid="odd", e="AA"),
    "empty": {},
    "a string": "key",
    "null": None,
    "a list": [],
}


async def test_keys_that_cannot_be_used_are_skipped(
    server: JwksServer, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for case, entry in USELESS.items():
        with subtests.test(case):
            server.keys = [entry, SECOND.jwk(), entry]
            issuer = ExternalIssuer(trust_in(server), http=http)

            await taken(issuer, SECOND.token(server.claims(), kid=None))
            assert [key.kid for key in issuer._keys._keys] == ["second"]


async def test_a_short_rsa_key_verifies_nothing(server: JwksServer, http: httpx.AsyncClient) -> None:
    server.keys = [RSA_1024.jwk()]
    # By hand: PyJWT warns of such a key.
    header = base64url(json.dumps({"alg": "RS256", "kid": "first"}).encode())
    content = f"{header}.{base64url(json.dumps(server.claims()).encode())}"
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(content.encode(), RSA_1024.private)  # type: ignore[arg-type]

    await refused(ExternalIssuer(trust_in(server), http=http), f"{content}.{base64url(signature)}")


# Fetching


async def test_keys_are_fetched_once_for_all_who_wait(issuer: ExternalIssuer, server: JwksServer) -> None:
    server.reply = Reply(body=json.dumps({"keys": server.keys}).encode(), delay_s=0.1)
    token = FIRST.token(server.claims())

    assert len(await asyncio.gather(*(issuer.verify(token) for _ in range(50)))) == 50
    assert server.requests == 1


async def test_who_leaves_does_not_take_the_keys_from_the_others(issuer: ExternalIssuer, server: JwksServer) -> None:
    server.reply = Reply(body=json.dumps({"keys": server.keys}).encode(), delay_s=0.2)
    first, second = (asyncio.create_task(issuer.verify(FIRST.token(server.claims()))) for _ in range(2))
    async with asyncio.timeout(10):
        while server.requests == 0:  # noqa: ASYNC110 - counted by another thread
            await asyncio.sleep(0.001)

    first.cancel()

    assert (await second).subject == "mXk2vT8w"
    assert first.cancelled()
    assert server.requests == 1


async def test_a_fresh_set_is_not_asked_for_again(issuer: ExternalIssuer, server: JwksServer, clock: Clock) -> None:
    for _ in range(3):
        await issuer.verify(FIRST.token(server.claims()))
        clock.now_s += HOUR_S / 3 - 1

    assert server.requests == 1


async def test_a_key_that_was_withdrawn_is_not_taken_beyond_an_hour(
    issuer: ExternalIssuer, server: JwksServer, clock: Clock
) -> None:
    await issuer.verify(FIRST.token(server.claims()))
    server.keys = [SECOND.jwk()]
    clock.now_s += HOUR_S

    await refused(issuer, FIRST.token(server.claims()))
    assert server.requests == 2


async def test_a_new_key_is_found_at_once(issuer: ExternalIssuer, server: JwksServer) -> None:
    await issuer.verify(FIRST.token(server.claims()))
    server.keys = [FIRST.jwk(), SECOND.jwk()]

    principals = await asyncio.gather(*(issuer.verify(SECOND.token(server.claims())) for _ in range(20)))

    assert len(principals) == 20
    assert server.requests == 2


async def test_unknown_keys_are_asked_for_at_most_once_a_minute(
    issuer: ExternalIssuer, server: JwksServer, clock: Clock
) -> None:
    await issuer.verify(FIRST.token(server.claims()))

    for number in range(20):
        await refused(issuer, FIRST.token(server.claims(), kid=f"made up {number}"))
    assert server.requests == 2

    clock.now_s += 59
    await refused(issuer, FIRST.token(server.claims(), kid="made up"))
    assert server.requests == 2

    clock.now_s += 1
    await refused(issuer, FIRST.token(server.claims(), kid="made up"))
    assert server.requests == 3


async def test_unknown_keys_are_not_asked_for_more_often_while_that_fails(
    issuer: ExternalIssuer, server: JwksServer
) -> None:
    await issuer.verify(FIRST.token(server.claims()))
    server.reply = Reply(500)

    for _ in range(5):
        await refused(issuer, SECOND.token(server.claims()))

    assert server.requests == 2
    await taken(issuer, FIRST.token(server.claims()))


async def test_an_unknown_key_in_the_first_token_asks_once(issuer: ExternalIssuer, server: JwksServer) -> None:
    await refused(issuer, SECOND.token(server.claims()))

    assert server.requests == 1


async def test_known_keys_go_on_being_used_while_the_issuer_is_away(
    issuer: ExternalIssuer, server: JwksServer, clock: Clock
) -> None:
    await issuer.verify(FIRST.token(server.claims()))
    server.reply = Reply(503)

    clock.now_s += HOUR_S
    await taken(issuer, FIRST.token(server.claims()))
    assert server.requests == 2

    clock.now_s += DAY_S - HOUR_S - 1
    await taken(issuer, FIRST.token(server.claims()))

    clock.now_s += 10
    with pytest.raises(IssuerUnavailableError):
        await issuer.verify(FIRST.token(server.claims()))

    server.reply = None
    clock.now_s += 10
    await taken(issuer, FIRST.token(server.claims()))


async def test_an_issuer_known_to_be_away_delays_nobody(
    issuer: ExternalIssuer, server: JwksServer, clock: Clock
) -> None:
    await issuer.verify(FIRST.token(server.claims()))
    server.reply = Reply(503)
    clock.now_s += HOUR_S
    await issuer.verify(FIRST.token(server.claims()))

    server.reply = Reply(body=json.dumps({"keys": [SECOND.jwk()]}).encode(), delay_s=0.5)
    clock.now_s += 10
    for _ in range(5):
        await taken(issuer, FIRST.token(server.claims()))
    fetch = issuer._keys._running
    assert fetch, "the answers came before that of the issuer"

    await fetch
    await taken(issuer, SECOND.token(server.claims()))
    assert server.requests == 3
    await refused(issuer, FIRST.token(server.claims()))


async def test_without_any_keys_the_issuer_is_asked_every_ten_seconds(
    issuer: ExternalIssuer, server: JwksServer, clock: Clock
) -> None:
    server.reply = Reply(500)
    token = FIRST.token(server.claims())

    for _ in range(5):
        with pytest.raises(IssuerUnavailableError):
            await issuer.verify(token)
    assert server.requests == 1

    server.reply = None
    clock.now_s += 10
    await taken(issuer, token)
    assert server.requests == 2


KEYS = {"keys": [FIRST.jwk()]}
BAD_REPLIES = {
    "a redirect": Reply(302, headers={"Location": "/elsewhere"}),
    "a redirect with keys": Reply(307, json.dumps(KEYS).encode(), {"Location": "/elsewhere"}),
    "not found": Reply(404, json.dumps(KEYS).encode()),
    "created": Reply(201, json.dumps(KEYS).encode()),
    "a server error": Reply(500),
    "nothing": Reply(),
    "not JSON": Reply(body=b"<html>"),
    "not UTF-8": Reply(body=b'{"keys": ["\xff"]}'),
    "nested": Reply(body=b"[" * 200_000),
    "a list": Reply(body=b"[]"),
    "no keys": Reply(body=b"{}"),
    "keys an object": Reply(body=b'{"keys": {}}'),
    "too many keys": Reply(body=json.dumps({"keys": [FIRST.jwk()] * 33}).encode()),
    "too large": Reply(body=json.dumps(KEYS).encode() + b" " * 262_144),
    "compressed all the same": Reply(
        body=gzip.compress(json.dumps(KEYS).encode()), headers={"Content-Encoding": "gzip"}
    ),
    "cut short": Reply(body=b"{", headers={"Content-Length": "100"}),
}


@pytest.mark.parametrize("case", BAD_REPLIES)
async def test_an_answer_that_is_no_key_set_is_a_failure(
    issuer: ExternalIssuer, server: JwksServer, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = BAD_REPLIES[case]

    with caplog.at_level(logging.WARNING, issuer_keys.__name__), pytest.raises(IssuerUnavailableError):
        await issuer.verify(FIRST.token(server.claims()))

    assert server.paths == ["/api/auth/jwks"]
    assert [record.message for record in caplog.records] == ["the keys of the external issuer cannot be fetched"]


async def test_the_largest_set_is_taken(issuer: ExternalIssuer, server: JwksServer) -> None:
    body = json.dumps({"keys": [SECOND.jwk(kid=str(number)) for number in range(31)] + [FIRST.jwk()]}).encode()
    server.reply = Reply(body=body.ljust(262_144))

    await taken(issuer, FIRST.token(server.claims()))


async def test_an_empty_set_is_believed(issuer: ExternalIssuer, server: JwksServer) -> None:
    server.keys = []

    await refused(issuer, FIRST.token(server.claims()))
    await refused(issuer, FIRST.token(server.claims(), kid=None))


async def test_a_slow_issuer_is_not_waited_for(
    issuer: ExternalIssuer, server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "FETCH_TIMEOUT_S", 0.1)
    server.reply = Reply(delay_s=1)

    with pytest.raises(IssuerUnavailableError):
        await issuer.verify(FIRST.token(server.claims()))


async def test_an_issuer_that_cannot_be_reached_is_unavailable(server: JwksServer, http: httpx.AsyncClient) -> None:
    issuer = ExternalIssuer(trust_in(server, jwks_url="https://127.0.0.1:1/jwks"), http=http)

    with pytest.raises(IssuerUnavailableError):
        await issuer.verify(FIRST.token(server.claims()))


async def test_closing_ends_a_fetch(server: JwksServer, http: httpx.AsyncClient) -> None:
    server.reply = Reply(delay_s=1)
    issuer = ExternalIssuer(trust_in(server), http=http)
    waiting = asyncio.create_task(issuer.verify(FIRST.token(server.claims())))
    await asyncio.sleep(0)

    await issuer.close()

    with pytest.raises(IssuerUnavailableError):
        await waiting


# TLS


async def test_a_private_authority_is_trusted_by_its_variable(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
    issuer = ExternalIssuer(trust_in(server))

    await taken(issuer, FIRST.token(server.claims()))
    await issuer.close()


async def test_an_unknown_authority_is_not_trusted(server: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    issuer = ExternalIssuer(trust_in(server))

    with pytest.raises(IssuerUnavailableError):
        await issuer.verify(FIRST.token(server.claims()))
    assert server.requests == 0
    await issuer.close()


def test_authorities_that_cannot_be_read_end_the_start(server: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Path("/nonexistent/ca.pem")))

    with pytest.raises(StartupError, match="SSL_CERT_FILE"):
        ExternalIssuer(trust_in(server))


@pytest.mark.parametrize("url", ["http://127.0.0.1/jwks", "file:///etc/passwd", "https://", "jwks", "", "https://[::1"])
def test_keys_come_over_https_only(server: JwksServer, url: str) -> None:
    with pytest.raises(StartupError, match="EDGE_JWKS_URL"):
        ExternalIssuer(trust_in(server, jwks_url=url))


def test_nobody_else_has_the_name_of_this_edge(server: JwksServer) -> None:
    with pytest.raises(StartupError, match="EDGE_JWT_ISSUER"):
        ExternalIssuer(trust_in(server, issuer="answerdesk"))
