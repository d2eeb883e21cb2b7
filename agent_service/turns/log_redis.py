"""Turns that replicas share over Redis: the `SharedTurns`, and who may change a store that is not shared."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from agent_service.errors import AgentServiceError, StoreNotSharedError, TurnLogUnavailableError, UnknownTurnError
from agent_service.ports import TurnCodec
from agent_service.turns import log_redis_scripts as scripts
from agent_service.turns.identity import TurnKey
from agent_service.turns.log_memory import TurnLog
from agent_service.turns.log_redis_link import RedisLink
from agent_service.turns.log_redis_mirror import Mirror, usage_from_text
from agent_service.turns.log_redis_poller import AWAY_S, SETTLED_MS, Poller
from agent_service.turns.log_redis_scripts import Call, Keys
from agent_service.turns.shared import Claim, Hosting
from agent_service.types import EncodedEvent, StoppedTurn, TurnStatus

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""How often a replica says that it is there."""

END_POLL_S = 0.02
"""How often the end of a turn that was asked to stop is looked for."""

CLAIM_PAUSE_S = 0.1
"""Between two tries to claim a turn, while Redis may only have been slow."""

LAST_WRITE_S = 2.0
"""What is not written at the end is given so long."""

CANCEL_S, CANCELLATIONS = 0.2, 20

SHORTEST_KEEP_MS = 10_000
"""Of an ended turn, so that those who follow it elsewhere see its end."""

NOT_SHARED = (
    "other replicas have stores of their own, which would not see the change: set AGENT_QDRANT_URL for all of them, "
    "or stop the others, change this one, and start them again with the same documents (serve --load)"
)


