"""The database: one engine, short units of work, and the column types that mean the same on SQLite and PostgreSQL."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from sqlite3 import OperationalError as SqliteOperationalError
from typing import Any, TypeAlias

from sqlalchemy import DateTime, Dialect, MetaData, Text, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

from edge_api import sqlite_driver
from edge_api.errors import StartupError, StorageUnavailableError

log = logging.getLogger(__name__)

UNIT_TIMEOUT_S = 10.0
"""Longest unit of work; with PostgreSQL the wait for a connection included."""

LINE_TIMEOUT_S = 30.0
"""Longest wait for SQLite's one connection. A crowd on a small machine is served late rather than sent away."""

TAKE_BACK_S = 0.5
"""What a server gets to end a statement whose time is up, before its connection is closed."""

WAL_TRIES = 40
WAL_PAUSE_S = 0.05
"""While others make the same new file. Two seconds in all."""

CONNECT_TIMEOUT_S = 5
OTHER_SCHEMA = {"42P01", "42703"}
"""PostgreSQL's codes for a table and a column that are not there."""

POSTGRESQL_POOL = 20
POSTGRESQL_OPTIONS = "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=20000"

Clock: TypeAlias = Callable[[], datetime]
UnitOfWork: TypeAlias = AsyncSession
"""What repositories work in; services hold it without knowing SQLAlchemy."""


def utc_now() -> datetime:
    """This moment, with its zone."""
    return datetime.now(UTC)


@asynccontextmanager
async def time_limit(timeout_s: float) -> AsyncIterator[None]:
    """A limit for work with the database that also holds where the server is silent; `TimeoutError` when it is over.

    Cancelled once, psycopg asks the server to end the statement, for up to ten seconds; cancelled again, it hangs up.
    """
    async with asyncio.timeout(timeout_s), asyncio.timeout(max(timeout_s - TAKE_BACK_S, timeout_s / 2)):
        yield


class Base(DeclarativeBase):
    """Every table of the edge. Constraints have names, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite stores no zone, so it is taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """See `TypeDecorator`."""
        if value is None:
            return None
        return value.astimezone(UTC).replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """See `TypeDecorator`."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class PlainText(TypeDecorator[str]):
    """Text of people and models. PostgreSQL cannot hold U+0000, and a model's slip must not lose its answer."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """See `TypeDecorator`."""
        return None if value is None else value.replace("\x00", "\ufffd")


class Database:
    """An engine and its units of work. Nobody else begins, commits or rolls back."""

    def __init__(self, url: URL, *, timeout_s: float = UNIT_TIMEOUT_S) -> None:
        self.url = url
        self.engine = _engine(url)
        self._timeout_s = timeout_s
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        # First come, first served: in the queue of the pool who comes at the right moment goes before who waits
        # (200 people at once: the longest wait is 0.5 s with this and 1.3 s without).
        self._line = asyncio.Lock() if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the default of one machine."""
        return self.url.get_backend_name() == "sqlite"

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[AsyncSession]:
        """One short transaction: committed where the block is left, rolled back on an error. Never around a stream.

        Raises:
            StorageUnavailableError: the database cannot be reached, or took too long; nothing was written, or, where
                only the confirmation was lost, all of it.
        """
        try:
            async with self._in_line(), time_limit(self._timeout_s), self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError, PoolTimeoutError, TimeoutError, OSError) as err:
            raise _unavailable(err) from err
        except DBAPIError as err:
            # `DatabaseError`, and none of its kinds, is how SQLite says that the file is damaged, or no database.
            if err.connection_invalidated or type(err) is DatabaseError:
                raise _unavailable(err) from err
            if getattr(err.orig, "sqlstate", None) in OTHER_SCHEMA:
                log.exception("the database has another schema than this edge; run: python -m edge_api migrate")
                raise _unavailable(err) from err
            raise

    @asynccontextmanager
    async def _in_line(self) -> AsyncIterator[None]:
        if self._line is None:
            yield
            return
        async with asyncio.timeout(LINE_TIMEOUT_S):
            await self._line.acquire()
        try:
            yield
        finally:
            self._line.release()

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def database_url(given: str | None, data_dir: Path) -> URL:
    """The address with the driver that this edge has; by default a SQLite file under the data directory.

    Raises:
        StartupError: it is no address, or of a database this edge does not know.
    """
    if given is None:
        return URL.create("sqlite+aiosqlite", database=str(data_dir / "edge.db"))
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # Its text quotes the address, and with it the password.
        raise StartupError("EDGE_DATABASE_URL: is not a database address") from None
    match url.drivername.lower().partition("+")[0]:
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise StartupError(
                    "EDGE_DATABASE_URL: sqlite needs a file, such as sqlite:////var/lib/answerdesk/edge.db"
                )
            return url.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+psycopg")
        case _:
            raise StartupError("EDGE_DATABASE_URL: must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE")


def _unavailable(err: BaseException) -> StorageUnavailableError:
    log.warning("a unit of work failed", extra={"cause": type(err).__name__})
    return StorageUnavailableError("the database did not answer")


def _engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        # One connection: SQLite has one writer, and waiting in our queue is cheaper and fairer than in its file lock
        # (300 turns at once: 0.6 s against 1.4 s).
        database, arguments = url.get_dialect()().create_connect_args(url)
        engine = create_async_engine(
            url,
            async_creator=partial(sqlite_driver.connect, *database, **arguments),
            pool_size=1,
            max_overflow=0,
            pool_timeout=UNIT_TIMEOUT_S,
            hide_parameters=True,
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    # What the address says counts more; of two options with one name PostgreSQL takes the later.
    usual = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "answerdesk-edge",
        "keepalives_idle": 30,
        "tcp_user_timeout": 10_000,
    }
    arguments = {name: value for name, value in usual.items() if name not in url.query}
    given = url.query.get("options", "")
    arguments["options"] = " ".join((POSTGRESQL_OPTIONS, *((given,) if isinstance(given, str) else given))).strip()
    return create_async_engine(
        url,
        pool_size=POSTGRESQL_POOL,
        max_overflow=0,
        pool_timeout=UNIT_TIMEOUT_S,
        # A server that was restarted is noticed here, and not by a person.
        pool_pre_ping=True,
        pool_recycle=1_800,
        connect_args=arguments,
        # Their values are what people wrote.
        hide_parameters=True,
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    try:
        _set_up_sqlite(connection)
    except BaseException:
        # The pool forgets a connection that fails here, and its thread would live on.
        connection.close()
        raise


def _set_up_sqlite(connection: Any) -> None:
    # We begin transactions, not the driver: it would begin them late, and a read that turns into a write fails at once
    # where another process has written meanwhile.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    for tries_left in reversed(range(WAL_TRIES)):
        if _is_wal(cursor, last=not tries_left):
            break
        connection.run_async(lambda _: asyncio.sleep(WAL_PAUSE_S))
    cursor.close()
    # SQLite's own knows ASCII only; people search for names.
    connection.create_function("lower", 1, _lower, deterministic=True)


def _is_wal(cursor: Any, *, last: bool) -> bool:
    """See that the file is in WAL mode, which it keeps. False: another process writes; on the `last` try an error."""
    # Asked first: changing it takes the file for oneself, and is refused at once while others write.
    cursor.execute("PRAGMA journal_mode")
    if cursor.fetchone()[0] == "wal":
        return True
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
    except SqliteOperationalError:
        if last:
            raise
        return False
    return True


def _lower(text: str | None) -> str | None:
    return None if text is None else str(text).lower()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
