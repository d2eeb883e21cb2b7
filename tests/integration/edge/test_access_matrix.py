"""Who gets what: every operation of the described API with every kind of token, good and bad.

The operations come from the OpenAPI document, so a new route is held to the same rules by itself.
"""

import base64
import hashlib
import hmac
import json
import math
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
import jwt
import pytest
import pytest_asyncio
from answerdesk.v1 import knowledge_service_pb2 as pb_knowledge
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.routing import Route

from edge_api.app import ROUTERS, create_app
from edge_api.auth.dependencies import GuardedRoute
from edge_api.auth.schemas import OWN_ISSUER, Scope
from edge_api.auth.tokens import AUDIENCE, TYPE
from edge_api.settings import Settings
from tests.integration.edge.conftest import SECRET, Edge, client_of, running_edge
from tests.support.jwks_server import Algorithm, JwksServer, SigningKey, jwks_server, signing_key
from tests.support.scripted_agent import ScriptedAgent
from tests.support.tokens import internal_token, key_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "http://localhost:3000"
MAX_BODY_BYTES = 65_536
SCOPES: tuple[Scope, ...] = ("chat", "documents:write", "admin")
ALL_SCOPES = " ".join(SCOPES)
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id", "retryable"}

PUBLIC = {
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    *(("POST", f"/api/auth/{name}") for name in ("register", "login", "guest", "refresh", "logout")),
}
"""The operations that answer without a token. All others do not; what is not described is in `PUBLIC_PAGES`."""

ASSETS = {f"/docs/assets/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png", "init.js")}
PUBLIC_PAGES = {"/openapi.json", "/docs"} | ASSETS

Headers: TypeAlias = list[tuple[bytes, bytes]]


# The operations


@dataclass(frozen=True)
class Operation:
    """One operation of the described API. `scopes` None: it answers without a token."""

    method: str
    path: str
    scopes: tuple[str, ...] | None
    query: Mapping[str, str]
    body: Any
    body_type: str
    successes: frozenset[int]
    session_in_body: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_of_a_session(self) -> bool:
        """Whether the path names something that has an owner."""
        return "{session_id}" in self.path or "{message_id}" in self.path

    def url(self, session_id: str = "s", message_id: str = "m") -> str:
        """The path, filled in."""
        filled = self.path.replace("{session_id}", session_id).replace("{message_id}", message_id)
        return filled.replace("{document_id}", "doc-plans")

    def request(self, **changes: Any) -> dict[str, Any]:
        """A body that is right, as arguments of httpx; `changes` of its members."""
        if self.body is None:
            return {}
        name = "json" if self.body_type == "application/json" else "data"
        return {name: self.body | changes}


APP: FastAPI = create_app(Settings(jwt_secret=SecretStr(SECRET)))
DOCUMENT: dict[str, Any] = APP.openapi()


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = DOCUMENT["components"]["schemas"][name] if name else schema
    return found


def example(schema: Mapping[str, Any]) -> Any:
    """The schema's own example, or else the least that it takes."""
    schema = resolved(schema)
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("type") == "object":
        return {name: example(schema["properties"][name]) for name in schema.get("required", ())}
    return schema["enum"][0] if "enum" in schema else "x" * max(1, schema.get("minLength", 1))


def operation(method: str, path: str, described: Mapping[str, Any]) -> Operation:
    content = described.get("requestBody", {}).get("content", {})
    body_type, media = next(iter(content.items())) if content else ("", {})
    schema = resolved(media["schema"]) if media else {}
    security = described.get("security")
    parameters = described.get("parameters", ())
    return Operation(
        method=method.upper(),
        path=path,
        scopes=None if security is None else tuple(next(iter(security[0].values()))),
        query={each["name"]: "x" for each in parameters if each["in"] == "query" and each.get("required")},
        body=example(schema) if media else None,
        body_type=body_type,
        successes=frozenset(int(code) for code in described["responses"] if code.startswith("2")),
        session_in_body=tuple(
            name for name in ("session_id", "conversation_id") if name in schema.get("properties", {})
        ),
    )


