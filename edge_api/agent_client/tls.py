"""TLS on the way to the agent service. Files are checked here: of those it cannot use, grpc says little."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edge_api.errors import StartupError

CURVES = (ec.SECP256R1, ec.SECP384R1)
"""With keys of other kinds (P-521, Ed25519) no handshake of grpc 1.85 succeeds."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What the edge trusts and shows, in PEM.

    Attributes:
        ca: the authorities of the agents' certificates.
        cert: the edge's own certificate, and those up to its authority; None: it shows none.
        key: of that certificate.
        name: the one in the agents' certificates; None: the host of the target.
    """

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = None
    name: str | None = None


def read_tls(ca: Path | None, cert: Path | None, key: Path | None, name: str | None) -> Tls | None:
    """TLS as the settings have it; None: calls go in clear.

    Raises:
        StartupError: a file cannot be read or used; names the variable.
    """
    if ca is None:
        return None
    chain, private = _read_pair(cert, key) if cert and key else (None, None)
    return Tls(_read_authority(ca), chain, private, name)


def _read_authority(path: Path) -> bytes:
    content = _content("EDGE_AGENT_TLS_CA", path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as err:
        raise StartupError("EDGE_AGENT_TLS_CA: its file holds no certificates in PEM") from err
    return content


def _read_pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    chain, private = _content("EDGE_AGENT_TLS_CERT", cert), _content("EDGE_AGENT_TLS_KEY", key)
    try:
        own = x509.load_pem_x509_certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as err:
        raise StartupError("EDGE_AGENT_TLS_CERT: its file holds no certificates in PEM") from err
    try:
        loaded = load_pem_private_key(private, password=None)
    except TypeError as err:
        raise StartupError("EDGE_AGENT_TLS_KEY: is encrypted; give the key without a passphrase") from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise StartupError("EDGE_AGENT_TLS_KEY: its file holds no private key in PEM") from err
    if loaded.public_key() != own:
        raise StartupError("EDGE_AGENT_TLS_KEY: is not the key of the first certificate of EDGE_AGENT_TLS_CERT")
    if not isinstance(own, rsa.RSAPublicKey) and not (
        isinstance(own, ec.EllipticCurvePublicKey) and isinstance(own.curve, CURVES)
    ):
        raise StartupError(
            "EDGE_AGENT_TLS_KEY: must be an RSA key, or an EC key of P-256 or P-384; grpc uses no other kind"
        )
    return chain, private


def _content(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as err:
        # Not the path: it may be the key itself, in the wrong place.
        why = f" ({err.strerror})" if isinstance(err, OSError) else ""
        raise StartupError(f"{variable}: is not the path of a file that can be read{why}") from err
