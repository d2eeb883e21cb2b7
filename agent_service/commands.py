"""The commands of `python -m agent_service`, each from parsed arguments to an exit code."""

import gc
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from agent_service.errors import InvalidRequestError, StartupError
from agent_service.ingestion.load import Found, find_documents, read_documents
from agent_service.ingestion.pipeline import IngestPipeline
from agent_service.rpc.ingest_client import (
    CallFailedError,
    IngestReport,
    SearchHit,
    ingest_remotely,
    search_remotely,
    serving,
)
from agent_service.rpc.interceptors import LOCAL
from agent_service.rpc.tls import ClientTls, client_tls
from agent_service.server import on_loopback, serve
from agent_service.settings import Settings
from agent_service.types import Access, CollectionName, Question, SourceDocument
from agent_service.wiring import checked_roster, open_pipeline, open_searcher, open_store, wire

GC_THRESHOLDS = (20_000, 20, 20)
"""A turn makes thousands of objects that die with it, without cycles: looking for those every 700 is wasted time."""

SHOWN_PROBLEMS = 20
"""Problems printed one by one; beyond, their number."""

NOT_THE_RIGHT_CALLER = ("UNAUTHENTICATED: ", "must be the caller's own tenant", "must be groups that the caller is in")
"""What problems say that another token mends."""


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What documents to load, and for whom. `collection` None: named by the folder."""

    paths: Sequence[Path]
    collection: CollectionName | None = None
    access: Access = field(default_factory=lambda: Access(LOCAL.tenant))


@dataclass(slots=True)
class Tally:
    """Counts what became of the documents, and shows it."""

    found: Sequence[Found]
    progress: Progress
    task: TaskID
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def report(self, report: IngestReport) -> None:
        """Count one document."""
        self.counts[report.status] += 1
        if report.problem:
            self.problems.append(f"{report.uri}: {report.problem}")
        self.progress.update(self.task, advance=1, description=report.uri[-40:])

    def readable(self, access: Access) -> Iterator[SourceDocument]:
        """The documents in the files, read one by one; what cannot be read is counted and passed over."""
        return read_documents(
            self.found, access, lambda file, why: self.report(IngestReport(file.uri, "unreadable", problem=why))
        )

    def close(self) -> int:
        """Say how many became what. Returns the exit code: 1 where something failed."""
        counted = ", ".join(f"{number} {status}" for status, number in sorted(self.counts.items()))
        for problem in self.problems[:SHOWN_PROBLEMS]:
            print(problem, file=sys.stderr)  # noqa: T201
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            print(f"... and {more} more", file=sys.stderr)  # noqa: T201
        print(f"{self.counts.total()} documents: {counted or 'nothing to do'}", file=sys.stderr)  # noqa: T201
        return 1 if self.problems else 0


@contextmanager
def shown(found: Sequence[Found]) -> Iterator[Tally]:
    """A progress bar on a terminal, nothing elsewhere; standard output stays free."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Tally(found, progress, progress.add_task("reading", total=len(found)))


async def run_server(settings: Settings, load: IngestOptions | None) -> int:
    """Serve until a signal; documents named are loaded before the service says that it is ready."""
    async with AsyncExitStack() as stack:
        store = await open_store(settings)
        stack.push_async_callback(store.close)
        parts = wire(settings, store)
        stack.push_async_callback(parts.close)
        # What lives from here on lives for ever: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

        async def load_documents() -> None:
            if load is not None and await ingest_here(parts.pipeline, load):
                raise StartupError(f"--load {' '.join(map(str, load.paths))}: not every document could be loaded")

        await serve(parts, settings, load_documents)
    return 0


async def ingest(settings: Settings, options: IngestOptions, target: str | None) -> int:
    """Stream documents to a serving agent; open the store itself only when none answers. Exit code 1: some failed."""
    address = target or settings.listen
    tls = _tls(settings, target)
    if await serving(address, tls):
        with shown(find_documents(options.paths, options.collection)) as tally:
            try:
                await ingest_remotely(address, tally.readable(options.access), tally.report, _token(settings), tls)
            except CallFailedError as err:
                tally.problems.append(str(err))
        code = tally.close()
        _advise(tally.problems, options.access)
        return code
    if target is not None:
        raise _nobody(target, tls)
    store = await open_store(settings)
    try:
        return await ingest_here(open_pipeline(store), options)
    finally:
        await store.close()


