"""The edge's own secret: strong or refused, made once, and readable by nobody else."""

import multiprocessing
import os
import secrets
import stat
from pathlib import Path

import pytest

from edge_api.auth.secrets import own_secret
from edge_api.errors import StartupError
from tests.support.jwks_server import signing_key

STRONG = "nK7v-2pQ9x_ZrT4wLm8cYb1GfHs6DjEa"


def given_secret(secret: str) -> str:
    return own_secret(secret, data_dir=Path("/nonexistent"), may_generate=False, why_not="in production")


def made(folder: Path) -> str:
    return own_secret(None, data_dir=folder, may_generate=True, why_not="")


def test_a_strong_secret_is_taken_as_it_is() -> None:
    assert given_secret(STRONG) == STRONG


def test_random_secrets_of_any_spelling_are_taken() -> None:
    for _ in range(500):
        for secret in (secrets.token_hex(32), secrets.token_urlsafe(24), secrets.token_urlsafe(48)):
            assert given_secret(secret) == secret


@pytest.mark.parametrize(
    ("secret", "weakness"),
    [
        ("", "shorter than 32 bytes"),
        (STRONG[:31], "shorter than 32 bytes"),
        ("a" * 64, "different characters"),
        ("121212121212121212121212121212121212", "different characters"),
        ("abcdefghijklmnop" * 4, "short pattern"),
        ("abcdefghijklmnop" * 4 + "abc", "short pattern"),
        ("changeme-please-this-is-your-secret-key", "placeholder"),
        ("Your-256-Bit-Secret_Your-256-Bit-Password", "placeholder"),
        ("my-super-secret-jwt-signing-key-for-dev", "placeholder"),
        ("replace-with-at-least-32-characters!!", "placeholder"),
        ("abcdefghijklmnopqrstuvwxyz0123456789", "placeholder"),
        (signing_key().public_pem().decode(), "key file"),
        ('{"kty": "oct", "k": "c2VjcmV0LW9mLTMyLWJ5dGVzLW9mLXJhbmRvbQ"}', "JWK"),
        (STRONG + "\udcff", "UTF-8"),
    ],
)
def test_a_weak_secret_is_refused_with_a_remedy_and_never_quoted(secret: str, weakness: str) -> None:
    with pytest.raises(StartupError, match=weakness) as raised:
        given_secret(secret)

    assert "EDGE_JWT_SECRET" in str(raised.value)
    assert "secrets.token_urlsafe(48)" in str(raised.value)
    assert not secret or secret not in str(raised.value)


def test_a_word_within_a_random_secret_does_not_make_it_a_placeholder() -> None:
    assert given_secret(f"secret-{STRONG}")


def test_a_secret_that_must_be_given_and_is_not_ends_the_start() -> None:
    with pytest.raises(StartupError, match=r"^EDGE_JWT_SECRET must be set in production; make one with: python -c"):
        own_secret(None, data_dir=Path("/nonexistent"), may_generate=False, why_not="in production")


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "edge"

    first = made(folder)

    assert made(folder) == first
    assert given_secret(first) == first
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "jwt-secret").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["jwt-secret"]


def test_processes_that_start_at_once_have_the_same_secret(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        made_by = pool.map(made, [tmp_path / "edge"] * 32, chunksize=1)
        pool.close()
        pool.join()

    assert len(set(made_by)) == 1


def test_who_comes_second_takes_the_secret_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Path.hardlink_to

    def after_another(path: Path, target: Path) -> None:
        path.write_text(STRONG)
        path.chmod(0o600)
        link(path, target)

    monkeypatch.setattr(Path, "hardlink_to", after_another)

    assert made(tmp_path) == STRONG
    assert [path.name for path in tmp_path.iterdir()] == ["jwt-secret"]


def test_a_crash_before_the_secret_is_whole_leaves_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StartupError, match="No space left on device"):
        made(tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    secret = made(tmp_path)
    (tmp_path / "jwt-secret").chmod(mode)

    with pytest.raises(StartupError, match="chmod 600") as raised:
        made(tmp_path)

    assert secret not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"changeme", b"\xff" * 64])
def test_a_file_with_a_weak_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwt-secret"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(StartupError, match="delete the file"):
        made(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartupError, match="jwt-secret cannot be made or read"):
        made(tmp_path / "file" / "edge")
