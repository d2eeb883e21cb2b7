"""Follows turns that run on other replicas: one task asks Redis for all of their followers together."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from agent_service.errors import (
    AgentServiceError,
    FieldViolation,
    InvalidRequestError,
    SequenceExpiredError,
    TurnLogUnavailableError,
    TurnLostError,
    UnknownTurnError,
)
from agent_service.ports import TurnCodec
from agent_service.turns import log_redis_scripts as scripts
from agent_service.turns.identity import TurnKey
from agent_service.turns.log_redis_link import RedisLink
from agent_service.turns.log_redis_scripts import Call, Keys
from agent_service.types import EncodedEvent

log = logging.getLogger(__name__)

POLL_S = 0.05
"""How often followers are looked after. A poll costs Redis about 20 microseconds per follower that waits."""

RENEW_S = 1.0
"""How often a follower says that it is still there, also one that is slow and asks for nothing."""

READ_EVENTS = 128
"""Most events read at once for one follower; a log's bound limits their size."""

ROUND_FOLLOWERS = 100

SETTLED_MS = 3_000
"""What Redis does not know, or whom it has not heard, counts once replicas have reached it for so long without a
break: one that was away gives them time to write. Well above the second after which an owner tries again."""

AWAY_S = 2.0
"""After so long without Redis followers are told; a caller can try another replica."""

BEHIND_S = 6.0
"""How long the log in Redis may be behind what a follower has seen elsewhere already. Longer than an owner's key lives:
where the owner died before it could write that, the turn is lost by then, and the follower's number is not to blame."""


LARGEST = 2**53 - 2
"""The largest sequence that the scripts can count with. Callers may name larger ones; no turn gets there."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What Redis has of a turn from some place on."""

    status: str
    epoch: int
    is_owned: bool
    last: int
    failure: bytes
    events: Sequence[EncodedEvent]

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.status == "running"


@dataclass(slots=True, eq=False)
class Follower:
    """One follower: where it is, and whether it waits for more. `member`: its entry; None for an observer."""

    keys: Keys
    turn: str
    after: int
    member: str | None
    waiting: asyncio.Future[Reply] | None = None