async def ingest_here(pipeline: IngestPipeline, options: IngestOptions) -> int:
    """Ingest into a store of this process. Exit code 1: some documents failed."""
    with shown(find_documents(options.paths, options.collection)) as tally:
        for document in tally.readable(options.access):
            try:
                done = await pipeline.ingest(document)
            except InvalidRequestError as err:
                tally.report(IngestReport(document.uri, "rejected", problem=str(err)))
            else:
                tally.report(IngestReport(document.uri, done.status.value, done.document.passages))
    return tally.close()


async def search(settings: Settings, query: str, top_k: int, target: str | None) -> int:
    """Print the best passages for a query, asked of a serving agent, else of the store itself."""
    address = target or settings.listen
    tls = _tls(settings, target)
    if await serving(address, tls):
        try:
            hits = await search_remotely(address, query, top_k, _token(settings), tls)
        except CallFailedError as err:
            print(err, file=sys.stderr)  # noqa: T201
            _advise([str(err)], Access(LOCAL.tenant))
            return 1
    elif target is not None:
        raise _nobody(target, tls)
    else:
        store = await open_store(settings)
        try:
            found = await open_searcher(settings, store).search(Question(query, "", LOCAL), (), top_k)
        finally:
            await store.close()
        hits = [
            SearchHit(h.passage.uri, h.passage.title, h.passage.heading, h.score, h.passage.text) for h in found.hits
        ]
    for hit in hits:
        heading = f" > {hit.heading}" if hit.heading else ""
        print(f"{hit.score:6.2f}  {hit.uri}  {hit.title}{heading}\n        {' '.join(hit.text.split())[:160]}")  # noqa: T201
    if not hits:
        print("Nothing found.")  # noqa: T201
    return 0


def _token(settings: Settings) -> str | None:
    return settings.token.get_secret_value() if settings.token else None


def _tls(settings: Settings, target: str | None) -> ClientTls | None:
    tls = client_tls(settings.tls_ca, settings.tls_cert, settings.tls_key)
    if tls is None and target is not None and not target.startswith("unix:") and not on_loopback(target):
        print(  # noqa: T201
            f"--target {target} may be on another machine, and what goes there goes in clear; set AGENT_TLS_CA where "
            "that agent has TLS",
            file=sys.stderr,
        )
    return tls


def _nobody(target: str, tls: ClientTls | None) -> StartupError:
    hint = "with TLS; has it a certificate of AGENT_TLS_CA that names it?" if tls else "without TLS"
    return StartupError(f"--target {target}: no agent service answers there {hint}")


def _advise(problems: Sequence[str], access: Access) -> None:
    """Where a serving agent took the caller for nobody, or for somebody else: say how to be the right one."""
    if any(sign in problem for problem in problems for sign in NOT_THE_RIGHT_CALLER):
        groups = (word for group in access.groups for word in ("--group", group))
        command = shlex.join(["python", "-m", "edge_api", "token", "--tenant", access.tenant, *groups])
        print(  # noqa: T201
            "A serving agent knows you by AGENT_TOKEN; --tenant and --group must be those of the token. "
            f'To make one: export AGENT_TOKEN="$({command})"',
            file=sys.stderr,
        )


def check_roster(settings: Settings) -> int:
    """Check the roster and print the team."""
    roster = checked_roster(settings)
    for agent in roster.listing(settings.model if settings.provider == "openai" else "offline"):
        reads = f"{agent.strategy} over {', '.join(agent.collections)}" if agent.strategy else "routes"
        print(f"{agent.name:<16} {reads:<28} {agent.model:<14} {agent.description}")  # noqa: T201
        spec = roster.spec(agent.name)
        if spec is not None and spec.tools:
            print(f"{'':<16} may call {', '.join(spec.tools)}")  # noqa: T201
    return 0
