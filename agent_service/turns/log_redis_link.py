"""The connections of one replica to Redis: every command has a time limit, and a server that is away is left alone."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from agent_service.errors import TurnLogUnavailableError
from agent_service.turns.log_redis_scripts import SCRIPTS, Call

log = logging.getLogger(__name__)

# One listens; mirror, poller and heartbeat have one each; the rest is for claims, first looks and stops, below 1 ms.
MAX_CONNECTIONS = 16

# A subscription that heard nothing for so long is asked whether it is still one.
LISTEN_S = 5.0

FAILURES = (RedisError, OSError, TimeoutError)


class RedisLink:
    """Asks Redis. What it cannot answer now is a `TurnLogUnavailableError`."""

    def __init__(self, url: str, *, timeout_s: float = 0.5, leave_alone_s: float = 1.0) -> None:
        """`timeout_s`: limit of one round trip. `leave_alone_s`: how long a Redis that failed is not asked again."""
        self._timeout_s = timeout_s
        self._leave_alone_s = leave_alone_s
        self._away_since_s: float | None = None
        self._retry_at_s = 0.0
        # Who waits for a connection waits for us, not for Redis: that must not look as if it were away.
        self._free = asyncio.Semaphore(MAX_CONNECTIONS - 1)
        # No retries: those who ask know better what to do meanwhile. RESP 2: what older servers speak, too.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._client: Any = Redis.from_pool(pool)

    @property
    def away_s(self) -> float:
        """For how long Redis has not answered; 0 while it does. Seconds."""
        return 0.0 if self._away_since_s is None else time.monotonic() - self._away_since_s

    async def ask(self, *calls: Call) -> list[Any]:
        """Send calls in one round trip. Returns their replies, in order.

        Raises:
            TurnLogUnavailableError: Redis did not answer in time, refused, or is left alone after a failure.
        """
        async with self._free:
            return await self._ask(calls)

    async def _ask(self, calls: tuple[Call, ...]) -> list[Any]:
        now = time.monotonic()
        was_away = self._away_since_s is not None
        if was_away:
            if now < self._retry_at_s:
                raise _unavailable()
            # This call tries; those that come meanwhile do not.
            self._retry_at_s = now + self._leave_alone_s
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._send(calls)
        except FAILURES as err:
            self._failed(err)
            raise _unavailable() from None
        # A call that began before the failure of another proves nothing.
        if was_away and self._away_since_s is not None:
            log.info("Redis is back, replicas share their turns again", extra={"away_s": round(self.away_s, 1)})
            self._away_since_s = None
        return replies

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Pass on what is published in a channel until cancelled; connects again where the connection breaks."""
        while True:
            with contextlib.suppress(*FAILURES):
                async with self._client.pubsub() as subscription:
                    async with asyncio.timeout(self._timeout_s):
                        await subscription.subscribe(channel)
                    await self._hear(subscription, heard)
            # The one who asks says that Redis is away; who only listens need not say it again.
            await asyncio.sleep(self._leave_alone_s)

    async def _hear(self, subscription: Any, heard: Callable[[str], None]) -> None:
        asked = False
        while True:
            message = await subscription.get_message(timeout=LISTEN_S)
            if message is not None and message["type"] == "message":
                heard(message["data"].decode("utf-8", "replace"))
            if message is not None:
                asked = False
            elif asked:
                return
            else:
                asked = True
                async with asyncio.timeout(self._timeout_s):
                    await subscription.ping()

    async def _send(self, calls: tuple[Call, ...]) -> list[Any]:
        replies = await self._once(calls)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # A server that was started anew. Scripts are loaded together, so none of these calls was carried out.
            await self._once([("SCRIPT LOAD", text) for _, text in SCRIPTS.values()])
            replies = await self._once(calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _once(self, calls: "tuple[Call, ...] | list[Call]") -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.execute_command(*call)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    def _failed(self, err: Exception) -> None:
        now = time.monotonic()
        if self._away_since_s is None:
            self._away_since_s = now
            # Not its text, which may hold the address with its password.
            log.warning("Redis is away, turns are not shared", extra={"reason": type(err).__name__})
        self._retry_at_s = now + self._leave_alone_s

    async def close(self) -> None:
        """Close the connections; a server that hangs is not waited for."""
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(self._timeout_s):
                await self._client.aclose(close_connection_pool=True)


def _unavailable() -> TurnLogUnavailableError:
    return TurnLogUnavailableError("what replicas share of turns cannot be reached now", retry_after_s=1.0)
