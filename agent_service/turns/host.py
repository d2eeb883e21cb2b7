"""Hosts turns: a turn is a task with a numbered log, and no call's property. Calls start it, attach and follow."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from agent_service.errors import (
    DeadlineError,
    DrainingError,
    FieldViolation,
    InvalidRequestError,
    OverloadedError,
    RequestIdReusedError,
    TurnLogUnavailableError,
    UnknownTurnError,
)
from agent_service.ports import Answerer
from agent_service.turns.desertion import Desertion
from agent_service.turns.identity import TurnKey, fingerprint, identified, key_of
from agent_service.turns.kept import KeptTurns
from agent_service.turns.shared import Claim, SharedTurns
from agent_service.turns.turn import ABORT_S, Turn
from agent_service.types import (
    Caller,
    EncodedEvent,
    Started,
    StoppedTurn,
    TurnEvent,
    TurnId,
    TurnRequest,
    TurnStatus,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2.0
"""What an overloaded or draining host asks callers to wait. Seconds; about the length of a short answer."""

Events = AsyncGenerator[TurnEvent | EncodedEvent]


class TurnHost:
    """Starts, finds, follows and ends turns. With `shared`, hosts of several replicas do so together."""

    def __init__(
        self,
        answerer: Answerer,
        *,
        max_turns: int,
        keep_s: float,
        turn_timeout_s: float,
        shared: SharedTurns | None = None,
    ) -> None:
        """Make a host of turns; with `shared` it is to be opened and closed.

        Args:
            answerer: who answers.
            max_turns: most turns under way at once.
            keep_s: how long an ended turn can still be followed. Seconds.
            turn_timeout_s: bound of every turn. Seconds.
            shared: what hosts of several replicas share of turns; None: there is one host.
        """
        self._answerer = answerer
        self._max_turns = max_turns
        self._turn_timeout_s = turn_timeout_s
        self._shared = shared
        self._turns = KeptTurns(keep_s)
        self._desertion = Desertion(shared)
        self._claims: dict[TurnKey, asyncio.Event] = {}
        self._draining = False

    @property
    def running(self) -> int:
        """Turns under way."""
        return len(self._turns.running)

    async def open(self) -> None:
        """Join the other replicas; where what they share cannot be reached, that is logged and tried again later."""
        if self._shared is not None:
            self._shared.start(self)
            await self._shared.check()

    async def close(self) -> None:
        """Leave the other replicas; what they have not seen yet of our turns is written first."""
        self._desertion.close()
        if self._shared is not None:
            await self._shared.close()

    def chat(self, request: TurnRequest, *, budget_s: float | None) -> Events:
        """Start a turn, or attach to the one this request has started, and follow it from its first event.

        Args:
            request: the question; an empty `request_id` gets one.
            budget_s: what is left of the caller's deadline, in seconds; None: as long as a turn may take.

        Raises:
            RequestIdReusedError: the id stands for another request.
            OverloadedError: as many turns as allowed are running.
            DrainingError: the service is shutting down.
            AgentServiceError: what the turn failed with, after its last event.
        """
        key, request = identified(request)
        turn = self._attach(key, request)
        if turn is None and self._shared is None:
            turn = self._start(key, request, budget_s)
        if turn is not None:
            return self._follow(turn)
        return self._chat_together(key, request, budget_s)

    def watch(self, caller: Caller, turn_id: TurnId, after_sequence: int, *, observer: bool) -> Events:
        """Follow a turn of this caller from any place in its log.

        Args:
            caller: whose turn it is.
            turn_id: which turn.
            after_sequence: only what comes after this number; 0: from the first event.
            observer: look on, and do not count as a follower.

        Raises:
            UnknownTurnError: no such turn, or it is no longer kept, or it is somebody else's.
            InvalidRequestError: `after_sequence` lies beyond the log of a running turn.
            SequenceExpiredError: that part of the log is no longer kept.
            TurnLogUnavailableError: the turn may run on a replica that cannot be asked.
            AgentServiceError: what the turn failed with, after its last event.
        """
        key = key_of(caller, turn_id)
        turn = self._turns.get(key)
        if turn is None:
            if self._shared is None:
                raise UnknownTurnError(turn_id)
            return self._shared_turns().follow(key, after_sequence, observer=observer)
        if not turn.log.closed and after_sequence > turn.log.last_sequence:
            rule = f"must be at most {turn.log.last_sequence}, the turn's newest event"
            raise InvalidRequestError(FieldViolation("after_sequence", rule))
        return turn.log.follow(after_sequence) if observer else self._follow(turn, after_sequence)

    async def stop(self, caller: Caller, turn_id: TurnId) -> StoppedTurn:
        """Abort a turn of this caller and wait for its end; of one that has ended, say how.

        Raises:
            UnknownTurnError: no such turn, or it is no longer kept, or it is somebody else's.
            TurnLogUnavailableError: the turn may run on a replica that cannot be asked.
        """
        key = key_of(caller, turn_id)
        turn = self._turns.get(key)
        if turn is None:
            if self._shared is None:
                raise UnknownTurnError(turn_id)
            return await self._shared_turns().stop(key, timeout_s=ABORT_S)
        return await turn.stop()

    async def drain(self, timeout_s: float) -> None:
        """Take no new turns, wait for those under way, then abort what is left. Seconds."""
        self._draining = True
        tasks = [turn.task for turn in self._turns.running if turn.task is not None]
        if tasks:
            log.info("draining", extra={"turns": len(tasks)})
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for turn in [each for each in self._turns.running if each.task in late]:
                turn.abort(TurnStatus.INTERRUPTED)
            if late:
                await asyncio.wait(late, timeout=5)
        if self._shared is not None:
            # Their turns run on elsewhere, and can be followed there.
            self._shared.dismiss(DrainingError("this replica is shutting down", retry_after_s=0.1))

    # --- what the other replicas tell (see `Hosting`) ---

    def stop_asked(self, tag: str) -> None:
        """See `Hosting`."""
        if (turn := self._turns.tagged(tag)) is not None:
            turn.abort(TurnStatus.STOPPED)

    def followed_elsewhere(self, tag: str, followers: int) -> None:
        """See `Hosting`."""
        if (turn := self._turns.tagged(tag)) is not None and not turn.log.closed:
            self._desertion.elsewhere(turn, followers)

    def lost(self, tag: str) -> None:
        """See `Hosting`."""
        if (turn := self._turns.tagged(tag)) is not None:
            log.warning("a turn was lost: another replica took this one for gone", extra={"turn_id": turn.id})
            turn.abort(TurnStatus.FAILED)
            # Its followers here hear that from its log; who comes later is served what the others have of it.
            self._turns.forget(turn)

    # --- starting ---

    def _shared_turns(self) -> SharedTurns:
        if self._shared is None:
            raise TypeError("only a host that shares its turns asks others")
        self._shared.start(self)
        return self._shared

    def _attach(self, key: TurnKey, request: TurnRequest) -> Turn | None:
        turn = self._turns.get(key)
        if turn is not None and turn.fingerprint != fingerprint(request):
            raise _reused(request)
        return turn

    async def _chat_together(self, key: TurnKey, request: TurnRequest, budget_s: float | None) -> Events:
        clock = asyncio.get_running_loop().time
        arrived = clock()
        while (claim := self._claims.get(key)) is not None:
            await claim.wait()
        turn = self._attach(key, request)
        if turn is None and await self._claimed(key, request):
            turn = self._start(key, request, None if budget_s is None else budget_s - (clock() - arrived))
        events: Events = self._follow(turn) if turn else self._shared_turns().follow(key, 0, observer=False)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _claimed(self, key: TurnKey, request: TurnRequest) -> bool:
        """Whether the turn is ours to start; else it is there already."""
        decided = self._claims[key] = asyncio.Event()
        shared = self._shared_turns()
        room = self._refusal() is None
        try:
            claim = await shared.claim(key, fingerprint(request), create=room)
        except TurnLogUnavailableError:
            # It is claimed when its log is written. Until then another replica may start it as well.
            claim = Claim.CREATED if room else Claim.ABSENT
        except asyncio.CancelledError:
            # The claim may have been heard, and nobody will run the turn.
            shared.forget(key)
            raise
        finally:
            del self._claims[key]
            decided.set()
        if claim is Claim.OTHER:
            raise _reused(request)
        if claim is Claim.ABSENT:
            raise self._refusal() or OverloadedError("try again", retry_after_s=RETRY_AFTER_S)
        return claim is Claim.CREATED

    def _refusal(self) -> DrainingError | OverloadedError | None:
        if self._draining:
            return DrainingError("this replica is shutting down", retry_after_s=RETRY_AFTER_S)
        if len(self._turns.running) >= self._max_turns:
            return OverloadedError(f"{self._max_turns} turns are running", retry_after_s=RETRY_AFTER_S)
        return None

    def _start(self, key: TurnKey, request: TurnRequest, budget_s: float | None) -> Turn:
        if (refusal := self._refusal()) is not None:
            if self._shared is not None:
                self._shared.forget(key)
            raise refusal
        limit_s = self._turn_timeout_s if budget_s is None else min(budget_s, self._turn_timeout_s)
        turn = Turn(key, replace(request, deadline=time.monotonic() + limit_s))
        turn.log.emit(Started(request.request_id))
        self._turns.add(turn)
        if self._shared is not None:
            self._shared.own(key, turn.log, turn.fingerprint)
        turn.task = asyncio.create_task(self._run(turn, limit_s), name=f"turn {turn.id}")
        # A callback and not the task's own ending: a task that is cancelled at once never gets to run.
        turn.task.add_done_callback(lambda task: self._ended(turn, task))
        return turn

    async def _run(self, turn: Turn, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s) as limit:
                await self._answerer.answer(turn.request, turn.log)
        except TimeoutError as err:
            if limit.expired():
                raise DeadlineError("the time for this turn is up") from err
            raise

    # --- ending ---

    def _ended(self, turn: Turn, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not turn.followers:
            log.warning("a turn failed that nobody follows", exc_info=failure, extra={"turn_id": turn.id})
        turn.end(task)
        # What it was asked is told apart by the fingerprint; the texts need not be kept with the log.
        turn.request = replace(turn.request, message="", history=())
        crowded_out = self._turns.ended(turn, task.get_loop())
        if crowded_out is not None and self._shared is not None:
            self._shared.forget(crowded_out.key)

    async def _follow(self, turn: Turn, after_sequence: int = 0) -> AsyncGenerator[TurnEvent]:
        turn.joined()
        try:
            async for event in turn.log.follow(after_sequence):
                yield event
        finally:
            turn.followers -= 1
            self._desertion.left(turn)


def _reused(request: TurnRequest) -> RequestIdReusedError:
    return RequestIdReusedError(f"request_id {request.request_id!r} stands for another request")