OPERATIONS = [
    operation(method, path, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
]
GUARDED = [each for each in OPERATIONS if (each.method, each.path) not in PUBLIC]
SCOPED = [each for each in GUARDED if each.scopes]


# The edge, its users and the external issuer


class KnowingAgent(ScriptedAgent):
    """One that has documents to list, to store and to delete."""

    async def ListDocuments(self, request: Any, context: Any) -> pb_knowledge.ListDocumentsResponse:  # noqa: N802
        return pb_knowledge.ListDocumentsResponse()

    async def DeleteDocument(self, request: Any, context: Any) -> pb_knowledge.DeleteDocumentResponse:  # noqa: N802
        return pb_knowledge.DeleteDocumentResponse(passages=1)

    async def IngestDocuments(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[pb_knowledge.IngestDocumentsResponse]:
        async for _ in request_iterator:
            yield pb_knowledge.IngestDocumentsResponse(
                status=pb_knowledge.IngestDocumentsResponse.STATUS_CREATED,
                document=pb_knowledge.DocumentInfo(id="doc-new", version="0123456789abcdef", uri="new.md"),
            )


@dataclass
class House:
    """A running edge that trusts an issuer, and a guest of it who owns a session with one answer."""

    edge: Edge
    http: httpx.AsyncClient
    issuer: JwksServer
    signing_key: str
    owner_id: str
    session_id: str
    message_id: str
    refresh_token: str

    def own_claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a token of this edge for the owner, with every scope; a change to None leaves one out."""
        now_s = int(time.time())
        usual = {
            "iss": OWN_ISSUER,
            "aud": AUDIENCE,
            "sub": self.owner_id,
            "tenant": "default",
            "groups": [],
            "scope": ALL_SCOPES,
            "iat": now_s,
            "exp": now_s + 600,
            "jti": uuid.uuid4().hex,
        }
        return {name: value for name, value in (usual | changes).items() if value is not None}

    def own(self, **changes: Any) -> str:
        """A token of this edge."""
        return by_hand({"alg": "HS256", "typ": TYPE}, self.own_claims(**changes))

    def external(self, algorithm: Algorithm = "EdDSA", **changes: Any) -> str:
        """A token of the issuer, with every scope."""
        return key_of(algorithm).token(self.issuer.claims(**({"scope": ALL_SCOPES} | changes)))

    async def ask(self, operation: Operation, headers: Headers, **options: Any) -> httpx.Response:
        """One request; about the owner's session unless `url` is given."""
        url = options.pop("url", operation.url(self.session_id, self.message_id))
        more = options.pop("more", [])
        if not options.keys() & {"json", "data", "content"}:
            options |= operation.request()
        return await self.http.request(
            operation.method, url, params=operation.query, headers=[*headers, *more], **options
        )

    async def ask_about_own(self, operation: Operation, headers: Headers) -> httpx.Response:
        """One request; about a new session of the one who asks, where the path names one."""
        url = operation.url()
        if operation.is_of_a_session:
            reply = (await self.http.post("/api/chat", json={"message": "x"}, headers=headers)).json()
            url = operation.url(reply["session_id"], reply["message_id"])
        return await self.ask(operation, headers, url=url)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JwksServer]:
    with jwks_server(tmp_path_factory.mktemp("issuer")) as server:
        server.keys = [key_of(algorithm).jwk() for algorithm in ("EdDSA", "ES256", "RS256")]
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(issuer: JwksServer) -> AsyncIterator[House]:
    agent, (private_key, _) = KnowingAgent(), key_pair()
    await agent.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(issuer.ca_file))
            async with (
                running_edge(
                    agent.target,
                    jwks_url=issuer.url,
                    jwt_issuer=issuer.issuer,
                    jwt_audience=issuer.issuer,
                    agent_signing_key=SecretStr(private_key),
                    max_body_bytes=MAX_BODY_BYTES,
                ) as edge,
                client_of(edge.port) as http,
            ):
                response = await http.post("/api/auth/guest")
                http.cookies.clear()
                headers = bearer(response.json()["access_token"])
                me = (await http.get("/api/auth/me", headers=headers)).json()
                reply = (await http.post("/api/chat", json={"message": "mine"}, headers=headers)).json()
                refresh_token = response.cookies["answerdesk_refresh"]
                session_id, message_id = reply["session_id"], reply["message_id"]
                yield House(edge, http, issuer, private_key, me["user_id"], session_id, message_id, refresh_token)
    finally:
        await agent.stop()


def bearer(token: str) -> Headers:
    return authorization(f"Bearer {token}")


def authorization(*values: str) -> Headers:
    return [(b"Authorization", value.encode("latin-1")) for value in values]


