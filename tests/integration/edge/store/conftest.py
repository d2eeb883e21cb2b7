"""The store on both of its engines: every test gets a migrated database of its own, copied from one template."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from edge_api.agent_client.events import AgentSelected, Completed, JsonObject, TokenAdded, TurnId
from edge_api.auth.administration import AccountAdministration
from edge_api.auth.passwords import Passwords
from edge_api.auth.schemas import Principal
from edge_api.auth.service import AccountRules, AccountService
from edge_api.auth.tokens import OwnTokens
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import Draft, NewMessage, OpenTurn, SessionId
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Database, database_url
from edge_api.migrations import schema
from tests.integration.edge.conftest import SECRET, principal
from tests.support.folders import quick_folder
from tests.support.postgres_server import PostgresServer

TTL_S = 1_000.0
TURN_TIMEOUT_S = 100.0
ADA = principal("ada")
BOB = principal("bob")

BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres")))


class StillClock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        """Let time pass at once."""
        self.now += timedelta(seconds=seconds)


class Place:
    """Where databases of one engine are made."""

    def __init__(self, folder: Path, server: PostgresServer | None) -> None:
        self._folder = folder
        self._server = server
        self._made: list[str] = []

    @property
    def is_sqlite(self) -> bool:
        return self._server is None

    def create(self, template: str | None = None) -> str:
        """The address of a new database: empty, or a copy of `template`, which nobody is connected to."""
        name = f"store_{uuid.uuid4().hex}"
        if self._server is None:
            path = self._folder / f"{name}.db"
            if template is not None:
                shutil.copyfile(template.removeprefix("sqlite:///"), path)
            return f"sqlite:///{path}"
        self._server.create(name, template and template.rpartition("/")[2])
        self._made.append(name)
        return self._server.url(name)

    def clear(self) -> None:
        """Drop what was made."""
        for name in self._made:
            assert self._server is not None
            self._server.drop(name)
        self._made.clear()


def database_at(url: str, **options: Any) -> Database:
    return Database(database_url(url, Path("unused")), **options)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on a loop of its own, leaving the one of pytest alone."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(work)


async def migrate(url: str) -> None:
    database = database_at(url)
    try:
        await schema.upgrade(database)
    finally:
        await database.close()


@contextmanager
def _place(server: PostgresServer | None) -> Iterator[Place]:
    with quick_folder() as folder:
        place = Place(folder, server)
        try:
            yield place
        finally:
            place.clear()


@contextmanager
def _template(server: PostgresServer | None) -> Iterator[str]:
    with _place(server) as place:
        url = place.create()
        run(migrate(url))
        yield url


@pytest.fixture(scope="session")
def sqlite_template() -> Iterator[str]:
    with _template(None) as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_template(postgres: PostgresServer) -> Iterator[str]:
    with _template(postgres) as url:
        yield url


@pytest.fixture(params=BOTH)
def engine(request: pytest.FixtureRequest) -> str:
    """Its name; tests that are the same on both need not know."""
    name: str = request.param
    return name


@pytest.fixture
def place(engine: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    with _place(None if engine == "sqlite" else request.getfixturevalue("postgres")) as place:
        yield place


@pytest.fixture
def empty_url(place: Place) -> str:
    """A database without a table."""
    return place.create()


@pytest.fixture
def url(place: Place, engine: str, request: pytest.FixtureRequest) -> str:
    """A migrated database."""
    return place.create(request.getfixturevalue(f"{engine}_template"))


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = database_at(url)
    yield database
    await database.close()


@pytest.fixture
async def second_database(database: Database) -> AsyncIterator[Database]:
    """The same one, as another edge has it open."""
    second = Database(database.url)
    yield second
    await second.close()


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


RULES = TurnRules(session_ttl_s=TTL_S, turn_timeout_s=TURN_TIMEOUT_S)


@pytest.fixture
def conversations(database: Database, clock: StillClock) -> ConversationService:
    return ConversationService(database, RULES, clock=clock)


@pytest.fixture
def library(database: Database, clock: StillClock) -> SessionLibrary:
    return SessionLibrary(database, session_ttl_s=TTL_S, clock=clock)


def usage(total: int = 27) -> JsonObject:
    return {
        "requests": 1,
        "input_tokens": total - 7,
        "cached_input_tokens": 3,
        "output_tokens": 7,
        "total_tokens": total,
    }


def drafted(
    content: str = "answer",
    *,
    status: str = "completed",
    state: bytes = b"state",
    citations: list[JsonObject] | None = None,
) -> Draft:
    """An answer that came to its end."""
    draft = Draft(turn_id=TurnId("t-1"))
    draft.take(AgentSelected(2, "billing", "rag"))
    if content:
        draft.take(TokenAdded(3, content))
    draft.take(
        Completed(
            sequence=4,
            status="completed",
            outcome="answered",
            agent="billing",
            strategy="rag",
            citations=citations or [],
            usage=usage(),
            trace={"agent": "billing"},
            state=state,
        )
    )
    return draft


def cut(content: str = "", status: str = "failed") -> Draft:
    """An answer that did not come to its end."""
    draft = Draft(turn_id=TurnId("t-1"), status=status)
    if content:
        draft.take(TokenAdded(2, content))
    return draft


async def ask(
    conversations: ConversationService,
    content: str = "question",
    *,
    session: SessionId | None = None,
    owner: Principal = ADA,
) -> OpenTurn:
    """Open a turn."""
    return (await conversations.open(owner, NewMessage(session, content)))[0]


async def talk(
    conversations: ConversationService,
    content: str = "question",
    *,
    answer: Draft | None = None,
    session: SessionId | None = None,
    owner: Principal = ADA,
) -> OpenTurn:
    """A whole turn, asked and answered."""
    turn = await ask(conversations, content, session=session, owner=owner)
    assert await conversations.close(turn, answer or drafted())
    return turn


async def rows(database: Database, table: str) -> list[Mapping[str, Any]]:
    """A table as it is stored."""
    async with database.unit_of_work() as unit:
        return [dict(row) for row in (await unit.execute(text(f"SELECT * FROM {table}"))).mappings()]


async def until_waiting(database: Database) -> None:
    """Until a statement waits for a lock. On SQLite every unit of work waits for the one before it, from its begin."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while not database.is_sqlite:
        async with database.unit_of_work() as unit:
            if (await unit.execute(text(waiting))).scalar_one():
                return


