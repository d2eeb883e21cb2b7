"""The dependency audit: the real pip-audit, and an advisory service of our own."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.audit import audit, findings
from tests.support.processes import free_port

Advise: TypeAlias = Callable[[str], dict[str, Any] | None]

LOCKED = "".join(f"{name}==1.3.1 \\\n    --hash=sha256:{'0' * 64}\n" for name in ("anyio", "sniffio"))


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "run.txt"
    path.write_text(LOCKED)
    return path


@pytest.fixture
def service() -> Iterator[Callable[[Advise], str]]:
    """Starts a service that answers a package's name with its advisories; None is a fault of the service."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(advise: Advise) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = advise(question["package"]["name"])
                body = json.dumps(answer).encode()
                self.send_response(500 if answer is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by its base class
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1/query"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def advisory(name: str) -> dict[str, Any]:
    affected = {
        "package": {"name": name, "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.4.0"}]}],
    }
    return {"vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "Bad.", "affected": [affected]}]}


def test_a_vulnerable_package_fails_and_is_named(
    service: Callable[[Advise], str], lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = service(lambda name: advisory(name) if name == "sniffio" else {})

    assert audit(lock, url) == 1
    assert capsys.readouterr().err == "sniffio 1.3.1: PYSEC-1, CVE-1; fixed in 1.4.0\n"


def test_nothing_known_passes(service: Callable[[Advise], str], lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(lock, service(lambda _name: {})) == 0
    assert "nothing known against 2 packages" in capsys.readouterr().out


def test_a_service_out_of_reach_is_said_and_does_not_fail(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(lock, f"http://127.0.0.1:{free_port()}/v1/query") == 0
    assert "not reachable: skipped" in capsys.readouterr().out


def test_a_service_that_goes_away_meanwhile_is_said_and_does_not_fail(
    service: Callable[[Advise], str], lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: Iterator[dict[str, Any]] = iter([{}])

    assert audit(lock, service(lambda _name: next(answers, None))) == 0
    assert "went away: skipped" in capsys.readouterr().out


def test_an_audit_that_breaks_off_while_the_service_answers_fails(
    service: Callable[[Advise], str], lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(lock, service(lambda name: {} if name == "anyio" else None)) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_file_without_hashes_fails(
    service: Callable[[Advise], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "run.txt"
    lock.write_text("sniffio==1.3.1\n")

    assert audit(lock, service(lambda _name: {})) == 1
    assert "hash" in capsys.readouterr().err


def test_a_package_that_was_not_looked_at_is_a_finding() -> None:
    report = {
        "dependencies": [{"name": "anyio", "skip_reason": "not found"}, {"name": "idna", "version": "3", "vulns": []}]
    }

    assert findings(report) == ["anyio: not audited: not found"]