def key_of(algorithm: str) -> SigningKey:
    chosen: Algorithm = "RS256" if algorithm == "RS256" else "ES256" if algorithm == "ES256" else "EdDSA"
    return signing_key(chosen, f"key-{algorithm}")


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def joined(header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    return ".".join(base64url(json.dumps(each).encode()) for each in (header, claims))


def by_hand(
    header: Mapping[str, Any], claims: Mapping[str, Any], secret: bytes = SECRET.encode(), digest: Any = hashlib.sha256
) -> str:
    """An HMAC token by hand: PyJWT refuses to make the dishonest ones."""
    content = joined(header, claims)
    return f"{content}.{base64url(hmac.digest(secret, content.encode(), digest))}"


def check_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() >= MEMBERS
    assert (problem["status"], problem["code"], problem["retryable"]) == (status, code, False)
    assert problem["type"].endswith(code)
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


# What is described


async def test_exactly_the_public_operations_need_no_token() -> None:
    assert {(each.method, each.path) for each in OPERATIONS if each.scopes is None} == PUBLIC


async def test_every_route_is_public_by_name_or_guarded() -> None:
    """Also those that the OpenAPI document does not show."""
    pages = {route.path for route in APP.routes if isinstance(route, Route)}
    open_routes = {
        (method, getattr(route, "path", str(route)))
        for router in ROUTERS
        for route in router.routes
        if not isinstance(route, GuardedRoute)
        for method in getattr(route, "methods", ())
    }

    assert pages == PUBLIC_PAGES | {"/"}
    assert open_routes == PUBLIC - {("GET", "/")}


@pytest.mark.parametrize("operation", GUARDED, ids=str)
async def test_a_guarded_operation_documents_its_refusals_and_its_scope(operation: Operation) -> None:
    described = DOCUMENT["paths"][operation.path][operation.method.lower()]
    schemes = DOCUMENT["components"]["securitySchemes"]
    (requirement,) = described["security"]
    ((scheme, scopes),) = requirement.items()
    flow = schemes[scheme]["flows"]["password"]

    assert flow["tokenUrl"].endswith("/api/auth/login")
    assert flow["scopes"].keys() == set(SCOPES)
    assert set(scopes) <= set(SCOPES)
    assert scopes or operation.path == "/api/auth/me"
    for code in ("401", "403", "429"):
        schema = described["responses"][code]["content"]["application/problem+json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ProblemDocument"}
    if operation.path.startswith("/api/documents") and operation.method != "GET":
        assert scopes == ["documents:write"]


# Tokens that are not taken


Bad: TypeAlias = Callable[[House], Headers]


def own_but(**changes: Any) -> Bad:
    return lambda house: bearer(house.own(**changes))


def own_with_header(**changes: Any) -> Bad:
    header = {"alg": "HS256", "typ": TYPE} | changes
    kept = {name: value for name, value in header.items() if value is not None}
    return lambda house: bearer(by_hand(kept, house.own_claims()))


def external_but(**changes: Any) -> Bad:
    return lambda house: bearer(house.external(**changes))


def unsigned(spelling: Any, signature: str) -> Bad:
    def own(house: House) -> Headers:
        return bearer(f"{joined({'alg': spelling, 'typ': TYPE}, house.own_claims())}.{signature}")

    return own


def unsigned_external(spelling: Any, **header: Any) -> Bad:
    return lambda house: bearer(
        joined({"alg": spelling} | header, house.issuer.claims(scope=ALL_SCOPES)) + ".",
    )


def public_forms(key: SigningKey) -> dict[str, bytes]:
    """What somebody may take for the secret who only knows the public key."""
    public = key.private.public_key()
    jwk = key.jwk()
    forms = {
        "PEM": key.public_pem(),
        "PEM without its last newline": key.public_pem().strip(),
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "JWK": json.dumps(jwk).encode(),
        "compact JWK": json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode(),
    }
    if key.algorithm == "EdDSA":
        forms["raw"] = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return forms


def confused(secret: bytes, kid: str, *, own: bool) -> Bad:
    def made(house: House) -> Headers:
        claims = house.own_claims() if own else house.issuer.claims(scope=ALL_SCOPES)
        return bearer(by_hand({"alg": "HS256", "typ": TYPE, "kid": kid}, claims, secret))

    return made


def changed_part(number: int, part: Callable[[House], str]) -> Bad:
    def made(house: House) -> Headers:
        parts = house.own().split(".")
        parts[number] = part(house)
        return bearer(".".join(parts))

    return made


def of_an_impostor(algorithm: Algorithm, **header: Any) -> Bad:
    """A key of the issuer's kid that is not the issuer's."""
    impostor = signing_key(algorithm, "impostor")
    return lambda house: bearer(
        impostor.token(house.issuer.claims(scope=ALL_SCOPES), **({"kid": key_of(algorithm).kid} | header))
    )


def flipped(token: str) -> str:
    """The same with one bit of the signature changed."""
    content, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    raw[len(raw) // 2] ^= 1
    return f"{content}.{base64url(bytes(raw))}"


NOT_SENT: dict[str, Bad] = {
    "no token": lambda _: [],
    "two headers": lambda house: authorization(f"Bearer {house.own()}", f"Bearer {house.own()}"),
    "a good header after a bad one": lambda house: authorization("Bearer x", f"Bearer {house.own()}"),
    "a bad header after a good one": lambda house: authorization(f"Bearer {house.own()}", "Basic eDp5"),
    "two tokens in one header": lambda house: authorization(f"Bearer {house.own()}, Bearer {house.own()}"),
    "the scheme Basic": lambda _: authorization("Basic YWRhOnNlY3JldA=="),
    "the scheme Basic with a good token": lambda house: authorization(f"Basic {house.own()}"),
    "the scheme Token": lambda house: authorization(f"Token {house.own()}"),
    "no scheme": lambda house: authorization(house.own()),
    "an empty header": lambda _: authorization(""),
    "a bearer without a token": lambda _: authorization("Bearer"),
    "a bearer of commas": lambda _: authorization("Bearer ,"),
    "a token in a cookie": lambda house: [(b"Cookie", f"access_token={house.own()}; token={house.own()}".encode())],
}

GARBAGE: dict[str, Bad] = {
    "garbage": lambda _: bearer("garbage"),
    "dots": lambda _: bearer(".."),
    "three letters": lambda _: bearer("a.b.c"),
    "random parts": lambda _: bearer(".".join(base64url(secrets.token_bytes(40)) for _ in range(3))),
    "random parts under a good header": changed_part(1, lambda _: base64url(secrets.token_bytes(40))),
    "five parts": lambda _: bearer(".".join(base64url(secrets.token_bytes(20)) for _ in range(5))),
    "letters of no ASCII": lambda _: bearer("\xff\xfe.\xe4.\xf6"),
    "a good token with something after it": lambda house: bearer(f"{house.own()} x"),
    "a good token and one part more": lambda house: bearer(f"{house.own()}.x"),
    "a token of 20,000 characters": lambda house: bearer(house.own(groups=["x" * 100] * 150)),
    "a header that is a list": changed_part(0, lambda _: base64url(b"[]")),
    "a header nested a thousand times": changed_part(0, lambda _: base64url(b"[" * 1_000)),
    "claims that are a list": lambda _: bearer(by_hand({"alg": "HS256", "typ": TYPE}, json.loads("[1]"))),
    "claims that are text": lambda _: bearer(by_hand({"alg": "HS256", "typ": TYPE}, json.loads('"x"'))),
    "the refresh cookie's value": lambda house: bearer(house.refresh_token),
    "the secret": lambda _: bearer(SECRET.replace(" ", "")),
}

OWN: dict[str, Bad] = {
    "not yet valid": lambda house: bearer(house.own(nbf=int(time.time()) + 60)),
    "wrong issuer": own_but(iss="somebody"),
    "no issuer": own_but(iss=None),
    "an issuer that is a list": own_but(iss=[OWN_ISSUER]),
    "wrong audience": own_but(aud="answerdesk-agent"),
    "no audience": own_but(aud=None),
    "an empty audience": own_but(aud=[]),
    "no subject": own_but(sub=None),
    "an empty subject": own_but(sub=""),
    "a subject that is a number": own_but(sub=1),
    "no end": own_but(exp=None),
    "an end that is text": own_but(exp="9999999999"),
    "an end that is true": own_but(exp=True),
    "an end that never comes": own_but(exp=math.inf),
    "no tenant": own_but(tenant=None),
    "no scope claim": own_but(scope=None),
    "groups that are an object": own_but(groups={"a": 1}),
    "typ JWT": own_with_header(typ="JWT"),
    "no typ": own_with_header(typ=None),
    "a typ that is a list": own_with_header(typ=[TYPE]),
    "crit": own_with_header(crit=["exp"]),
    "b64": own_with_header(crit=["b64"], b64=False),
    "HS256 in lower case": own_with_header(alg="hs256"),
    "no algorithm": own_with_header(alg=None),
    "an algorithm that is a number": own_with_header(alg=256),
    "an algorithm that is a list": own_with_header(alg=["HS256"]),
    "HS512": lambda house: bearer(
        by_hand({"alg": "HS512", "typ": TYPE}, house.own_claims(), digest=hashlib.sha512),
    ),
    "EdDSA with the issuer's key": lambda house: bearer(
        key_of("EdDSA").token(house.own_claims(), typ=TYPE),
    ),
    "another secret": lambda house: bearer(
        by_hand({"alg": "HS256", "typ": TYPE}, house.own_claims(), b"another secret: 0123456789 ABCDEFGHIJ")
    ),
    "the empty secret": lambda house: bearer(by_hand({"alg": "HS256", "typ": TYPE}, house.own_claims(), b"")),
    "other claims under a good signature": changed_part(
        1, lambda house: base64url(json.dumps(house.own_claims(sub=str(uuid.uuid4()))).encode())
    ),
    "no signature": changed_part(2, lambda _: ""),
    "a signature with one bit changed": lambda house: bearer(flipped(house.own())),
    "a token for the agent service": lambda house: bearer(internal_token(house.signing_key, subject=house.owner_id)),
    "a token for the agent service with our audience": lambda house: bearer(
        internal_token(house.signing_key, subject=house.owner_id, aud=AUDIENCE, iss=OWN_ISSUER, scope=ALL_SCOPES)
    ),
}

NONE_SPELLINGS: tuple[Any, ...] = ("none", "None", "NONE", "nOnE", "none ", "", None, False)
UNSIGNED: dict[str, Bad] = {
    f"alg {spelling!r} with {'a' if signature else 'no'} signature": unsigned(spelling, signature)
    for spelling in NONE_SPELLINGS
    for signature in ("", "c2lnbmF0dXJl")
} | {
    f"alg {spelling!r} of the issuer {'with a key id' if kid else ''}": unsigned_external(spelling, **kid)
    for spelling in NONE_SPELLINGS
    for kid in ({}, {"kid": key_of("EdDSA").kid})
}

CONFUSED: dict[str, Bad] = {
    f"HS256 with the public {key.algorithm} key as {form} {'of this edge' if own else 'of the issuer'}": confused(
        secret, key.kid, own=own
    )
    for key in map(key_of, ("EdDSA", "ES256", "RS256"))
    for form, secret in public_forms(key).items()
    for own in (True, False)
}

ALGORITHMS: Sequence[Algorithm] = ("EdDSA", "ES256", "RS256")


def with_claims(algorithm: Algorithm, in_s: Mapping[str, int] | None = None, **headers: Any) -> Bad:
    """A token of the issuer; `in_s`: claims that are times, by seconds from now."""

    def made(house: House) -> Headers:
        times = {name: int(time.time()) + seconds for name, seconds in (in_s or {}).items()}
        claims = house.issuer.claims(**({"scope": ALL_SCOPES} | times))
        return bearer(key_of(algorithm).token(claims, **headers))

    return made


def spoiled(algorithm: Algorithm) -> Bad:
    return lambda house: bearer(flipped(house.external(algorithm)))


def broken(algorithm: Algorithm) -> dict[str, Bad]:
    """Tokens of the issuer, signed in this way, with one flaw each."""
    other = key_of("RS256" if algorithm == "ES256" else "ES256")
    flaws: dict[str, Bad] = {
        "one bit changed": spoiled(algorithm),
        "a key of somebody else": of_an_impostor(algorithm),
        "a key of somebody else in the header": of_an_impostor(algorithm, jwk=signing_key(algorithm, "impostor").jwk()),
        "an unknown key": with_claims(algorithm, kid="unknown"),
        "the id of a key of another type": with_claims(algorithm, kid=other.kid),
        "wrong audience": external_but(algorithm=algorithm, aud=AUDIENCE),
        "no audience": external_but(algorithm=algorithm, aud=None),
        "the name of this edge": external_but(algorithm=algorithm, iss=OWN_ISSUER, aud=AUDIENCE),
        "wrong issuer": external_but(algorithm=algorithm, iss="https://somebody.test"),
        "no issuer": external_but(algorithm=algorithm, iss=None),
        "no subject": external_but(algorithm=algorithm, sub=None),
        "no end": external_but(algorithm=algorithm, exp=None),
        "not yet valid": with_claims(algorithm, {"nbf": 120}),
    }
    return {f"{algorithm}: {what}": bad for what, bad in flaws.items()}


EXTERNAL: dict[str, Bad] = {
    "the issuer with a slash more": lambda house: bearer(house.external(iss=f"{house.issuer.issuer}/")),
    "keys at an address of the token's own": lambda house: bearer(
        signing_key("EdDSA", "impostor").token(
            house.issuer.claims(), kid="impostor", jku=f"{house.issuer.issuer}/evil", x5u=f"{house.issuer.issuer}/evil"
        )
    ),
    "this edge's secret": lambda house: bearer(by_hand({"alg": "HS256", "typ": TYPE}, house.issuer.claims())),
}
for _algorithm in ALGORITHMS:
    EXTERNAL |= broken(_algorithm)

BAD = NOT_SENT | GARBAGE | OWN | UNSIGNED | CONFUSED | EXTERNAL
EXPIRED: dict[str, Bad] = {
    "own": lambda house: bearer(house.own(exp=int(time.time()) - 1)),
    **{algorithm: with_claims(algorithm, {"exp": -120}) for algorithm in ALGORITHMS},
}


async def test_the_tokens_below_are_bad_for_their_one_flaw_only(house: House) -> None:
    for token in (house.own(), *(house.external(algorithm) for algorithm in ALGORITHMS)):
        response = await house.http.get("/api/auth/me", headers=bearer(token))

        assert response.status_code == 200, response.text
        assert set(response.json()["scopes"]) == set(SCOPES)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_bad_token_is_401_everywhere(house: House, bad: Bad) -> None:
    for operation in GUARDED:
        headers = bad(house)
        response = await house.ask(operation, headers, more=[(b"Origin", ORIGIN.encode())])

        check_problem(response, 401, "unauthenticated")
        assert response.headers["access-control-allow-origin"] == ORIGIN
        for _, value in headers:
            assert len(value) < 20 or value.rpartition(b" ")[2].decode("latin-1") not in response.text


@pytest.mark.parametrize("bad", EXPIRED.values(), ids=EXPIRED.keys())
async def test_an_expired_token_is_401_everywhere_and_says_so(house: House, bad: Bad) -> None:
    for operation in GUARDED:
        check_problem(await house.ask(operation, bad(house)), 401, "token_expired")


async def test_a_token_that_expired_long_ago_and_was_never_ours_is_not_called_expired(house: House) -> None:
    long_ago = int(time.time()) - 86_400
    for token in (
        by_hand({"alg": "HS256", "typ": TYPE}, house.own_claims(exp=long_ago), b"another secret: 0123456789 ABCDEFGHI"),
        signing_key("EdDSA", "impostor").token(house.issuer.claims(exp=long_ago), kid=key_of("EdDSA").kid),
    ):
        response = await house.http.get("/api/auth/me", headers=bearer(token))

        check_problem(response, 401, "unauthenticated")


async def test_no_key_address_of_a_token_is_ever_asked(house: House) -> None:
    evil = f"{house.issuer.issuer}/evil"
    token = signing_key("EdDSA", "impostor").token(house.issuer.claims(), kid="impostor", jku=evil, x5u=evil)

    await house.http.get("/api/auth/me", headers=bearer(token))

    assert "/evil" not in house.issuer.paths


# Nobody learns anything before they are known


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 4_096 + 1):
        yield b" " * 4_096


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "no body": lambda: {"content": b""},
    "no JSON": lambda: {"content": b"{", "more": [(b"Content-Type", b"application/json")]},
    "JSON of another form": lambda: {"json": [1]},
    "no field right": lambda: {"json": {"message": "", "password": 1, "rating": "sideways", "nonsense": None}},
    "another type": lambda: {"content": b"<x/>", "more": [(b"Content-Type", b"text/xml")]},
    "a form": lambda: {"data": {"message": "x"}},
    "no UTF-8": lambda: {"content": b"\xff\xfe", "more": [(b"Content-Type", b"application/json")]},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "text/html"])
