"""Writes the logs of a replica's own turns to Redis, in batches, and reads on the way what others want of them."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent_service.errors import TurnLogUnavailableError
from agent_service.ports import TurnCodec
from agent_service.turns import log_redis_scripts as scripts
from agent_service.turns.log_memory import TurnLog
from agent_service.turns.log_redis_link import RedisLink
from agent_service.turns.log_redis_scripts import Argument, Call, Keys
from agent_service.turns.shared import Hosting
from agent_service.types import Usage

log = logging.getLogger(__name__)

TICK_S = 0.025
"""Events of so long go together: followers elsewhere see them so much later, and Redis far fewer commands."""

RENEW_S = 1.0
"""How often the owner of a turn says that it lives, and hears of stops and followers elsewhere."""

BATCH_EVENTS = 256
"""Most events of one turn in one call; with the bound of a log that is 256 KiB at most."""

ROUND_BYTES = 1024 * 1024
ROUND_TURNS = 100
"""Most of one round trip, so that it ends in its time and does not hold up the event loop (about 2 ms)."""

MOST_OWNED = 6_000
"""Turns that Redis has not got yet: as many as a host runs and keeps by default. Beyond, the oldest that have ended are
not written any more; this counts only while Redis is away."""

EPOCH = 1
"""Of who runs a turn. Who condemns it raises it, and from then on nothing of the owner is taken."""


@dataclass(slots=True, eq=False)
class Owned:
    """A turn that runs here. `written`: the newest sequence that Redis is known to have."""

    keys: Keys
    log: TurnLog
    fingerprint: str
    written: int = 0


class Mirror:
    """Keeps what Redis has of our turns up to date.

    What it could not write stays in the turn's own log, and is written when Redis is back, from the first event on
    where Redis has lost its data.
    """

    def __init__(self, link: RedisLink, codec: TurnCodec, replica: str, keep_ms: int) -> None:
        """`keep_ms`: how long an ended turn stays."""
        self._link = link
        self._codec = codec
        self._replica = replica
        self._keep_ms = keep_ms
        self._owned: dict[str, Owned] = {}
        self._dirty: dict[str, Owned] = {}
        self._released: list[Call] = []
        self._changed = asyncio.Event()

    def own(self, tag: str, log: TurnLog, fingerprint: str) -> None:
        """Write this log from now on."""
        if len(self._owned) >= MOST_OWNED:
            ended = next((tag for tag, each in self._owned.items() if each.log.closed), None)
            if ended is not None:
                self._disown(ended)
        owned = self._owned[tag] = Owned(Keys(tag), log, fingerprint)

        def on_change() -> None:
            self._dirty[tag] = owned
            self._changed.set()

        log.on_change = on_change
        on_change()

    def forget(self, tag: str) -> None:
        """Remove what Redis has of a turn of ours."""
        self._disown(tag)
        keys = Keys(tag)
        every = (keys.log, keys.meta, keys.owner, keys.stop, keys.followers)
        self._released.append(scripts.script("release", every, self._replica))
        self._changed.set()

    async def run(self, hosting: Hosting) -> None:
        """Write until cancelled."""
        clock = asyncio.get_running_loop().time
        renew_at = clock() + RENEW_S
        pause_s = TICK_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(renew_at):
                    await self._changed.wait()
                    await asyncio.sleep(pause_s)
            if clock() >= renew_at:
                renew_at = clock() + RENEW_S
                self._dirty.update({tag: each for tag, each in self._owned.items() if not each.log.closed})
            began = clock()
            try:
                await self.write(hosting)
            except TurnLogUnavailableError:
                self._nobody_elsewhere(hosting)
                await asyncio.sleep(RENEW_S / 4)
            except Exception:
                # A fault with one turn must not end the mirror of all: their owner would be taken for gone.
                log.exception("turns could not be written to Redis")
                await asyncio.sleep(RENEW_S)
            # Writing takes at most half of the time.
            pause_s = max(TICK_S, clock() - began)

    async def write_all(self, hosting: Hosting) -> None:
        """Write until there is nothing new. One call takes only so many events of a turn.

        Raises:
            TurnLogUnavailableError: as `write`.
        """
        while self._dirty or self._released:
            await self.write(hosting)

    async def write(self, hosting: Hosting) -> None:
        """Write all that is new.

        Raises:
            TurnLogUnavailableError: not all of it could be written; the rest stays to be written.
        """
        self._changed.clear()
        if released := self._released:
            self._released = []
            try:
                await self._link.ask(*released)
            except TurnLogUnavailableError:
                # They expire by themselves; no need to keep more than the newest.
                self._released = [*released, *self._released][-1000:]
                raise
        waiting, self._dirty = self._dirty, {}
        try:
            for turns, calls in self._rounds(list(waiting.values())):
                replies = await self._link.ask(*calls)
                for owned, reply in zip(turns, replies, strict=True):
                    waiting.pop(owned.keys.tag, None)
                    self._take(owned, reply, hosting)
        finally:
            # Also where this was cancelled, for a last write follows then. Without those that were forgotten meanwhile.
            if left := {tag: each for tag, each in waiting.items() if self._owned.get(tag) is each}:
                self._dirty |= left
                self._changed.set()

    def _rounds(self, turns: Sequence[Owned]) -> Iterator[tuple[list[Owned], list[Call]]]:
        """What goes into each round trip. Computed when its turn comes: a log may have grown meanwhile."""
        together: list[Owned] = []
        calls: list[Call] = []
        size = 0
        for owned in turns:
            call = self._call(owned)
            together.append(owned)
            calls.append(call)
            size += sum(len(each) for each in call if isinstance(each, bytes))
            if size >= ROUND_BYTES or len(calls) >= ROUND_TURNS:
                yield together, calls
                together, calls, size = [], [], 0
        if calls:
            yield together, calls

    def _call(self, owned: Owned) -> Call:
        turn, keys = owned.log, owned.keys
        events = turn.since(owned.written, BATCH_EVENTS)
        failure = b"" if turn.failure is None else self._codec.encode_failure(turn.failure)
        end: tuple[Argument, ...] = (turn.status.value, self._keep_ms, turn.last_sequence, as_text(turn.usage), failure)
        return scripts.script(
            "write",
            (keys.log, keys.meta, keys.owner, keys.stop, keys.followers),
            *(self._replica, EPOCH, owned.fingerprint, owned.written, scripts.RUNNING_MS, scripts.OWNER_MS),
            *end,
            *map(self._codec.encode_event, events),
        )

    def _take(self, owned: Owned, reply: Sequence[bytes | int], hosting: Hosting) -> None:
        became, last, stop, followers = reply
        tag = owned.keys.tag
        owned.written = int(last)
        if became == b"fenced":
            self._disown(tag)
            hosting.lost(tag)
        elif became == b"ended":
            self._disown(tag)
        else:
            if owned.written < owned.log.last_sequence or owned.log.closed:
                self._dirty[tag] = owned
                self._changed.set()
            if stop:
                hosting.stop_asked(tag)
            hosting.followed_elsewhere(tag, int(followers))

    def _disown(self, tag: str) -> None:
        self._dirty.pop(tag, None)
        if (owned := self._owned.pop(tag, None)) is not None:
            owned.log.on_change = None

    def _nobody_elsewhere(self, hosting: Hosting) -> None:
        """Who followed through another replica cannot have heard of anything for so long, and has been told so."""
        if self._link.away_s * 1000 > scripts.FOLLOWER_MS:
            for tag in list(self._owned):
                hosting.followed_elsewhere(tag, 0)


def as_text(usage: Usage) -> str:
    """Usage as four numbers."""
    return f"{usage.requests} {usage.input_tokens} {usage.cached_input_tokens} {usage.output_tokens}"


def usage_from_text(text: str) -> Usage:
    """Usage from four numbers; none where there are not four."""
    numbers = text.split()
    return Usage(*map(int, numbers)) if len(numbers) == 4 else Usage()
