"""The store on both of its engines: every test gets a migrated database of its own, copied from one template."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_api.auth.administration import AccountAdministration
from edge_api.auth.passwords import Passwords
from edge_api.auth.service import AccountRules, AccountService
from edge_api.auth.tokens import OwnTokens
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.service import ConversationService
from edge_api.db import Database
from tests.integration.edge.conftest import SECRET
from tests.integration.edge.store.steps import RULES, TTL_S, StillClock, database_at, migrate
from tests.support.folders import quick_folder
from tests.support.postgres_server import PostgresServer

BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres")))


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


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on a loop of its own, leaving the one of pytest alone."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(work)


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


@pytest.fixture
def conversations(database: Database, clock: StillClock) -> ConversationService:
    return ConversationService(database, RULES, clock=clock)


@pytest.fixture
def library(database: Database, clock: StillClock) -> SessionLibrary:
    return SessionLibrary(database, session_ttl_s=TTL_S, clock=clock)


@pytest.fixture(scope="module")
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