async def test_without_a_token_it_is_401_whatever_the_body_is(
    house: House, body: Callable[[], dict[str, Any]], accept: str
) -> None:
    for operation in GUARDED:
        options = body()
        more = [*options.pop("more", []), (b"Accept", accept.encode())]

        check_problem(await house.ask(operation, [], more=more, **options), 401, "unauthenticated")


async def test_without_a_token_a_body_that_says_it_is_too_large_is_413_and_one_that_does_not_is_401(
    house: House,
) -> None:
    for operation in GUARDED:
        said = await house.ask(operation, [], content=b" " * (MAX_BODY_BYTES + 1))
        unsaid = await house.ask(operation, [], content=pieces(MAX_BODY_BYTES + 1))

        check_problem(said, 413, "body_too_large")
        check_problem(unsaid, 401, "unauthenticated")


@pytest.mark.parametrize(
    "session_id", ["nobody", str(uuid.UUID(int=7, version=4)), "x" * 1_000, "%00", "..%2f..", "%f0%28", "'"]
)
async def test_without_a_token_nobody_learns_which_sessions_there_are(house: House, session_id: str) -> None:
    for operation in GUARDED:
        if not operation.is_of_a_session or "%2f" in session_id:
            continue
        theirs = await house.ask(operation, [])
        nobodys = await house.ask(operation, [], url=operation.url(session_id, session_id))

        assert (theirs.status_code, nobodys.status_code) == (401, 401)
        differing = {"instance", "request_id"}
        assert {k: v for k, v in theirs.json().items() if k not in differing} == {
            k: v for k, v in nobodys.json().items() if k not in differing
        }


