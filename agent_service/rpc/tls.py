"""TLS on the gRPC port, and on calls to one. Files are checked here: of those it cannot use, grpc says little."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from agent_service.errors import StartupError

log = logging.getLogger(__name__)

CURVES = (ec.SECP256R1, ec.SECP384R1)
"""With keys of other kinds (P-521, Ed25519) a server of grpc 1.85 starts, and then no handshake succeeds."""


class ServerCertificates:
    """The certificate that the server shows, read again when its files change."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the files, in PEM: a chain with the server's own certificate first, its key, whose clients to let in.

        Raises:
            StartupError: a file cannot be read or used; names the variable.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._seen = self._contents()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For the port. With an authority of clients, only they get in."""
        # Its stub does not know that None means "as before".
        renewed: Any = self.renewed
        return grpc.dynamic_ssl_server_credentials(
            self._first, renewed, require_client_authentication=self._client_ca is not None
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new in the files; None: nothing that can be used. grpc asks before every handshake, in its thread."""
        # Not the times of the files: of two writes in one tick of the system's clock they show one.
        contents = self._contents()
        if contents == self._seen:
            return None
        self._seen = contents
        try:
            certificates = self._read()
        except StartupError as err:
            # Between the writing of the one file and of the other that is so, too.
            log.warning("changed certificate files are not used, those before stay: %s", err)
            return None
        log.info("the certificate files have changed, and are used from now on")
        return certificates

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key = _read_pair(self._cert, self._key)
        clients = _read_authority("AGENT_TLS_CLIENT_CA", self._client_ca) if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=clients)

    def _contents(self) -> list[bytes | None]:
        return [_content_if_any(path) for path in (self._cert, self._key, self._client_ca) if path is not None]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How to call a serving agent over TLS, in PEM. `name`: the one in its certificate; None: the target's host."""

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = None
    name: str | None = None

    def channel(self, target: str, options: list[tuple[str, str | int]]) -> grpc.aio.Channel:
        """A channel that trusts no other authority."""
        if self.name is not None:
            options = [*options, ("grpc.ssl_target_name_override", self.name)]
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(self.ca, self.key, self.cert), options)


def client_tls(ca: Path | None, cert: Path | None, key: Path | None) -> ClientTls | None:
    """How to call a serving agent, by this machine's settings; None: without TLS.

    Without an authority the agent is taken to be this machine's own: it must show this very certificate, whatever
    address it is called at.

    Raises:
        StartupError: a file cannot be read or used; names the variable.
    """
    chain, private = _read_pair(cert, key) if cert and key else (None, None)
    if ca is not None:
        return ClientTls(_read_authority("AGENT_TLS_CA", ca), chain, private)
    return ClientTls(chain, chain, private, _name_in(chain)) if chain else None


def _read_pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    chain, private = _content("AGENT_TLS_CERT", cert), _content("AGENT_TLS_KEY", key)
    try:
        own = x509.load_pem_x509_certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as err:
        raise StartupError("AGENT_TLS_CERT: its file holds no certificates in PEM") from err
    try:
        loaded = load_pem_private_key(private, password=None)
    except TypeError as err:
        raise StartupError("AGENT_TLS_KEY: is encrypted; give the key without a passphrase") from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise StartupError("AGENT_TLS_KEY: its file holds no private key in PEM") from err
    if loaded.public_key() != own:
        raise StartupError("AGENT_TLS_KEY: is not the key of the first certificate of AGENT_TLS_CERT")
    if not isinstance(own, rsa.RSAPublicKey) and not (
        isinstance(own, ec.EllipticCurvePublicKey) and isinstance(own.curve, CURVES)
    ):
        raise StartupError("AGENT_TLS_KEY: must be an RSA key, or an EC key of P-256 or P-384; grpc uses no other kind")
    return chain, private


def _read_authority(variable: str, path: Path) -> bytes:
    content = _content(variable, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as err:
        raise StartupError(f"{variable}: its file holds no certificates in PEM") from err
    return content


def _content(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as err:
        # Not the path: it may be the key itself, in the wrong place.
        why = f" ({err.strerror})" if isinstance(err, OSError) else ""
        raise StartupError(f"{variable}: is not the path of a file that can be read{why}") from err


def _content_if_any(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (OSError, ValueError):
        return None


def _name_in(chain: bytes) -> str | None:
    """A name that the first certificate is good for."""
    own = x509.load_pem_x509_certificates(chain)[0]
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common[0].value) if common else None
    dns = names.get_values_for_type(x509.DNSName)
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    # Of a certificate for *.example.com any name below that will do.
    return next((name.replace("*", "agent", 1) for name in (*dns, *addresses)), None)
