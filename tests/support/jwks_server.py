"""An issuer of tokens: its keys, and the HTTPS server that publishes them, with a certificate of its own authority.

The server runs in threads, so that it serves the test's own process and others alike. `SSL_CERT_FILE=<ca_file>` makes a
process trust it.
"""

import functools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

from tests.support.certificates import make_authority, make_certificate

Algorithm: TypeAlias = Literal["RS256", "ES256", "EdDSA"]
Private: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

PATH = "/api/auth/jwks"


@dataclass(frozen=True)
class SigningKey:
    """A key of the issuer."""

    kid: str
    algorithm: Algorithm
    private: Private

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public key as Better Auth publishes it; a change to None leaves a member out."""
        made = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        entry = dict(made) | {"kid": self.kid, "alg": self.algorithm}
        entry.pop("key_ops", None)
        return _changed(entry, changes)

    def public_pem(self) -> bytes:
        """The public key in PEM."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, claims: dict[str, Any], **headers: Any) -> str:
        """A token of these claims; a header of None is left out."""
        chosen = _changed({"kid": self.kid}, headers)
        return jwt.encode(claims, self.private, algorithm=self.algorithm, headers=chosen)


@functools.cache
def signing_key(algorithm: Algorithm = "EdDSA", kid: str = "first") -> SigningKey:
    """A key, the same one for the same name: RSA keys take long to make."""
    makers: dict[Algorithm, Callable[[], Private]] = {
        "RS256": lambda: rsa.generate_private_key(65_537, 2_048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }
    return SigningKey(kid, algorithm, makers[algorithm]())


@dataclass
class Reply:
    """What the server sends in place of the keys; `delay_s` passes before."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass
class JwksServer:
    """The running issuer.

    Attributes:
        issuer: its `iss` and, as Better Auth has it, its `aud`: the base URL.
        url: where its keys are.
        ca_file: the authority that vouches for its certificate, in PEM.
        keys: the JWKs to serve; change it at will.
        reply: sent in place of them.
        paths: what was asked for, in order.
    """

    issuer: str
    ca_file: Path
    keys: list[dict[str, Any]] = field(default_factory=list)
    reply: Reply | None = None
    paths: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where the keys are."""
        return self.issuer + PATH

    @property
    def requests(self) -> int:
        """How often anything was asked for."""
        return len(self.paths)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a token as Better Auth issues it; a change to None leaves a claim out."""
        now_s = int(time.time())
        usual = {
            "iss": self.issuer,
            "aud": self.issuer,
            "sub": "mXk2vT8w",
            "iat": now_s,
            "exp": now_s + 900,
            "id": "mXk2vT8w",
            "email": "ada@example.com",
            "name": "Ada",
        }
        return _changed(usual, changes)

    def ssl_context(self) -> ssl.SSLContext:
        """For a client that trusts this server and no other."""
        return ssl.create_default_context(cafile=str(self.ca_file))


@contextmanager
def jwks_server(folder: Path) -> Iterator[JwksServer]:
    """Serve on a free port of 127.0.0.1; certificates are written to `folder`. It starts with one EdDSA key."""
    authority, certificate = _certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.context = context
    server.state = JwksServer(f"https://127.0.0.1:{server.server_port}", authority, [signing_key().jwk()])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.state
    finally:
        server.state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    # Waited for at the end, so that no thread writes into the next test.
    daemon_threads = False
    context: ssl.SSLContext
    state: JwksServer

    def finish_request(self, request: Any, client_address: Any) -> None:
        # Here and not at accept: a client that says nothing would hold up all others.
        with suppress(OSError), self.context.wrap_socket(request, server_side=True) as secured:
            secured.settimeout(30)
            super().finish_request(secured, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        state = self.server.state
        state.paths.append(self.path)
        reply = state.reply or Reply(body=json.dumps({"keys": state.keys}).encode())
        state.closing.wait(reply.delay_s)
        self.send_response(reply.status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(reply.body))}
        for name, value in (usual | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass


def _changed(usual: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (usual | changes).items() if value is not None}


def _certificates(folder: Path) -> tuple[Path, Path]:
    """An authority's certificate, and the server's with its key."""
    authority = make_authority()
    server = make_certificate(authority)
    ca_file, server_file = folder / "issuer-ca.pem", folder / "issuer.pem"
    ca_file.write_bytes(authority.pem)
    server_file.write_bytes(server.key + server.pem)
    return ca_file, server_file