async def test_without_a_token_wrong_queries_are_401(house: House) -> None:
    for operation in GUARDED:
        url = f"{operation.url()}?limit=x&cursor=%00&top_k=-1&order=sideways"

        response = await house.http.request(operation.method, url, **operation.request())

        check_problem(response, 401, "unauthenticated")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", sorted({each.path for each in GUARDED}))
async def test_without_a_token_a_method_that_is_not_described_is_refused(house: House, method: str, path: str) -> None:
    if method.lower() in DOCUMENT["paths"][path]:
        return
    response = await house.http.request(method, path.replace("{", "").replace("}", ""))

    assert response.status_code in {401, 405}


@pytest.mark.parametrize(
    "path",
    [
        "/api/agents/",
        "//api/agents",
        "/api//agents",
        "/API/agents",
        "/api/agents;x=y",
        "/docs/../api/agents",
        "/docs/..%2fapi/agents",
        "/docs/assets/../../api/agents",
        "/health/api/agents",
        "/%61pi/agents",
        "/api/auth/login/../me",
        "/api/auth/me%2f",
        "/api/agents%00",
    ],
)
async def test_no_spelling_of_a_path_goes_around_the_guard(house: House, path: str) -> None:
    # By hand: httpx would tidy the path up.
    url = httpx.URL(house.http.base_url).copy_with(raw_path=path.encode())

    response = await house.http.send(httpx.Request("GET", url))

    assert response.status_code in {401, 404}