async def together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """All at once: what each returned or raised."""
    return list(await asyncio.gather(*works, return_exceptions=True))


def kinds(results: list[Any]) -> dict[str, int]:
    """How many results, and how many errors of which class."""
    names = [type(each).__name__ if isinstance(each, BaseException) else "ok" for each in results]
    return {name: names.count(name) for name in names}


def environment(url: str, **settings: str) -> dict[str, str]:
    """For a child process."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("EDGE_", "AGENT_"))}
    return kept | {"EDGE_DATABASE_URL": url} | settings


@pytest.fixture(scope="session")
def passwords() -> Iterator[Passwords]:
    passwords = Passwords()
    yield passwords
    passwords.close()


@pytest.fixture
def tokens(clock: StillClock) -> OwnTokens:
    return OwnTokens(SECRET, ttl_s=900, clock=lambda: clock().timestamp())


ACCOUNT_RULES = AccountRules(refresh_ttl_s=10_000)


@pytest.fixture
def accounts(database: Database, tokens: OwnTokens, passwords: Passwords, clock: StillClock) -> AccountService:
    return AccountService(database, tokens, passwords, ACCOUNT_RULES, clock=clock)


@pytest.fixture
def other_accounts(
    second_database: Database, tokens: OwnTokens, passwords: Passwords, clock: StillClock
) -> AccountService:
    return AccountService(second_database, tokens, passwords, ACCOUNT_RULES, clock=clock)


@pytest.fixture
def administration(database: Database, passwords: Passwords, clock: StillClock) -> AccountAdministration:
    return AccountAdministration(database, passwords, clock=clock)
