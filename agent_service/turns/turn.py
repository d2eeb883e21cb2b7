"""One turn on the replica that runs it: its log, its task, who follows it, and how it is brought to an end."""

import asyncio
import logging
import time

from agent_service.errors import TurnLostError
from agent_service.turns.identity import TurnKey, fingerprint
from agent_service.turns.log_memory import TurnLog
from agent_service.types import StoppedTurn, TurnRequest, TurnStatus

log = logging.getLogger(__name__)

ABORT_S = 10.0
"""How long a turn may take to end after it was stopped; then its log ends without it. Seconds."""


class Turn:
    """One turn. `grace` runs while nobody follows it."""

    def __init__(self, key: TurnKey, request: TurnRequest) -> None:
        self.id = key.turn_id
        self.key = key
        self.request = request
        self.fingerprint = fingerprint(request)
        self.log = TurnLog(key.turn_id)
        self.task: asyncio.Task[None] | None = None
        self.followers = 0
        self.grace: asyncio.TimerHandle | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._was_followed = False
        self._aborted: TurnStatus | None = None
        self._ended = asyncio.Event()

    @property
    def is_deserted(self) -> bool:
        """Whether it runs and those who followed it here have all left."""
        return self._was_followed and not self.followers and not self.log.closed

    def joined(self) -> None:
        """Somebody follows it here."""
        self.followers += 1
        self._was_followed = True
        self.keep()

    def keep(self) -> None:
        """Somebody follows it: it does not end for want of followers."""
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None

    def abort(self, status: TurnStatus) -> None:
        """Cancel the task. The first reason counts: STOPPED or INTERRUPTED, or FAILED where the turn is lost."""
        if self._aborted is None and not self.log.closed and self.task is not None:
            self._aborted = status
            self.task.cancel()

    async def stop(self) -> StoppedTurn:
        """Abort it, wait for its end, and say how it ended."""
        if self.log.closed:
            return self._how(0.0)
        # Not the loop's time, of which uvloop has whole milliseconds only.
        arrived = time.perf_counter()
        self.abort(TurnStatus.STOPPED)
        try:
            async with asyncio.timeout(ABORT_S):
                await self._ended.wait()
        except TimeoutError:
            log.warning("a turn did not end when it was stopped", extra={"turn_id": self.id})
            self.end(None)
        return self._how((time.perf_counter() - arrived) * 1000)

    def end(self, task: asyncio.Task[None] | None) -> None:
        """Close the log as the task ended; None: it would not end, and counts as cancelled."""
        self.keep()
        failure = None if task is None or task.cancelled() else task.exception()
        if self._aborted is TurnStatus.FAILED:
            self.log.close(TurnLostError("the turn was lost between replicas"))
        elif task is None or task.cancelled():
            # What was written is kept.
            self.log.end_early(self._aborted or TurnStatus.INTERRUPTED, self.request)
            self.log.close()
        else:
            self.log.close(failure if isinstance(failure, Exception) else None)
        self._ended.set()

    def _how(self, abort_ms: float) -> StoppedTurn:
        return StoppedTurn(self.log.status, self.log.usage, abort_ms, self.log.last_sequence)