async def test_preflights_pass_without_a_token(house: House) -> None:
    for operation in GUARDED:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": operation.method,
            "Access-Control-Request-Headers": "authorization,content-type",
        }

        response = await house.http.options(operation.url(), headers=headers)

        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN


# Scopes


@pytest.mark.parametrize("kind", ["own", "external"])
@pytest.mark.parametrize("operation", SCOPED, ids=str)
async def test_a_token_without_the_scope_is_403_before_anything_else(
    house: House, operation: Operation, kind: str
) -> None:
    assert operation.scopes
    others = " ".join(scope for scope in SCOPES if scope not in operation.scopes)
    near = " ".join(f"{name}s {name.upper()} {name[:-1]} x{name} {name}:all" for name in operation.scopes)
    for scope in (others, near, f"{others} {near}", ""):
        headers = bearer(house.own(scope=scope) if kind == "own" else house.external(scope=scope))

        for options in ({}, {"content": b"{"}, {"url": operation.url("nobody", "nobody")}):
            check_problem(await house.ask(operation, headers, **options), 403, "missing_scope")


@pytest.mark.parametrize("operation", GUARDED, ids=str)
async def test_the_documented_scope_is_enough(house: House, operation: Operation) -> None:
    scope = " ".join(operation.scopes or ())
    url = operation.url()
    if operation.is_of_a_session:
        created = await house.http.post("/api/chat", json={"message": "x"}, headers=bearer(house.own()))
        url = operation.url(created.json()["session_id"], created.json()["message_id"])

    response = await house.ask(operation, bearer(house.own(scope=scope)), url=url)

    assert response.status_code in operation.successes, response.text