class RedisTurns:
    """One replica's part in what replicas share over Redis."""

    def __init__(self, link: RedisLink, codec: TurnCodec, *, keep_s: float, has_own_store: bool = False) -> None:
        """Make it; `start` begins.

        Args:
            link: to Redis; closed with this.
            codec: of events and failures.
            keep_s: how long an ended turn can still be followed. Seconds.
            has_own_store: whether this replica's documents are in no other.
        """
        keep_ms = max(SHORTEST_KEEP_MS, int(keep_s * 1000))
        self.replica = uuid.uuid4().hex
        """Names this process, new at every start."""
        self._link = link
        self._has_own_store = has_own_store
        self._other_stores = 0
        self._mirror = Mirror(link, codec, self.replica, keep_ms)
        self._poller = Poller(link, codec, self.replica, keep_ms)
        self._hosting: Hosting | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, hosting: Hosting) -> None:
        """See `SharedTurns`."""
        if self._hosting is not None:
            return
        self._hosting = hosting
        self._run("mirror of turns", self._mirror.run(hosting))
        self._run("poller of turns", self._poller.run())
        self._run("stops of turns", self._link.listen(scripts.STOPS, hosting.stop_asked))
        self._run("heartbeat", self._beat_on())

    async def check(self) -> bool:
        """See `SharedTurns`. The link has logged it where not."""
        with contextlib.suppress(TurnLogUnavailableError):
            await self._beat()
            return True
        return False

    async def claim(self, key: TurnKey, fingerprint: str, *, create: bool) -> Claim:
        """See `SharedTurns`."""
        keys = Keys(key.tag)
        times = (scripts.RUNNING_MS, scripts.OWNER_MS)
        call = scripts.script(
            "claim", (keys.meta, keys.owner, keys.log), self.replica, fingerprint, *times, int(create)
        )
        while True:
            try:
                (became,) = await self._link.ask(call)
                return Claim[became.decode().upper()]
            except TurnLogUnavailableError:
                # A slow moment is no outage: a turn without a claim is not there for the others.
                if self._link.away_s >= AWAY_S:
                    raise
            await asyncio.sleep(CLAIM_PAUSE_S)

    def own(self, key: TurnKey, log: TurnLog, fingerprint: str) -> None:
        """See `SharedTurns`."""
        self._mirror.own(key.tag, log, fingerprint)

    def forget(self, key: TurnKey) -> None:
        """See `SharedTurns`."""
        self._mirror.forget(key.tag)

    async def followers(self, key: TurnKey) -> int:
        """See `SharedTurns`."""
        try:
            (number,) = await self._link.ask(scripts.script("count", (Keys(key.tag).followers,)))
        except TurnLogUnavailableError:
            return 0
        return int(number)

    def follow(self, key: TurnKey, after_sequence: int, *, observer: bool) -> AsyncGenerator[EncodedEvent]:
        """See `SharedTurns`."""
        return self._poller.follow(key, after_sequence, observer=observer)

    async def stop(self, key: TurnKey, *, timeout_s: float) -> StoppedTurn:
        """See `SharedTurns`."""
        arrived = time.perf_counter()
        flag_ms = scripts.RUNNING_MS
        while True:
            settled_ms, found = await self._link.ask(scripts.settled(), self._stop_call(key, flag_ms))
            if not found:
                if settled_ms < SETTLED_MS:
                    raise TurnLogUnavailableError("what replicas share of turns is not complete yet", retry_after_s=2.0)
                raise UnknownTurnError(key.turn_id)
            status, epoch, is_owned, last, usage = found
            if status != b"running":
                abort_ms = 0.0 if flag_ms else (time.perf_counter() - arrived) * 1000
                return StoppedTurn(TurnStatus(status.decode()), usage_from_text(usage.decode()), abort_ms, int(last))
            if not is_owned:
                await self._poller.doom(Keys(key.tag), int(epoch), settled_ms)
            if time.perf_counter() - arrived >= timeout_s:
                raise TurnLogUnavailableError("the replica that runs this turn did not end it", retry_after_s=2.0)
            flag_ms = 0
            await asyncio.sleep(END_POLL_S)

    def _stop_call(self, key: TurnKey, flag_ms: int) -> Call:
        keys = Keys(key.tag)
        return scripts.script("stop", (keys.log, keys.meta, keys.owner, keys.stop), flag_ms, scripts.STOPS, key.tag)

    def dismiss(self, err: AgentServiceError) -> None:
        """See `SharedTurns`."""
        self._poller.dismiss(err)

    async def require_shared_or_sole(self) -> None:
        """See `WriteGuard`. While Redis is away, what was known last counts."""
        if not self._has_own_store:
            return
        with contextlib.suppress(TurnLogUnavailableError):
            await self._beat()
        if self._other_stores:
            raise StoreNotSharedError(NOT_SHARED)

    async def close(self) -> None:
        """See `SharedTurns`."""
        await self._end_tasks()
        if self._hosting is not None:
            with contextlib.suppress(TurnLogUnavailableError, TimeoutError):
                async with asyncio.timeout(LAST_WRITE_S):
                    await self._mirror.write_all(self._hosting)
                    await self._link.ask(("ZREM", scripts.STORES, self.replica))
        await self._link.close()

    async def _end_tasks(self) -> None:
        # Again and again: what a task waits for may swallow a cancellation, as asyncio.wait_for does before Python 3.12
        # where its result comes at the same moment; then it would go on, and closing would wait for ever.
        pending = set(self._tasks)
        self._tasks.clear()
        for _ in range(CANCELLATIONS):
            if not pending:
                return
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_S)
        if pending:
            log.warning("tasks of shared turns do not end", extra={"tasks": [each.get_name() for each in pending]})

    async def _beat_on(self) -> None:
        while True:
            with contextlib.suppress(TurnLogUnavailableError):
                await self._beat()
            await asyncio.sleep(BEAT_S)

    async def _beat(self) -> None:
        member = self.replica if self._has_own_store else ""
        keys = (scripts.ALIVE, scripts.STORES)
        (others,) = await self._link.ask(
            scripts.script("beat", keys, scripts.GAP_MS, scripts.ALIVE_MS, member, scripts.OWNER_MS)
        )
        self._other_stores = int(others)

    def _run(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(coroutine, name=name))
