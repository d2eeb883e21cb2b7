"""How many requests a user or an address may send in a time, counted in this process or, for several, in Redis.

What is counted under which key is decided by the callers; what a caller may do at once (running turns) is not a rate.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, Literal

from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from edge_api.errors import RateLimitedError

log = logging.getLogger(__name__)

Bucket = Literal["user", "address", "login", "account", "guest"]
"""What is limited: requests of a user or an address, sign-ins from an address and to an account, guests made."""

MESSAGES: Mapping[Bucket, str] = {
    "user": "too many requests",
    "address": "too many requests from this network address",
    "login": "too many sign-in attempts",
    "account": "too many sign-in attempts",
    "guest": "too many guest accounts from this network address",
}

REDIS_TIMEOUT_S = 0.5
LEAVE_ALONE_S = 5.0
CHECK_TIMEOUT_S = 1.0

# A command takes well under 1 ms: 16 at once are more than one process sends.
MAX_CONNECTIONS = 16

# Per bucket, in this process; 100,000 keys with one request each take 30 MB.
MAX_KEYS = 100_000

# Forgotten per request, which adds one at most: a crowd that left is gone soon, and no request pays for it alone.
FORGET_AT_ONCE = 100

# The next request after a refusal never "passes in 0 s", however the clocks are rounded.
SOONEST_S = 0.001

FAILURES = (RedisError, OSError, TimeoutError)


class RateLimits:
    """Buckets of requests per user and address, in this process or in Redis.

    Every bucket is a moving window: of any 60 seconds, "60/minute" lets 60 requests through. The cheaper sliding
    window counter takes the last window's requests as spread evenly, and lets 120 through to who sends 60 at a
    window's end. The price is a timestamp per request of the window, so a key's size is bounded by its rate.
    """

    def __init__(
        self,
        rates: Mapping[Bucket, str],
        *,
        redis_url: str | None = None,
        redis_timeout_s: float = REDIS_TIMEOUT_S,
        leave_alone_s: float = LEAVE_ALONE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the buckets; Redis is not asked before the first request.

        Args:
            rates: per bucket a rate such as "60/minute", or "off".
            redis_url: where edges share their buckets; None: each process has its own.
            redis_timeout_s: what Redis may add to a request. Seconds.
            leave_alone_s: how long a Redis that failed is not asked again. Seconds.
            clock: of the buckets in this process. Seconds, never backwards.
        """
        self._rates = {bucket: _rate_from_text(text) for bucket, text in rates.items()}
        self._local = {bucket: LocalWindows(rate, clock) for bucket, rate in self._rates.items() if rate is not None}
        self._shared = None if redis_url is None else SharedWindows(redis_url, redis_timeout_s, leave_alone_s)

    async def hit(self, bucket: Bucket, key: str) -> None:
        """Count one request; one that is refused does not count.

        Raises:
            RateLimitedError: `key` has used up the bucket's rate.
        """
        rate = self._rates[bucket]
        if rate is None:
            return
        # Keys are what people typed: any length, any character. Redis is not told who was here, either.
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        wait_s = None if self._shared is None else await self._shared.hit(rate, bucket, digest)
        if wait_s is None:
            wait_s = self._local[bucket].hit(digest)
        if wait_s > 0:
            raise RateLimitedError(MESSAGES[bucket], retry_after_s=wait_s)

    async def check(self) -> Literal["ok", "unreachable"]:
        """Whether Redis answers, within a second; without Redis always "ok". Requests are served either way."""
        return "ok" if self._shared is None or await self._shared.answers() else "unreachable"

    async def close(self) -> None:
        """Close the connections."""
        if self._shared is not None:
            await self._shared.close()