async def test_scopes_as_a_list_count_like_scopes_as_text(house: House) -> None:
    for headers in (bearer(house.external(scope=["documents:write"])), bearer(house.own(scope=["documents:write"]))):
        assert (await house.http.get("/api/auth/me", headers=headers)).status_code == 200
        check_problem(await house.http.get("/api/agents", headers=headers), 403, "missing_scope")


# Guests, accounts and users of the issuer


async def test_a_guest_may_do_everything_but_write_documents(house: House) -> None:
    headers = [(name.encode(), value.encode()) for name, value in (await house.edge.guest()).items()]
    for operation in GUARDED:
        response = await house.ask_about_own(operation, headers)

        if operation.scopes and operation.scopes != ("chat",):
            check_problem(response, 403, "missing_scope")
        else:
            assert response.status_code in operation.successes, (operation, response.text)


async def test_a_new_account_may_do_what_a_guest_may(house: House) -> None:
    body = {"username": f"ada-{uuid.uuid4()}", "password": "a long sentence of hers", "scope": "admin"}
    refused = await house.http.post("/api/auth/register", json=body)
    assert refused.status_code == 422
    del body["scope"]
    response = await house.http.post("/api/auth/register", json=body)
    headers = bearer(response.json()["access_token"])
    for operation in GUARDED:
        response = await house.ask_about_own(operation, headers)

        if operation.scopes and operation.scopes != ("chat",):
            check_problem(response, 403, "missing_scope")
        else:
            assert response.status_code in operation.successes, (operation, response.text)


