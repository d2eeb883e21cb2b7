"""`make run`: both services on this machine with the sample documents, until Ctrl-C or until one of them dies.

Run as `python -m deploy.local`. Settings are those of the services, from the environment; the edge follows a changed
AGENT_LISTEN by itself.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from edge_api.agent_client.signing import SIGNING_KEY_FILE, CallerSigner, generate_signing_key
from edge_api.errors import StartupError

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "examples" / "knowledge"

READY_TIMEOUT_S = 180.0
"""The first start compiles modules and loads the documents; later ones take a few seconds."""

STOP_MARGIN_S = 10.0
POLL_S = 0.25


class Service:
    """A child process in a process group of its own, so that Ctrl-C reaches it through `stop` alone."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            [sys.executable, *arguments], cwd=ROOT, env=dict(environment), start_new_session=True
        )

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, and enforce it after the time-out."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def service_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The children's environment: short drains suit a person who presses Ctrl-C; the edge finds the agent."""
    environment = {"AGENT_DRAIN_S": "5", **environ}
    if environ.get("AGENT_LISTEN"):
        environment.setdefault("EDGE_AGENT_TARGET", environ["AGENT_LISTEN"])
    return environment


def with_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """The same with a key pair of this machine, so that tenants and groups of callers reach the agent service.

    Made once under the edge's data directory; nothing is made where either key is set.
    """
    if environment.get("EDGE_AGENT_SIGNING_KEY") or environment.get("AGENT_VERIFY_KEY"):
        return dict(environment)
    folder = ROOT / (environment.get("EDGE_DATA_DIR") or ".data/edge")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = folder / SIGNING_KEY_FILE, folder / "agent-verify-key.pem"
    if not private.exists():
        # Readable by nobody else from its first moment on, and never half written.
        fresh = private.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(generate_signing_key(), encoding="ascii")
        fresh.rename(private)
    public.write_text(CallerSigner(str(private)).public_key_pem(), encoding="ascii")
    return {**environment, "EDGE_AGENT_SIGNING_KEY": str(private), "AGENT_VERIFY_KEY": str(public)}


def edge_url(environ: Mapping[str, str]) -> str:
    """Where the edge listens, as a person on this machine reaches it. Empty variables count as unset."""
    host = environ.get("EDGE_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{environ.get('EDGE_PORT') or '8000'}"


def is_ready(url: str) -> bool:
    """Whether the edge says that both services can be used. No proxy is asked for an address of our own."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (http.client.HTTPException, OSError, ValueError):
        return False


def banner(url: str, seconds: float) -> str:
    """What a person reads when everything is up."""
    question = '\'{"message":"What does the Enterprise plan cost?"}\''
    cut = 'sed \'s/.*"access_token":"//; s/".*//\''
    return (
        f"\nAnswerdesk is ready at {url} (after {seconds:.1f} s). Ctrl-C stops it.\n\n"
        f"  TOKEN=$(curl -sX POST {url}/api/auth/guest | {cut})\n"
        f"  curl -N {url}/chat -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d {question}\n"
        f"  API description: {url}/docs\n"
    )


def taken(address: tuple[str, int]) -> bool:
    """Whether somebody listens there already: their readiness must not pass for ours."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return True
    return False


def addresses(environ: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """What the services will listen on, by the variable that decides it; what is no address they refuse themselves."""
    host, _, port = (environ.get("AGENT_LISTEN") or "127.0.0.1:50051").rpartition(":")
    wanted = {
        "AGENT_LISTEN": (host.strip("[]"), port),
        "EDGE_PORT": (environ.get("EDGE_HOST") or "127.0.0.1", environ.get("EDGE_PORT") or "8000"),
    }
    return {name: (host, int(port)) for name, (host, port) in wanted.items() if port.isdecimal() and int(port)}


class Stop:
    """Set by a signal handler, so a plain flag: what takes a lock could wait there for its own interrupted holder."""

    requested = False

    def __call__(self, *_: object) -> None:
        """Ask for the stop; takes what a signal handler is given."""
        self.requested = True


def run(environ: Mapping[str, str], stop: Stop) -> int:
    """Start both services, say when they are ready, wait. Returns the exit code: 0 after a stop, else 1."""
    environment = service_environment(environ)
    for name, address in addresses(environment).items():
        if taken(address):
            print(f"{name}: {address[0]}:{address[1]} is in use. Stop what runs there, or set {name}.", file=sys.stderr)  # noqa: T201
            return 1
    url = edge_url(environment)
    print(f"Answerdesk is starting; loading {SAMPLES.relative_to(ROOT)} ...", flush=True)  # noqa: T201
    try:
        environment = with_keys(environment)
    except (OSError, StartupError) as err:
        print(f"EDGE_DATA_DIR: its key pair cannot be made or read: {err}", file=sys.stderr)  # noqa: T201
        return 1
    services = [
        Service("agent service", ["-m", "agent_service", "serve", "--load", str(SAMPLES)], environment),
        Service("edge", ["-m", "edge_api", "serve"], environment),
    ]
    try:
        return watch(services, url, stop)
    finally:
        # The edge first: it can still tell its readers why their streams end.
        for service in reversed(services):
            service.stop()
            service.wait(stop_timeout_s(environment))


def watch(services: list[Service], url: str, stop: Stop) -> int:
    """Wait until a stop is asked for or a service ends, and say when both are ready."""
    started = time.monotonic()
    ready = False
    while not stop.requested:
        for service in services:
            if service.exit_code is not None:
                print(f"The {service.name} ended with exit code {service.exit_code}.", file=sys.stderr)  # noqa: T201
                return 1
        seconds = time.monotonic() - started
        if not ready and is_ready(url):
            ready = True
            print(banner(url, seconds), flush=True)  # noqa: T201
        if not ready and seconds > READY_TIMEOUT_S:
            print(f"Not ready after {READY_TIMEOUT_S:.0f} s; see the log above.", file=sys.stderr)  # noqa: T201
            return 1
        time.sleep(POLL_S)
    return 0


def stop_timeout_s(environ: Mapping[str, str]) -> float:
    """How long a service gets to end: its drain, and some time to close. A drain that is no number is not its value."""
    try:
        return float(environ["AGENT_DRAIN_S"]) + STOP_MARGIN_S
    except (KeyError, ValueError):
        return 60 + STOP_MARGIN_S


def main() -> int:
    """Run until SIGINT or SIGTERM."""
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return run(os.environ, stop)


if __name__ == "__main__":
    sys.exit(main())
