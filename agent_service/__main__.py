"""`python -m agent_service`: serve, ingest, search, check-roster."""

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from agent_service.errors import AgentServiceError, StartupError
from agent_service.settings import Settings, load_settings
from agent_service.telemetry import configure_logging

STARTUP_FAILED = 2

SDK_SWITCHES = ("DISABLE_TRACING", "DONT_LOG_MODEL_DATA", "DONT_LOG_TOOL_DATA")
"""Nothing of a turn is uploaded or logged by the agents SDK, whatever keys are set. Read when it is imported."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m agent_service", description="Retrieval and generation over gRPC.")
    commands = top.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve until SIGTERM or Ctrl-C")
    serve.add_argument("--load", type=Path, action="append", metavar="PATH", help="ingest before saying SERVING")
    ingest = commands.add_parser("ingest", help="load documents, into a serving agent if there is one")
    ingest.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders or files (*.md, *.txt)")
    ingest.add_argument("--collection", help="default: the name of the folder below PATH")
    ingest.add_argument("--tenant", default="default", help="whose documents they are")
    ingest.add_argument("--group", action="append", default=[], help="only members may read; repeatable")
    search = commands.add_parser("search", help="print the best passages for a question")
    search.add_argument("query")
    search.add_argument("--top-k", type=int, default=5, choices=range(1, 51), metavar="1..50")
    for command in (ingest, search):
        command.add_argument("--target", help="a serving agent, HOST:PORT; default: AGENT_LISTEN")
    commands.add_parser("check-roster", help="check the roster and print the team")
    return top


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Carry a command out. Returns the exit code."""
    # Here and not above: a wrong argument or setting is told without waiting for grpc and the SDK to load.
    from agent_service import commands  # noqa: PLC0415
    from agent_service.types import Access, CollectionName  # noqa: PLC0415

    match arguments.command:
        case "serve":
            load = commands.IngestOptions(arguments.load) if arguments.load else None
            return _run(commands.run_server(settings, load))
        case "ingest":
            collection = CollectionName(arguments.collection) if arguments.collection else None
            access = Access(arguments.tenant, tuple(arguments.group))
            options = commands.IngestOptions(arguments.paths, collection, access)
            return _run(commands.ingest(settings, options, arguments.target))
        case "search":
            return _run(commands.search(settings, arguments.query, arguments.top_k, arguments.target))
        case _:
            return commands.check_roster(settings)


def _run(command: Coroutine[Any, Any, int]) -> int:
    import uvloop  # noqa: PLC0415 - loaded with what needs it

    # grpc costs half as much per message on uvloop.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, configure, run. What keeps it from starting is one line on standard error and exit code 2."""
    arguments = parser().parse_args(argv)
    for switch in SDK_SWITCHES:
        os.environ.setdefault(f"OPENAI_AGENTS_{switch}", "1")
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        return run(arguments, settings)
    except (StartupError, AgentServiceError) as err:
        print(f"agent_service: {err}", file=sys.stderr)  # noqa: T201
        return STARTUP_FAILED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