async def test_a_sign_in_cannot_ask_for_scopes(house: House) -> None:
    name, password = f"eve-{uuid.uuid4()}", "a long sentence of hers"
    await house.http.post("/api/auth/register", json={"username": name, "password": password})
    form = {"username": name, "password": password, "scope": ALL_SCOPES, "grant_type": "password"}

    token = (await house.http.post("/api/auth/login", data=form)).json()["access_token"]

    me = (await house.http.get("/api/auth/me", headers=bearer(token))).json()
    assert me["scopes"] == ["chat"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_user_of_the_issuer_may_do_what_the_token_says(house: House, algorithm: Algorithm) -> None:
    for claims in ({"scope": ALL_SCOPES}, {"tenant": "acme", "groups": ["a", "b"], "scope": "chat documents:write"}):
        headers = bearer(house.external(algorithm, sub=f"user-{uuid.uuid4()}", **claims))
        for operation in GUARDED:
            response = await house.ask_about_own(operation, headers)

            assert response.status_code in operation.successes, (operation, response.text)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_of_the_issuer_without_scopes_may_chat(house: House, algorithm: Algorithm) -> None:
    headers = bearer(house.external(algorithm, scope=None))
    for operation in SCOPED:
        response = await house.ask_about_own(operation, headers)

        if operation.scopes == ("chat",):
            assert response.status_code in operation.successes, (operation, response.text)
        else:
            check_problem(response, 403, "missing_scope")


async def test_the_scheme_is_read_in_any_case(house: House) -> None:
    for scheme in ("bearer", "BEARER", "Bearer"):
        headers = authorization(f"{scheme} {house.own()}")

        assert (await house.http.get("/api/auth/me", headers=headers)).status_code == 200


# Somebody else's


async def others(house: House) -> dict[str, Headers]:
    """Users who do not own the session, by what they have in common with the one who does."""
    guest = [(name.encode(), value.encode()) for name, value in (await house.edge.guest()).items()]
    body = {"username": f"bob-{uuid.uuid4()}", "password": "a long sentence of his"}
    account = (await house.http.post("/api/auth/register", json=body)).json()["access_token"]
    account_id = (await house.http.get("/api/auth/me", headers=bearer(account))).json()["user_id"]
    return {
        "another guest": guest,
        "an account": bearer(account),
        "an account with every scope": bearer(house.own(sub=account_id)),
        "a user of the issuer": bearer(house.external()),
        "a user of the issuer with the owner's id": bearer(house.external(sub=house.owner_id)),
        "a user of the issuer in another tenant": bearer(house.external(sub=house.owner_id, tenant="acme")),
        "a guest by claim": bearer(house.own(sub=account_id, guest=True)),
    }


async def test_the_session_of_somebody_else_is_403_everywhere_and_stays_as_it_was(house: House) -> None:
    owner = bearer(house.own())
    state, messages = f"/api/session/{house.session_id}", f"/api/session/{house.session_id}/messages"
    before = [(await house.http.get(path, headers=owner)).json() for path in (state, messages)]

    for who, headers in (await others(house)).items():
        for operation in GUARDED:
            if operation.is_of_a_session:
                response = await house.ask(operation, headers)
                check_problem(response, 403, "not_your_session")
                assert "mine" not in response.json()["detail"].replace(house.session_id, ""), who
        listed = (await house.http.get("/api/sessions", headers=headers)).json()["sessions"]
        assert house.session_id not in {each["session_id"] for each in listed}

    after = [(await house.http.get(path, headers=owner)).json() for path in (state, messages)]
    assert after == before


async def test_the_session_of_somebody_else_in_a_body_is_403(house: House) -> None:
    with_session = [each for each in GUARDED if each.session_in_body and not each.is_of_a_session]
    assert {each.path for each in with_session} >= {"/api/chat", "/chat"}
    for headers in (await others(house)).values():
        for operation in with_session:
            for name in operation.session_in_body:
                for more in ([], [(b"Accept", b"text/event-stream")]):
                    body = operation.request(**{name: house.session_id})

                    check_problem(await house.ask(operation, headers, more=more, **body), 403, "not_your_session")


async def test_an_own_path_with_the_session_of_somebody_else_in_the_body_is_422(house: House) -> None:
    headers = bearer(house.own(sub=house.owner_id))
    reply = (await house.http.post("/api/chat", json={"message": "x"}, headers=headers)).json()
    for operation in GUARDED:
        if operation.session_in_body and "{session_id}" in operation.path:
            for name in operation.session_in_body:
                body = operation.request(**{name: house.session_id})

                response = await house.ask(operation, headers, url=operation.url(reply["session_id"]), **body)

                check_problem(response, 422, "invalid_request")


async def test_a_session_that_never_was_is_404(house: House) -> None:
    for session_id in ("nobody", str(uuid.uuid4())):
        for operation in GUARDED:
            if operation.is_of_a_session:
                code = "message_not_found" if "{message_id}" in operation.path else "session_not_found"
                response = await house.ask(operation, bearer(house.own()), url=operation.url(session_id, session_id))

                check_problem(response, 404, code)


@pytest.mark.parametrize("odd", ["%00", "%0a", "%f0%28%8c%28", "x" * 128, "x" * 129, "%ed%a0%80", "'%20OR%201=1--"])
async def test_no_id_is_a_5xx_or_somebody_elses_session(house: House, odd: str) -> None:
    for operation in GUARDED:
        if "{" in operation.path:
            url = operation.path.replace("{session_id}", odd).replace("{message_id}", odd)
            response = await house.ask(operation, bearer(house.own()), url=url.replace("{document_id}", odd))

            if operation.is_of_a_session:
                assert response.status_code in {404, 422}, (operation, response.text)
            else:
                assert response.status_code < 500, (operation, response.text)


async def test_accounts_that_are_gone_are_401_where_something_would_be_stored(house: House) -> None:
    headers = bearer(house.own(sub=str(uuid.uuid4())))

    for path in ("/api/chat", "/chat"):
        response = await house.http.post(path, json={"message": "x"}, headers=headers)

        check_problem(response, 401, "unauthenticated")


# Public


async def test_public_operations_answer_without_a_token_and_do_not_look_at_a_bad_one(house: House) -> None:
    expected = {
        "/api/auth/register": 422,
        "/api/auth/login": 422,
        "/api/auth/guest": 201,
        "/api/auth/refresh": 401,
        "/api/auth/logout": 204,
    }
    async with httpx.AsyncClient(base_url=house.http.base_url, trust_env=False) as http:
        for method, path in sorted(PUBLIC | {("GET", path) for path in PUBLIC_PAGES}):
            for headers in ([], bearer("garbage"), bearer(house.own(exp=1)), authorization("Basic x", "Basic y")):
                response = await http.request(method, path, headers=headers)

                assert response.status_code == expected.get(path, 200), (path, response.text)
                assert response.status_code != 401 or response.json()["code"] == "invalid_refresh_token"


async def test_everything_said_here_was_verified_by_tokens_pyjwt_understands(house: House) -> None:
    """The hand-made ones are what an honest library makes, so their flaws are real ones."""
    claims = jwt.decode(house.own(), SECRET, algorithms=["HS256"], audience=AUDIENCE, issuer=OWN_ISSUER)

    assert claims["sub"] == house.owner_id
