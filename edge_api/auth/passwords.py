"""Passwords: hashed and compared off the event loop, a few at a time."""

import asyncio
import secrets
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from edge_api.errors import OverloadedError

# Source: RFC 9106, section 4, second recommended option (64 MiB, 3 passes, 4 lanes, 16 bytes of salt, 32 of hash);
# more than the least that OWASP's Password Storage Cheat Sheet allows (19 MiB, 2 passes, 1 lane).
TIME_COST = 3
MEMORY_KIB = 65_536
LANES = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Verified:
    """How a comparison ended.

    Attributes:
        ok: it is the password.
        new_hash: store this in place of the old hash, which was made with other parameters; None to keep that.
    """

    ok: bool
    new_hash: str | None = None


class Passwords:
    """Argon2id in threads of its own: one hash takes tens of milliseconds and 64 MiB, and must not stall requests.

    Args:
        workers: how many are worked on at once; times 64 MiB is the memory they take.
        max_waiting: how many may wait for a worker.
    """

    def __init__(self, *, workers: int = 2, max_waiting: int = 64) -> None:
        self._hashes = PasswordHash((Argon2Hasher(time_cost=TIME_COST, memory_cost=MEMORY_KIB, parallelism=LANES),))
        # Compared with where there is no account, so that time does not tell. Made with today's parameters.
        self._nobody = self._hashes.hash(secrets.token_urlsafe())
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="passwords")
        self._room = threading.BoundedSemaphore(workers + max_waiting)

    async def hash(self, password: str) -> str:
        """A new hash, in the PHC string format.

        Raises:
            OverloadedError: too many are waiting.
        """
        return await self._run(lambda: self._hashes.hash(_bytes(password)))

    async def verify(self, password: str, hash: str | None) -> Verified:  # noqa: A002 - the word for it
        """Compare a password with a stored hash.

        Args:
            password: as it was typed.
            hash: what `hash` once gave; None where there is no such account: takes as long, and is never right.

        Raises:
            OverloadedError: too many are waiting.
        """
        stored = self._nobody if hash is None else hash
        ok, new_hash = await self._run(lambda: self._hashes.verify_and_update(_bytes(password), stored))
        return Verified(ok and hash is not None, new_hash)

    def close(self) -> None:
        """End the threads; waits for what they are working on, and drops what waits."""
        self._threads.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._room.acquire(blocking=False):
            raise OverloadedError("too many people are signing in at this moment")
        future = self._threads.submit(work)
        # When the thread has ended, and not when the caller has left: a closed tab does not make room.
        future.add_done_callback(self._make_room)
        return await asyncio.wrap_future(future)

    def _make_room(self, _: "Future[T]") -> None:
        self._room.release()


def _bytes(password: str) -> bytes:
    """One password, whichever keyboard typed it (NIST SP 800-63B, section 5.1.1.2); a stray surrogate is no error."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
