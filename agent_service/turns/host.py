"""Hosts turns: a turn is a task with a numbered log, and no call's property. Calls start it, attach and follow."""

import asyncio
import hashlib
import logging
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from agent_service.errors import (
    DeadlineError,
    DrainingError,
    OverloadedError,
    RequestIdReusedError,
)
from agent_service.ports import Answerer
from agent_service.turns.log_memory import TurnLog
from agent_service.types import (
    OnDisconnect,
    RequestId,
    Started,
    TurnEvent,
    TurnId,
    TurnRequest,
)

log = logging.getLogger(__name__)

KEPT_TURNS = 5_000
"""Ended turns kept for those who attach late, the oldest out first."""

RETRY_AFTER_S = 2.0
"""What an overloaded or draining host asks callers to wait. Seconds; about the length of a short answer."""

TurnKey = tuple[str, str, RequestId]


class Turn:
    """One turn: its log, its task, and how many follow it."""

    def __init__(self, request: TurnRequest) -> None:
        self.id = TurnId(str(uuid.uuid4()))
        self.request = request
        self.fingerprint = fingerprint(request)
        self.log = TurnLog(self.id)
        self.task: asyncio.Task[None] | None = None
        self.followers = 0
        self.abandoned: asyncio.TimerHandle | None = None
        self.expiry: asyncio.TimerHandle | None = None


class TurnHost:
    """Starts, finds, follows and ends turns."""

    def __init__(self, answerer: Answerer, *, max_turns: int, keep_s: float, turn_timeout_s: float) -> None:
        """`keep_s`: how long an ended turn can still be attached to. `turn_timeout_s`: bound of every turn."""
        self._answerer = answerer
        self._max_turns = max_turns
        self._keep_s = keep_s
        self._turn_timeout_s = turn_timeout_s
        self._turns: OrderedDict[TurnKey, Turn] = OrderedDict()
        self._running: set[Turn] = set()
        self._draining = False

    @property
    def running(self) -> int:
        """Turns under way."""
        return len(self._running)

    def chat(self, request: TurnRequest, *, budget_s: float | None) -> AsyncGenerator[TurnEvent]:
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
        return self._follow(self._attach(request) or self._start(request, budget_s))

    async def drain(self, timeout_s: float) -> None:
        """Take no new turns, wait for those under way, then abort what is left. Seconds."""
        self._draining = True
        tasks = [turn.task for turn in self._running if turn.task is not None]
        if not tasks:
            return
        log.info("draining", extra={"turns": len(tasks)})
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=5)

    def _attach(self, request: TurnRequest) -> Turn | None:
        turn = self._turns.get(_key(request)) if request.request_id else None
        if turn is not None and turn.fingerprint != fingerprint(request):
            raise RequestIdReusedError(f"request_id {request.request_id!r} stands for another request")
        return turn

    def _start(self, request: TurnRequest, budget_s: float | None) -> Turn:
        if self._draining:
            raise DrainingError("this replica is shutting down", retry_after_s=RETRY_AFTER_S)
        if len(self._running) >= self._max_turns:
            raise OverloadedError(f"{self._max_turns} turns are running", retry_after_s=RETRY_AFTER_S)
        if not request.request_id:
            request = replace(request, request_id=RequestId(str(uuid.uuid4())))
        turn = Turn(request)
        turn.log.emit(Started(request.request_id))
        self._turns[_key(request)] = turn
        self._running.add(turn)
        limit_s = self._turn_timeout_s if budget_s is None else min(budget_s, self._turn_timeout_s)
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

    def _ended(self, turn: Turn, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            # By the host alone: everybody left, or the drain is over. What was written is kept.
            turn.log.interrupt(turn.request)
            turn.log.close()
        else:
            failure = task.exception()
            if failure is not None and not turn.followers:
                log.warning("a turn failed that nobody follows", exc_info=failure, extra={"turn_id": turn.id})
            turn.log.close(failure if isinstance(failure, Exception) else None)
        # What it was asked is told apart by the fingerprint; the texts need not be kept with the log.
        turn.request = replace(turn.request, message="", history=())
        self._running.discard(turn)
        if turn.abandoned is not None:
            turn.abandoned.cancel()
        turn.expiry = task.get_loop().call_later(self._keep_s, self._forget, turn)
        if len(self._turns) - len(self._running) > KEPT_TURNS:
            self._forget(next(kept for kept in self._turns.values() if kept.log.closed))

    def _forget(self, turn: Turn) -> None:
        if turn.expiry is not None:
            turn.expiry.cancel()
        self._turns.pop(_key(turn.request), None)

    async def _follow(self, turn: Turn) -> AsyncGenerator[TurnEvent]:
        turn.followers += 1
        if turn.abandoned is not None:
            turn.abandoned.cancel()
            turn.abandoned = None
        try:
            async for event in turn.log.follow():
                yield event
        finally:
            turn.followers -= 1
            if not turn.followers and not turn.log.closed:
                self._abandon(turn)

    def _abandon(self, turn: Turn) -> None:
        """Nobody follows the turn any more: end it now, or when the grace it was started with is over."""
        cancel: Callable[[], object] = turn.task.cancel if turn.task is not None else (lambda: None)
        if turn.request.on_disconnect is OnDisconnect.CANCEL:
            cancel()
        else:
            turn.abandoned = asyncio.get_running_loop().call_later(turn.request.grace_s, cancel)


def fingerprint(request: TurnRequest) -> str:
    """Tells requests under one id apart: a digest of all that decides the answer, the caller's groups included."""
    asked = (request.message, request.agent, request.history, request.state, request.max_output_tokens)
    return hashlib.sha256(repr((asked, request.caller.groups)).encode()).hexdigest()


def _key(request: TurnRequest) -> TurnKey:
    return request.caller.tenant, request.caller.subject, request.request_id
