"""The turns of one replica: those that run, and for a while those that have ended."""

import asyncio
from collections import OrderedDict

from agent_service.turns.identity import TurnKey
from agent_service.turns.turn import Turn

KEPT_TURNS = 5_000
"""Ended turns kept for those who attach late, the oldest out first."""


class KeptTurns:
    """Finds turns by key or by tag."""

    def __init__(self, keep_s: float) -> None:
        """`keep_s`: how long an ended turn is kept. Seconds."""
        self._keep_s = keep_s
        self._turns: OrderedDict[TurnKey, Turn] = OrderedDict()
        self._tags: dict[str, Turn] = {}
        self.running: set[Turn] = set()

    def get(self, key: TurnKey) -> Turn | None:
        """The turn of a key."""
        return self._turns.get(key)

    def tagged(self, tag: str) -> Turn | None:
        """The turn that other replicas call so."""
        return self._tags.get(tag)

    def add(self, turn: Turn) -> None:
        """A turn that begins."""
        self._turns[turn.key] = self._tags[turn.key.tag] = turn
        self.running.add(turn)

    def ended(self, turn: Turn, loop: asyncio.AbstractEventLoop) -> Turn | None:
        """Keep a turn that has ended for its time. Returns the one that had to make room for it, if any."""
        self.running.discard(turn)
        turn.expiry = loop.call_later(self._keep_s, self.forget, turn)
        if len(self._turns) - len(self.running) <= KEPT_TURNS:
            return None
        oldest = next(kept for kept in self._turns.values() if kept.log.closed)
        self.forget(oldest)
        return oldest

    def forget(self, turn: Turn) -> None:
        """Keep a turn no longer; who follows it has its log."""
        if turn.expiry is not None:
            turn.expiry.cancel()
        if self._turns.get(turn.key) is turn:
            del self._turns[turn.key], self._tags[turn.key.tag]
