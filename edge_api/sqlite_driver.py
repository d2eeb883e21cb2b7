"""aiosqlite with one hop to its thread for each statement.

It takes four for a query (cursor, execute, fetch, close), and each wakes two threads; a turn's ten statements are forty
hops. SQLAlchemy reads all rows at once anyway.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Self

import aiosqlite

Row = tuple[Any, ...]
Outcome = tuple[Any, int, int | None, list[Row]]


class Cursor:
    """What SQLAlchemy's adapter needs of a cursor. Rows are read with the statement, so the rest costs nothing."""

    arraysize = 1

    def __init__(self, run: Callable[[Callable[[sqlite3.Connection], Outcome]], Any]) -> None:
        self._run = run
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self._rows: list[Row] = []

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Self:
        """Run a statement, and read its rows."""
        return await self._ran(lambda cursor: cursor.execute(sql, parameters))

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> Self:
        """Run a statement for each of these parameters."""
        return await self._ran(lambda cursor: cursor.executemany(sql, parameters))

    async def fetchall(self) -> list[Row]:
        """The rows that were not taken yet."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Nothing is open."""

    async def _ran(self, statement: Callable[[sqlite3.Cursor], object]) -> Self:
        def work(connection: sqlite3.Connection) -> Outcome:
            cursor = connection.cursor()
            try:
                statement(cursor)
                rows = cursor.fetchall() if cursor.description else []
                return cursor.description, cursor.rowcount, cursor.lastrowid, rows
            finally:
                cursor.close()

        self.description, self.rowcount, self.lastrowid, self._rows = await self._run(work)
        return self


class Connection(aiosqlite.Connection):
    """A connection with such cursors. Its thread ends with the process."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._thread.daemon = True

    def cursor(self) -> Cursor:  # type: ignore[override]
        """A cursor; nothing is done yet."""
        return Cursor(self._work)

    async def _work(self, work: Callable[[sqlite3.Connection], Outcome]) -> Outcome:
        done: Outcome = await self._execute(lambda: work(self._conn))  # type: ignore[no-untyped-call]
        return done


async def connect(database: str, **arguments: Any) -> Connection:
    """Open a file; the arguments are those of `sqlite3.connect`."""
    connection = Connection(lambda: sqlite3.connect(database, **arguments))
    await connection
    return connection
