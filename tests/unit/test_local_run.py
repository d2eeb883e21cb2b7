"""`make run` without the run: addresses, readiness, and the life of a child process."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent_service.rpc.tokens import TokenVerifier
from agent_service.types import Caller as AgentCaller
from deploy import local
from deploy.local import ROOT, SAMPLES, Service, banner, edge_url, is_ready, service_environment, with_keys
from edge_api.agent_client.signing import Caller, CallerSigner

# A guard against a hang; every wait ends at its event, far earlier.
GUARD_S = 20.0
SHORT_S = 0.2


# --- addresses ---


def test_by_default_the_edge_is_where_the_services_say() -> None:
    assert edge_url({}) == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", "9000", "http://127.0.0.1:9000"),
        ("localhost", "8000", "http://localhost:8000"),
        ("0.0.0.0", "8000", "http://127.0.0.1:8000"),
        ("::1", "8000", "http://[::1]:8000"),
        ("::", "8000", "http://[::1]:8000"),
    ],
)
def test_the_edge_is_reached_where_it_listens(host: str, port: str, url: str) -> None:
    assert edge_url({"EDGE_HOST": host, "EDGE_PORT": port}) == url


def test_empty_variables_are_as_good_as_none() -> None:
    """As the services read them."""
    assert edge_url({"EDGE_HOST": "", "EDGE_PORT": ""}) == "http://127.0.0.1:8000"


def test_the_children_get_the_environment_and_a_short_drain() -> None:
    environ = {"PATH": "/bin", "EDGE_PORT": "9000"}

    assert service_environment(environ) == {"PATH": "/bin", "EDGE_PORT": "9000", "AGENT_DRAIN_S": "5"}
    assert environ == {"PATH": "/bin", "EDGE_PORT": "9000"}


def test_a_drain_that_was_set_is_kept() -> None:
    assert service_environment({"AGENT_DRAIN_S": "60"})["AGENT_DRAIN_S"] == "60"


def test_the_edge_follows_the_agent_to_another_address() -> None:
    assert service_environment({"AGENT_LISTEN": "127.0.0.1:7"})["EDGE_AGENT_TARGET"] == "127.0.0.1:7"


def test_a_target_that_was_set_is_kept() -> None:
    environ = {"AGENT_LISTEN": "0.0.0.0:7", "EDGE_AGENT_TARGET": "127.0.0.1:7"}

    assert service_environment(environ)["EDGE_AGENT_TARGET"] == "127.0.0.1:7"


def test_a_key_pair_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    environ = {"EDGE_DATA_DIR": str(tmp_path / "edge")}

    first, second = with_keys(environ), with_keys(environ)

    private, public = Path(first["EDGE_AGENT_SIGNING_KEY"]), Path(first["AGENT_VERIFY_KEY"])
    assert first == second
    assert private.parent == tmp_path / "edge"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert [each.name for each in sorted(private.parent.iterdir())] == [private.name, public.name]
    token = CallerSigner(str(private)).sign(Caller("ada", "acme", ("sales",)))
    assert TokenVerifier(str(public)).verify(token) == AgentCaller("ada", "acme", ("sales",))


@pytest.mark.parametrize("given", ["EDGE_AGENT_SIGNING_KEY", "AGENT_VERIFY_KEY"])
def test_who_has_a_key_keeps_it(tmp_path: Path, given: str) -> None:
    environ = {"EDGE_DATA_DIR": str(tmp_path / "edge"), given: "theirs"}

    assert with_keys(environ) == environ
    assert not (tmp_path / "edge").exists()


def test_the_banner_has_a_command_to_copy() -> None:
    text = banner("http://127.0.0.1:9000", 12.345)

    assert "http://127.0.0.1:9000/chat" in text
    assert "http://127.0.0.1:9000/docs" in text
    assert "12.3 s" in text
    assert '"message"' in text


def test_the_sample_documents_are_there() -> None:
    assert list(SAMPLES.rglob("*.md"))
    assert SAMPLES.is_relative_to(ROOT)


# --- readiness ---


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that says `status` at /readyz and 404 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "ready"), [(200, True), (204, False), (404, False), (500, False), (503, False)])
def test_the_edge_is_ready_when_it_says_so(status: int, ready: bool) -> None:
    with answering(status) as url:
        assert is_ready(url) is ready


def test_nobody_there_is_not_ready() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    assert is_ready(f"http://127.0.0.1:{port}") is False


def test_an_address_that_makes_no_sense_is_not_ready() -> None:
    assert is_ready("http://127.0.0.1:port") is False


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 banana\r\n\r\n"])
def test_something_else_at_the_port_is_not_ready(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(says)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            assert is_ready(f"http://127.0.0.1:{listener.getsockname()[1]}") is False
        finally:
            thread.join(GUARD_S)


def test_a_proxy_is_not_asked_for_an_address_of_our_own() -> None:
    """In a process of its own: urllib reads the proxies of the environment once."""
    with answering(200) as url:
        environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
        environment["http_proxy"] = "http://127.0.0.1:9"
        command = f"from deploy.local import is_ready; print(is_ready({url!r}))"
        said = subprocess.check_output(
            [sys.executable, "-c", command], cwd=ROOT, env=environment, text=True, timeout=GUARD_S
        )

    assert said.strip() == "True"


# --- a child process ---


def child(code: str) -> Service:
    return Service("child", ["-c", code], os.environ)


def test_a_child_ends_with_its_exit_code() -> None:
    service = child("import sys; sys.exit(3)")
    service.wait(GUARD_S)

    assert service.exit_code == 3


def test_a_child_gets_the_environment_it_is_given_and_runs_in_the_project(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    code = f"import os; open({str(seen)!r}, 'w').write(os.environ['AGENT_DRAIN_S'] + ' ' + os.getcwd())"
    service = Service("child", ["-c", code], {**os.environ, "AGENT_DRAIN_S": "5"})
    service.wait(GUARD_S)

    assert seen.read_text() == f"5 {ROOT}"


def test_a_running_child_has_no_exit_code_and_ends_when_it_is_asked() -> None:
    service = child("import signal; signal.pause()")
    assert service.exit_code is None

    service.stop()
    service.wait(GUARD_S)

    assert service.exit_code == -signal.SIGTERM


def test_stopping_and_waiting_twice_does_no_harm() -> None:
    service = child("pass")
    service.wait(GUARD_S)
    service.stop()
    service.wait(GUARD_S)

    assert service.exit_code == 0


def test_a_child_that_will_not_end_is_killed_after_the_time_out(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    service = child(
        "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "while True: signal.pause()"
    )
    ready.read_text()  # blocks until the child has opened the other end: it ignores SIGTERM by then
    service.stop()
    service.wait(SHORT_S)

    assert service.exit_code == -signal.SIGKILL


def test_a_child_is_in_a_process_group_of_its_own(tmp_path: Path) -> None:
    """So that Ctrl-C in the terminal reaches the parent alone, which stops its children in order."""
    group = tmp_path / "group"
    service = child(f"import os; open({str(group)!r}, 'w').write(str(os.getpgrp()))")
    service.wait(GUARD_S)

    assert int(group.read_text()) != os.getpgrp()


# --- addresses and stopping ---


def test_an_address_that_somebody_listens_on_is_taken() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        assert local.taken(address)
    assert not local.taken(address)


def test_the_addresses_are_those_of_the_settings() -> None:
    assert local.addresses({}) == {"AGENT_LISTEN": ("127.0.0.1", 50051), "EDGE_PORT": ("127.0.0.1", 8000)}
    given = {"AGENT_LISTEN": "[::1]:7000", "EDGE_HOST": "::1", "EDGE_PORT": "7001"}
    assert local.addresses(given) == {"AGENT_LISTEN": ("::1", 7000), "EDGE_PORT": ("::1", 7001)}


@pytest.mark.parametrize("port", ["0", "many"])
def test_a_port_that_is_none_yet_is_left_to_the_service(port: str) -> None:
    assert "EDGE_PORT" not in local.addresses({"EDGE_PORT": port})


def test_a_taken_port_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])

        assert local.run({"AGENT_LISTEN": "127.0.0.1:0", "EDGE_PORT": port}, local.Stop()) == 1

    printed = capsys.readouterr()
    assert f"EDGE_PORT: 127.0.0.1:{port} is in use" in printed.err
    assert printed.out == ""


def test_a_stop_asked_for_while_a_stop_is_handled_waits_for_nothing() -> None:
    stop = local.Stop()
    stop(15, None)
    stop(15, None)

    assert local.watch([], "http://127.0.0.1:1", stop) == 0


@pytest.mark.parametrize(("drain", "seconds"), [("30", 40), ("", 70), ("long", 70)])
def test_a_service_gets_its_drain_and_a_margin(drain: str, seconds: float) -> None:
    assert local.stop_timeout_s({"AGENT_DRAIN_S": drain}) == seconds
