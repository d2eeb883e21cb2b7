"""`python -m edge_api [serve | migrate | users | token]`: the process, from argv to exit code."""

import argparse
import asyncio
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from edge_api.app import begin_shutdown, create_app
from edge_api.commands import add_commands, run
from edge_api.errors import StartupError
from edge_api.settings import Settings, load_settings
from edge_api.telemetry import configure_logging

log = logging.getLogger(__name__)

# For error events to be written and sessions to be closed, after the grace period.
LAST_WORDS_S = 3

UNREAD_TIMEOUT_MS = 60_000


GC_THRESHOLDS = (20_000, 20, 20)
"""A request makes thousands of objects that die with it, without cycles: looking for those every 700 is time for
nothing."""


class Server(uvicorn.Server):
    """uvicorn, which ends open streams with an error event after a grace period, instead of cutting them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, *, grace_s: float, freeze: bool) -> None:
        super().__init__(config)
        self._app = app
        self._grace_s = grace_s
        self._freeze = freeze

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        if self._freeze:
            # What was built at start stays; scanning it again and again makes the tail of latency several times longer.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        addresses = [each.getsockname() for each in sockets or ()]
        log.info("listening", extra={"url": [f"http://{_printed(host)}:{port}" for host, port, *_ in addresses]})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        timer = asyncio.get_running_loop().call_later(self._grace_s, begin_shutdown, self._app)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def server_for(settings: Settings, app: FastAPI, *, freeze: bool = False) -> Server:
    """A server for `app`; its sockets are given when it is run. `freeze`: this process serves nothing else."""
    config = uvicorn.Config(
        app,
        # uvloop, where it runs: half of what an event costs.
        loop="auto",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Anybody can write these headers: they count only from the proxies that are named.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s) + LAST_WORDS_S,
    )
    return Server(config, app, grace_s=settings.shutdown_grace_s, freeze=freeze)


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, one for each address of `host`.

    Raises:
        StartupError: the name is unknown or the port is taken.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in sorted(set(found)):
            sock = socket.create_server(address[:2], family=family)
            sockets.append(sock)
            # Inherited by what it accepts, like the next one. asyncio knows no TCP in these sockets and leaves it out
            # (uvloop does not): a body after its head would wait 40 ms for an acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # The system drops a reader that was cut off and still takes nothing.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
    except OSError as err:
        for sock in sockets:
            sock.close()
        raise StartupError(
            f"cannot listen on {_printed(host)}:{port}: {err.strerror}; choose another EDGE_HOST or EDGE_PORT, "
            "or stop what holds it"
        ) from err
    return sockets


def _printed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; both end the process in bounded time."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when it has ended: that is the end asked for, not a failure.
        signal.signal(number, _leave)
    app = create_app(settings)
    server = server_for(settings, app, freeze=True)
    try:
        server.run(listen(settings.host, settings.port))
    except SystemExit:
        # So uvicorn ends where the application does not start.
        if (error := getattr(app.state, "startup_error", None)) is not None:
            raise error from None
        raise


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for what a person has to correct."""
    parser = argparse.ArgumentParser(prog="python -m edge_api", description="The public edge of Answerdesk.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve HTTP (the default); settings are EDGE_* variables")
    add_commands(commands)
    arguments = parser.parse_args(argv)
    try:
        settings = load_settings()
        if arguments.command not in {None, "serve"}:
            configure_logging("ERROR")
            return run(arguments, settings)
        configure_logging(settings.log_level)
        serve(settings)
    except StartupError as err:
        print(f"edge_api: {err}", file=sys.stderr)  # noqa: T201 - for the person at the terminal
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