class Poller:
    """Feeds the followers of turns that run elsewhere. Nothing is queued: who is slow is read for later."""

    def __init__(self, link: RedisLink, codec: TurnCodec, replica: str, keep_ms: int) -> None:
        """`keep_ms`: how long a turn stays that was found to be lost."""
        self._link = link
        self._codec = codec
        self._replica = replica
        self._keep_ms = keep_ms
        self._lost = codec.encode_failure(TurnLostError("the replica that ran this turn is gone", retry_after_s=1.0))
        self._numbers = 0
        self._followers: set[Follower] = set()
        self._left: list[Call] = []
        self._wanted = asyncio.Event()
        self._dismissal: AgentServiceError | None = None

    def dismiss(self, err: AgentServiceError) -> None:
        """End all who follow with an error, as soon as they have what was read for them."""
        self._dismissal = err
        self._tell(err)

    async def follow(self, key: TurnKey, after_sequence: int, *, observer: bool) -> AsyncGenerator[EncodedEvent]:
        """See `SharedTurns.follow`."""
        self._numbers += 1
        member = None if observer else f"{self._replica}:{self._numbers}"
        follower = Follower(Keys(key.tag), key.turn_id, min(after_sequence, LARGEST), member)
        self._followers.add(follower)
        try:
            reply = await self._first(follower)
            while True:
                for event in reply.events:
                    if event.sequence != follower.after + 1:
                        raise SequenceExpiredError("that part of the turn's log is no longer kept")
                    follower.after = event.sequence
                    yield event
                if not reply.is_running and follower.after >= reply.last:
                    if reply.failure:
                        raise self._codec.decode_failure(reply.failure)
                    return
                if not reply.is_running and not reply.events:
                    raise SequenceExpiredError("that part of the turn's log is no longer kept")
                full = len(reply.events) == READ_EVENTS
                reply = await (self._look(follower) if full else self._next(follower))
        finally:
            self._followers.discard(follower)
            if follower.member is not None:
                self._left.append(("ZREM", follower.keys.followers, follower.member))
                self._wanted.set()

    async def run(self) -> None:
        """Poll for as long as there is anybody to poll for, until cancelled."""
        clock = asyncio.get_running_loop().time
        renew_at = clock() + RENEW_S
        while True:
            if not self._followers and not self._left:
                self._wanted.clear()
                await self._wanted.wait()
            await asyncio.sleep(POLL_S)
            renews = clock() >= renew_at
            if renews:
                renew_at = clock() + RENEW_S
            try:
                await self.poll(renews=renews)
            except TurnLogUnavailableError as err:
                if self._link.away_s >= AWAY_S:
                    self._tell(err)
            except Exception:
                log.exception("turns could not be read from Redis")
                await asyncio.sleep(RENEW_S)

    async def poll(self, *, renews: bool) -> None:
        """Read once for all who wait; with `renews` say also that the others are there.

        Raises:
            TurnLogUnavailableError: Redis did not answer.
        """
        left, self._left = self._left, []
        if left:
            # Where this fails the entries lapse.
            await self._link.ask(*left)
        due = [each for each in self._followers if each.waiting or (renews and each.member)]
        for start in range(0, len(due), ROUND_FOLLOWERS):
            together = due[start : start + ROUND_FOLLOWERS]
            # Who begins to wait meanwhile was not read for.
            asked = [each.waiting for each in together]
            settled_ms, *replies = await self._link.ask(
                scripts.settled(), *(_call(each, renews=renews) for each in together)
            )
            doomed: dict[str, Call] = {}
            for follower, waiting, raw in zip(together, asked, replies, strict=True):
                reply = _reply(raw)
                if reply is not None and self._is_lost(reply, settled_ms):
                    doomed[follower.keys.tag] = self._condemn(follower.keys, reply)
                if waiting is not None and follower.waiting is waiting and not waiting.done():
                    _serve(waiting, reply, settled_ms, begun=follower.after > 0)
            if doomed:
                await self._link.ask(*doomed.values())

    def _tell(self, err: AgentServiceError) -> None:
        for follower in self._followers:
            if follower.waiting is not None and not follower.waiting.done():
                follower.waiting.set_exception(err)

    async def _next(self, follower: Follower) -> Reply:
        """What comes next, when it comes."""
        if self._dismissal is not None:
            raise self._dismissal
        follower.waiting = asyncio.get_running_loop().create_future()
        self._wanted.set()
        try:
            return await follower.waiting
        finally:
            follower.waiting = None

    async def _first(self, follower: Follower) -> Reply:
        clock = asyncio.get_running_loop().time
        patient_until = clock() + BEHIND_S
        while True:
            reply = await self._look(follower)
            if not reply.is_running or follower.after <= reply.last:
                return reply
            if clock() >= patient_until:
                rule = f"must be at most {reply.last}, the turn's newest event"
                raise InvalidRequestError(FieldViolation("after_sequence", rule))
            # Its owner has told its own followers already what it writes next.
            await asyncio.sleep(POLL_S)

    async def _look(self, follower: Follower) -> Reply:
        """What there is now.

        Raises:
            UnknownTurnError: there is no such turn.
            TurnLogUnavailableError: nobody can say.
        """
        call = scripts.read(follower.keys, follower.after, READ_EVENTS, follower.member)
        settled_ms, raw = await self._link.ask(scripts.settled(), call)
        reply = _reply(raw)
        if reply is None:
            if settled_ms < SETTLED_MS:
                raise TurnLogUnavailableError("what replicas share of turns is not complete yet", retry_after_s=2.0)
            raise UnknownTurnError(follower.turn)
        if self._is_lost(reply, settled_ms):
            await self._link.ask(self._condemn(follower.keys, reply))
        return reply

    async def doom(self, keys: Keys, epoch: int, settled_ms: int) -> None:
        """Declare a turn lost that nobody owns, if Redis has been reached for long enough to say so."""
        if settled_ms >= SETTLED_MS:
            await self._link.ask(scripts.condemn(keys, epoch, self._lost, self._keep_ms))

    def _is_lost(self, reply: Reply, settled_ms: int) -> bool:
        return reply.is_running and not reply.is_owned and settled_ms >= SETTLED_MS

    def _condemn(self, keys: Keys, reply: Reply) -> Call:
        return scripts.condemn(keys, reply.epoch, self._lost, self._keep_ms)


def _serve(waiting: asyncio.Future[Reply], reply: Reply | None, settled_ms: int, *, begun: bool) -> None:
    if reply is not None and (reply.events or not reply.is_running):
        waiting.set_result(reply)
    elif reply is None and settled_ms >= SETTLED_MS:
        # Of one that showed nothing yet the claim was taken back: asked again, it may begin.
        waiting.set_exception(
            SequenceExpiredError("the turn's log is no longer kept")
            if begun
            else TurnLogUnavailableError("the turn did not begin", retry_after_s=0.1)
        )


def _call(follower: Follower, *, renews: bool) -> Call:
    """Reads for who waits; for others it only renews."""
    count = READ_EVENTS if follower.waiting else 0
    return scripts.read(follower.keys, follower.after, count, follower.member if renews else None)


def _reply(raw: Sequence[bytes | int]) -> Reply | None:
    if not raw:
        return None
    status, epoch, owned, last, failure, *entries = raw
    events = [
        EncodedEvent(int(bytes(id_).partition(b"-")[0]), bytes(payload))
        for id_, payload in zip(entries[::2], entries[1::2], strict=True)
        if not isinstance(id_, int) and not isinstance(payload, int)
    ]
    return Reply(_text(status), int(epoch), bool(owned), int(last), _bytes(failure), events)


def _bytes(value: bytes | int) -> bytes:
    return value if isinstance(value, bytes) else b""


def _text(value: bytes | int) -> str:
    return _bytes(value).decode()
