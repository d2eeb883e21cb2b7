"""Agents reach no database: by the graph of imports, and by what is loaded when the service is wired.

The graph knows what our modules import, not what packages import in turn; that is what the second kind of test is for.
"""

import os
import subprocess
import sys

import grimp
import pytest
from grimp import ImportGraph

DATABASES = ("sqlalchemy", "alembic", "sqlite3", "aiosqlite", "psycopg", "asyncpg")


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return grimp.build_graph("agent_service", "edge_api", "answerdesk", include_external_packages=True, cache_dir=None)


def loaded(*modules: str) -> set[str]:
    """Which database packages a new process has loaded after these imports."""
    code = f"import sys, {', '.join(modules)}; print(*(set(sys.modules) & {set(DATABASES)!r}))"
    # Coverage of child processes keeps what it measures in SQLite.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return set(ran.stdout.split())


@pytest.mark.parametrize("database", DATABASES)
def test_no_module_of_the_agent_service_reaches_a_database(graph: ImportGraph, database: str) -> None:
    if database not in graph.modules:
        return  # nobody at all imports it

    reaching = {name for name in graph.find_downstream_modules(database) if name.startswith("agent_service")}

    assert reaching == set()


def test_the_graph_would_show_it(graph: ImportGraph) -> None:
    assert "edge_api.db" in graph.find_downstream_modules("sqlalchemy")
    assert "agent_service.team.toolbox" in graph.find_downstream_modules("mcp")


def test_the_team_does_not_reach_retrieval(graph: ImportGraph) -> None:
    assert not graph.chain_exists("agent_service.team", "agent_service.retrieval", as_packages=True)


def test_the_wired_service_has_loaded_no_database() -> None:
    assert loaded("agent_service.wiring", "agent_service.server", "agent_service.team.toolbox") == set()


def test_the_store_adapters_load_no_database_but_the_sqlite_of_qdrant_clients_local_mode() -> None:
    # qdrant_client imports its in-process mode, and with it sqlite3, whether that mode is used or not. It is not.
    adapters = ("agent_service.retrieval.stores.edge", "agent_service.retrieval.stores.server")

    assert loaded(*adapters) <= {"sqlite3"}
