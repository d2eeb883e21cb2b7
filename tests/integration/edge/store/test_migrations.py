"""The schema's history: applied, checked, taken back, and told from another version's."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.util.exc import CommandError
from pydantic import SecretStr
from sqlalchemy import Connection, inspect, text

from edge_api.auth.administration import AccountAdministration
from edge_api.auth.passwords import Passwords
from edge_api.db import Database, database_url
from edge_api.errors import StartupError, StorageUnavailableError
from edge_api.migrations import schema
from edge_api.settings import Settings
from edge_api.wiring import read_secrets, running_parts
from tests.integration.edge.conftest import SECRET, StartEdge
from tests.integration.edge.store.conftest import Place
from tests.integration.edge.store.keeper import kept_postgres
from tests.integration.edge.store.steps import database_at, environment, migrate, rows
from tests.support.processes import ROOT

TABLES = {
    *("users", "refresh_tokens", "sessions", "messages", "turns", "feedback", "edges", "idempotency_keys"),
    "alembic_version",
}


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def check(connection: Connection) -> None:
    command.check(schema.configuration(connection))


def downgrade(connection: Connection) -> None:
    command.downgrade(schema.configuration(connection), "base")


async def set_revision(url: str, revision: str) -> None:
    database = database_at(url)
    async with database.unit_of_work() as unit:
        await unit.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    await database.close()


@pytest.fixture
async def empty(empty_url: str) -> Database:
    return database_at(empty_url)


async def test_an_empty_database_becomes_what_the_models_say(empty: Database) -> None:
    before = await schema.state(empty)
    await schema.upgrade(empty)

    async with empty.engine.begin() as connection:
        await connection.run_sync(check)
        assert await connection.run_sync(tables) == TABLES
    assert (before, await schema.state(empty)) == ("schema_outdated", "ok")
    await empty.close()


async def test_upgrading_again_changes_nothing(database: Database) -> None:
    async with database.unit_of_work() as unit:
        values = "('u', 'i', 's', 't', '[]', '[]', false, false, '2030-01-01 00:00:00')"
        columns = "id, issuer, subject, tenant, groups, scopes, guest, disabled, created_at"
        await unit.execute(text(f"INSERT INTO users ({columns}) VALUES {values}"))

    await schema.upgrade(database)

    assert len(await rows(database, "users")) == 1
    assert await rows(database, "alembic_version") == [{"version_num": schema.head()}]


async def test_of_five_upgrades_at_once_one_migrates(place: Place, empty_url: str) -> None:
    await asyncio.gather(*(migrate(empty_url) for _ in range(5)))

    database = database_at(empty_url)
    assert await schema.state(database) == "ok"
    assert await rows(database, "alembic_version") == [{"version_num": schema.head()}]
    await database.close()


async def test_down_to_nothing_and_up_again(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(downgrade)
        assert await connection.run_sync(tables) == {"alembic_version"}
    down = await schema.state(database)
    await schema.upgrade(database)

    async with database.engine.begin() as connection:
        await connection.run_sync(check)
    assert (down, await schema.state(database)) == ("schema_outdated", "ok")


async def test_an_edge_whose_tables_are_not_there_is_unavailable_and_not_broken(empty: Database) -> None:
    with pytest.raises(StorageUnavailableError):
        await AccountAdministration(empty, Passwords()).all()
    await empty.close()


async def test_a_failed_upgrade_leaves_nothing_behind(empty: Database) -> None:
    # In the way of the third table.
    async with empty.unit_of_work() as unit:
        await unit.execute(text("CREATE TABLE sessions (id INTEGER)"))

    with pytest.raises(StorageUnavailableError):
        await schema.upgrade(empty)

    async with empty.engine.begin() as connection:
        assert await connection.run_sync(tables) == {"sessions"}
    await empty.close()


async def test_a_newer_database_is_told_and_not_touched(database: Database, url: str) -> None:
    await set_revision(url, "9999")

    assert await schema.state(database) == "schema_newer"
    with pytest.raises(CommandError):
        await schema.upgrade(database)
    assert await rows(database, "alembic_version") == [{"version_num": "9999"}]


async def test_a_table_of_that_name_that_is_not_alembics_is_unreachable(empty: Database) -> None:
    async with empty.unit_of_work() as unit:
        await unit.execute(text("CREATE TABLE alembic_version (id INTEGER)"))

    assert await schema.state(empty) == "unreachable"
    await empty.close()


@pytest.mark.needs("postgres")
async def test_a_server_that_goes_away_is_unreachable_until_it_is_back(tmp_path: Path) -> None:
    with kept_postgres(tmp_path) as server:
        database = database_at(server.url())
        found = [await schema.state(database)]
        await schema.upgrade(database)
        found.append(await schema.state(database))
        await asyncio.to_thread(server.stop)
        found.append(await schema.state(database))
        await asyncio.to_thread(server.start)
        found.append(await schema.state(database))
        await database.close()

    assert found == ["schema_outdated", "ok", "unreachable", "ok"]


@pytest.mark.parametrize("rubbish", [None, b"this is no database, and long enough not to be an empty one" * 100])
async def test_a_file_that_cannot_be_opened_is_unreachable(tmp_path: Path, rubbish: bytes | None) -> None:
    path = tmp_path / "missing" / "edge.db"
    if rubbish is not None:
        path.parent.mkdir()
        path.write_bytes(rubbish)
    database = Database(database_url(f"sqlite:///{path}", tmp_path))

    assert await schema.state(database) == "unreachable"
    with pytest.raises(StorageUnavailableError):
        await schema.upgrade(database)
    with pytest.raises(StorageUnavailableError):
        await rows(database, "users")
    await database.close()
    # Each connection has a thread, and none is left behind.
    threads = [each for each in threading.enumerate() if "_connection_worker_thread" in each.name]
    for thread in threads:
        await asyncio.to_thread(thread.join, 5)
    assert [each.name for each in threads if each.is_alive()] == []


async def test_an_edge_tells_how_its_database_is(start_edge: StartEdge, place: Place, empty_url: str) -> None:
    async with start_edge(database_url=SecretStr(empty_url), guests="off") as edge:
        new = await edge.anonymous.get("/readyz")
    await migrate(empty_url)
    await set_revision(empty_url, "9999")
    async with start_edge(database_url=SecretStr(empty_url), guests="off") as edge:
        newer = await edge.anonymous.get("/readyz")

    # One machine's database is migrated by its edge.
    expected = (200, "ok") if place.is_sqlite else (503, "schema_outdated")
    assert (new.status_code, new.json()["checks"]["database"]) == expected
    assert (newer.status_code, newer.json()["checks"]["database"]) == (503, "schema_newer")
    assert newer.json()["checks"] == {"edge": "ok", "database": "schema_newer", "agent": "ok", "knowledge": "ok"}


async def test_migrating_at_the_terminal_makes_an_edge_ready(start_edge: StartEdge, empty_url: str) -> None:
    async def migrated() -> tuple[int | None, str]:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge_api", "migrate"),
            env=environment(empty_url),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(child.communicate(), 30)
        return child.returncode, output.decode()

    assert await migrated() == (0, f"schema {schema.head()}: migrated\n")
    assert await migrated() == (0, f"schema {schema.head()}: up to date\n")
    async with start_edge(database_url=SecretStr(empty_url)) as edge:
        assert (await edge.http.get("/readyz")).status_code == 200
    await set_revision(empty_url, "9999")
    assert await migrated() == (
        2,
        "edge_api: the database is not touched: it was made by a newer version of this edge\n",
    )


def settings_for(path: Path) -> Settings:
    return Settings(database_url=SecretStr(f"sqlite:///{path}"), data_dir=path.parent, jwt_secret=SecretStr(SECRET))


async def test_a_second_edge_on_one_sqlite_file_is_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "edge.db")
    secrets = read_secrets(settings)
    async with running_parts(settings, secrets) as first:
        with pytest.raises(StartupError, match=r"another edge uses .*edge\.db.*EDGE_DATA_DIR.*EDGE_DATABASE_URL"):
            async with running_parts(settings, secrets):
                pass
        assert await schema.state(first.database) == "ok"

    async with running_parts(settings, secrets):
        pass


async def test_an_edge_does_not_start_on_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    path.write_bytes(b"this is no database, and long enough not to be an empty one" * 100)
    settings = settings_for(path)

    with pytest.raises(StartupError, match=r"edge\.db cannot be opened or migrated"):
        async with running_parts(settings, read_secrets(settings)):
            pass
