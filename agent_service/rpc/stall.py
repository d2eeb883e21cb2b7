"""Cuts off calls whose caller takes nothing any more: a slow reader costs its place for a while, and not for ever."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from agent_service.errors import FollowerTooSlowError
from agent_service.rpc import status
from agent_service.rpc.interceptors import Context, abort

log = logging.getLogger(__name__)

STALLED_S = 60.0
"""A follower that takes no event for so long is cut off; it can resume from where it is. Seconds."""

STATUS_S = 1.0
"""What the status of a call that is cut off gets to leave. Behind a full window it leaves when the caller reads."""

_cutting: set[asyncio.Task[None]] = set()


class StallGuard:
    """Watches one call, which must run in the task that makes this.

    A handler that is merely cancelled leaves its call open: the caller would wait until its own deadline (tried with
    grpcio 1.85). So the status is sent from a task of its own, and then the handler is cancelled, which frees what it
    holds at once, whether the caller ever reads again or not.
    """

    def __init__(self, context: Context, *, limit_s: float | None = None) -> None:
        """`limit_s` None: `STALLED_S`."""
        self._context = context
        self._limit_s = STALLED_S if limit_s is None else limit_s
        self._loop = asyncio.get_running_loop()
        self._handler = asyncio.current_task()

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Something is handed to the caller, who has it, or has left, when the block is left."""
        timer = self._loop.call_later(self._limit_s, self._stalled)
        try:
            yield
        finally:
            timer.cancel()

    def _stalled(self) -> None:
        task = self._loop.create_task(self._cut())
        _cutting.add(task)
        task.add_done_callback(_cutting.discard)

    async def _cut(self) -> None:
        log.info("a caller that takes nothing is cut off", extra={"limit_s": self._limit_s})
        reply = status.to_status(
            FollowerTooSlowError(f"nothing was read for {self._limit_s:g} s; the turn can be resumed")
        )
        leaving = asyncio.ensure_future(abort(self._context, reply))
        # It has to be on its way before the handler ends.
        await asyncio.sleep(0)
        if self._handler is not None:
            self._handler.cancel()
        await asyncio.wait({leaving}, timeout=STATUS_S)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