class LocalWindows:
    """One bucket in this process.

    Not `limits.aio.storage.MemoryStorage`: it walks over all keys at each request, in a task that outlives it, which
    stops the event loop for 30 ms a request at 100,000 keys (measured with limits 5.8).
    """

    def __init__(self, rate: RateLimitItem, clock: Callable[[], float]) -> None:
        self._amount = rate.amount
        self._window_s = rate.get_expiry()
        self._clock = clock
        # When each key's requests were let through; the key of the last one is last.
        self._times: OrderedDict[str, array[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def hit(self, key: str) -> float:
        """Let a request through and return 0, or else return the seconds until the next one of this key would pass."""
        now = self._clock()
        self._forget(now)
        times = self._times.setdefault(key, array("d"))
        if len(times) == self._amount:
            if (wait_s := times[0] + self._window_s - now) > 0:
                return max(wait_s, SOONEST_S)
            times.pop(0)
        times.append(now)
        self._times.move_to_end(key)
        return 0.0

    def _forget(self, now: float) -> None:
        # Beyond the bound the key that was quiet longest goes first, its window over or not.
        for _ in range(min(FORGET_AT_ONCE, len(self._times))):
            key, times = next(iter(self._times.items()))
            if times[-1] + self._window_s > now and len(self._times) < MAX_KEYS:
                return
            del self._times[key]


class SharedWindows:
    """All buckets, in Redis: the same for every edge. The edges' clocks decide, so they have to agree to a second."""

    def __init__(self, url: str, timeout_s: float, leave_alone_s: float) -> None:
        self._timeout_s = timeout_s
        self._leave_alone_s = leave_alone_s
        # While Redis is away: when it may be asked again.
        self._retry_at_s: float | None = None
        # No retries: there are buckets here. No health checks before commands: the pool sees a connection that was
        # closed, and for one that hangs a check would take as long as the command.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # 3 begins with HELLO, which older servers and some proxies refuse
        )
        self._client = Redis.from_pool(pool)
        # The address is in the pool: `limits` would read it itself, and demands a port and knows no unix://.
        options: dict[str, Any] = {"connection_pool": pool, "key_prefix": "answerdesk:limits"}
        self._windows = MovingWindowRateLimiter(RedisStorage("redis://", implementation="redispy", **options))

    async def hit(self, rate: RateLimitItem, *key: str) -> float | None:
        """The same as `LocalWindows.hit`, or None: Redis did not answer in time, or is being left alone."""
        now = time.monotonic()
        is_away = self._retry_at_s is not None
        if self._retry_at_s is not None:
            if now < self._retry_at_s:
                return None
            # This request tries; those that come meanwhile do not.
            self._retry_at_s = now + self._leave_alone_s
        try:
            async with asyncio.timeout(self._timeout_s):
                wait_s = await self._hit(rate, *key)
        except FAILURES as err:
            if self._retry_at_s is None:
                # Not its text, which may hold the address with its password.
                log.warning("Redis is away, each edge counts on its own", extra={"reason": type(err).__name__})
            self._retry_at_s = time.monotonic() + self._leave_alone_s
            return None
        # A request that began before the failure of another proves nothing.
        if is_away:
            self._retry_at_s = None
            log.info("Redis is back, edges count together")
        return wait_s

    async def _hit(self, rate: RateLimitItem, *key: str) -> float:
        if await self._windows.hit(rate, *key):
            return 0.0
        window = await self._windows.get_window_stats(rate, *key)
        return max(window.reset_time - time.time(), SOONEST_S)

    async def answers(self) -> bool:
        """Whether Redis answers now."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._client.ping()
        except FAILURES:
            return False
        return True

    async def close(self) -> None:
        """Close the connections; a server that hangs is not waited for."""
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(self._timeout_s):
                await self._client.aclose()


def address_key(host: str | None) -> str:
    """The key of a client's address: of IPv6 its /64, because one household has 2**64 addresses to send from.

    Args:
        host: what the socket or a trusted proxy says; anything that is no IP address is "unknown", like None.
    """
    try:
        address = ip_address(host or "")
    except ValueError:
        return "unknown"
    if not isinstance(address, IPv6Address):
        return str(address)
    # ::ffff:192.0.2.1 is an IPv4 client at a socket that takes both.
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False))


def _rate_from_text(text: str) -> RateLimitItem | None:
    if text == "off":
        return None
    first, *others = parse_many(text)
    if others or first.amount < 1:
        raise ValueError("a rate is one COUNT/second, COUNT/minute or COUNT/hour, with a count from 1, or off")
    return first
