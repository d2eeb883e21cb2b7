"""Brings a database to the schema of this build, and tells how far a database is."""

import asyncio
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.db import Database, time_limit
from edge_api.errors import StorageUnavailableError

FOLDER = Path(__file__).parent
CHECK_TIMEOUT_S = 2.0
UPGRADE_TIMEOUT_S = 600.0

LOCK = 7_220_135_411
"""Names the upgrade among PostgreSQL's advisory locks, so that of several at once one migrates. Any number."""

SchemaState: TypeAlias = Literal["ok", "schema_outdated", "schema_newer", "unreachable", "timeout"]


def head() -> str:
    """The revision that this build was made for."""
    return _history()[0]


async def upgrade(database: Database) -> None:
    """Apply what is missing; nothing, where the database is at the head. All or nothing.

    Raises:
        StorageUnavailableError: the database cannot be reached, or took too long.
        CommandError: the database is newer than this build.
    """
    try:
        async with asyncio.timeout(UPGRADE_TIMEOUT_S), database.engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except (OSError, TimeoutError, DBAPIError) as err:
        raise StorageUnavailableError("the database could not be migrated") from err


async def state(database: Database) -> SchemaState:
    """How the database's schema stands to this build's. Never raises; takes at most 2 s."""
    try:
        async with time_limit(CHECK_TIMEOUT_S), database.unit_of_work() as session:
            found = await _revision(session)
    except TimeoutError:
        return "timeout"
    except (StorageUnavailableError, DBAPIError):
        # Also where we may not read the table, or it is not Alembic's.
        return "unreachable"
    if found == head():
        return "ok"
    return "schema_outdated" if found is None or found in _history() else "schema_newer"


async def _revision(session: AsyncSession) -> str | None:
    """The revision the database is at; None where it was never migrated."""
    exists = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if session.get_bind().dialect.name != "sqlite":
        exists = "SELECT count(to_regclass('alembic_version'))"
    if not (await session.execute(text(exists))).scalar_one():
        return None
    found: str | None = (await session.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()
    return found


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:name)"), {"name": LOCK})
    command.upgrade(configuration(connection), "head")


@cache
def _history() -> tuple[str, ...]:
    """All revisions, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions())
