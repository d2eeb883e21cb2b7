"""The secret this edge signs its own tokens with: given and strong, or made once and kept in a file."""

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

import jwt
from jwt.algorithms import HMACAlgorithm

from edge_api.errors import StartupError

FILE_NAME = "jwt-secret"
REMEDY = 'make one with: python -c "import secrets; print(secrets.token_urlsafe(48))"'

# As many as SHA-256 gives: a shorter key is weaker than the signature (RFC 7518, section 3.2).
MIN_BYTES = 32
# 32 random hexadecimal digits have fewer once in some 10,000; a person's "aaaa...1234" always does.
MIN_DIFFERENT_CHARACTERS = 10
# Words and runs of keys of which placeholders are made; each with the separators that follow it.
PLACEHOLDER = re.compile(
    r"(?:change|please|replace|insert|secret|password|passwd|passphrase|example|default|insecure|unsafe|sample|dummy|"
    r"random|string|signing|super|very|long|your|this|with|here|test|demo|todo|dev|jwt|hs256|token|auth|edge|key|"
    r"answerdesk|local|my|me|in|is|for|the|not|it|of|at|to|use|least|characters|chars|bytes|production|prod|"
    r"abcdefghijklmnopqrstuvwxyz|0123456789|1234567890|qwertyuiop|asdfghjkl|zxcvbnm)[-_ .!]*",
    re.IGNORECASE,
)


def own_secret(given: str | None, *, data_dir: Path, may_generate: bool, why_not: str) -> str:
    """The HS256 secret of this edge; the same one for all processes that share `data_dir`.

    Args:
        given: the setting; must be strong.
        data_dir: where a secret is kept where none is given; made if missing, mode 0700.
        may_generate: whether one may be made.
        why_not: ends the sentence "EDGE_JWT_SECRET must be set ...".

    Raises:
        StartupError: the secret is missing or weak, or its file cannot be made or is open to others.
            The text never holds the secret.
    """
    if given is not None:
        if weakness := _weakness(given):
            raise StartupError(f"EDGE_JWT_SECRET {weakness}; {REMEDY}")
        return given
    if not may_generate:
        raise StartupError(f"EDGE_JWT_SECRET must be set {why_not}; {REMEDY}")
    path = data_dir / FILE_NAME
    try:
        if not path.exists():
            _make(path)
        secret = _read(path)
    except OSError as err:
        raise StartupError(f"{path} cannot be made or read ({err.strerror}); set EDGE_JWT_SECRET; {REMEDY}") from err
    if weakness := _weakness(secret):
        raise StartupError(f"{path}: what it holds {weakness}; delete the file, and the next start makes a new one")
    return secret


def _weakness(secret: str) -> str:
    """What is wrong with a secret, without quoting it; empty for a strong one."""
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    findings = {
        f"is shorter than {MIN_BYTES} bytes": size < MIN_BYTES,
        f"has fewer than {MIN_DIFFERENT_CHARACTERS} different characters": len(set(secret)) < MIN_DIFFERENT_CHARACTERS,
        "repeats a short pattern": any(secret[n:] == secret[:-n] for n in range(1, len(secret) // 2 + 1)),
        # Chance puts a word of two or three letters into every other random secret, and into half of one never.
        "is a placeholder": len(PLACEHOLDER.sub("", secret)) * 2 < len(secret),
        "is a key file or a JWK": not _is_symmetric(secret),
    }
    return next((what for what, found in findings.items() if found), "")


def _is_symmetric(secret: str) -> bool:
    """Whether PyJWT signs with it: it refuses what somebody may have published."""
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.PyJWTError:
        return False
    return True


def _make(path: Path) -> None:
    """Write a new secret, unless another process is first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE_NAME}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_urlsafe(48)}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link appears whole or not at all, and never in place of another's; a rename would replace it.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()


def _read(path: Path) -> str:
    with path.open("rb") as file:
        # Of the open file, so that it cannot be another by the time it is read. Windows knows no such modes.
        if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise StartupError(f"{path} is open to other users of this machine; run: chmod 600 {path}")
        return file.read(4_096).decode(errors="surrogateescape").strip()
