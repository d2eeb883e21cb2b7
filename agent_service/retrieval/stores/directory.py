"""The data directory of the embedded store: one process at a time, and a note of what the index in it holds."""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from agent_service.errors import StartupError
from agent_service.retrieval.stores.payload import FORMAT

_LOCK = "lock"
_STORE = "index"
_UNFINISHED = "index.new"
_SCHEMA = "schema.json"


class DataDirectory:
    """A directory that this process owns until `release`.

    `index/` appears in it by a rename, complete with its schema: a crash while it is made leaves none.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._released = False

    @classmethod
    def acquire(cls, path: Path) -> "DataDirectory":
        """Create the directory if need be, and lock it.

        Raises:
            StartupError: another process owns it, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as err:
            raise StartupError(
                f"the data directory {path} cannot be used ({err.strerror}): make it writable, or set AGENT_DATA_DIR"
            ) from err
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise StartupError(
                f"the data directory {path} is in use by process {owner}; stop it, or set AGENT_DATA_DIR to another "
                "directory. Several processes share documents through a Qdrant server: set AGENT_QDRANT_URL"
            ) from err
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock)

    @property
    def store(self) -> Path:
        """Where the finished index is."""
        return self.path / _STORE

    def begin(self, dense_size: int | None) -> Path:
        """An empty place to build an index in; what an earlier attempt left there is removed."""
        unfinished = self.path / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        (unfinished / _SCHEMA).write_text(json.dumps(_schema(dense_size)), encoding="utf-8")
        return unfinished

    def finish(self) -> None:
        """Make what was built the store of this directory."""
        (self.path / _UNFINISHED).rename(self.store)
        for changed in (self.store, self.path):
            _sync(changed)

    def check_schema(self, dense_size: int | None) -> None:
        """Does the store hold what is asked for?

        Raises:
            StartupError: it does not, or cannot be read.
        """
        try:
            found = json.loads((self.store / _SCHEMA).read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise self.damaged(f"{_SCHEMA} is missing or unreadable") from err
        wanted = _schema(dense_size)
        if found != wanted:
            raise StartupError(
                f"the data directory {self.path} was made with {found}, this configuration needs {wanted}: set "
                "AGENT_DATA_DIR to a new directory and ingest the documents again, or go back to the old configuration"
            )

    def damaged(self, detail: str) -> StartupError:
        """What to raise for a store that cannot be opened."""
        return StartupError(
            f"the data directory {self.path} is damaged ({detail}): restore it from a backup, or move {self.store} "
            "away and ingest the documents again"
        )

    def release(self) -> None:
        """Let other processes have it. Idempotent."""
        if not self._released:
            self._released = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)


def _schema(dense_size: int | None) -> dict[str, int | None]:
    return {"format": FORMAT, "dense_size": dense_size}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
