"""Ends turns that nobody follows any more, here or through another replica: at once, or after a grace."""

import asyncio
from collections.abc import Callable

from agent_service.turns.shared import SharedTurns
from agent_service.turns.turn import Turn
from agent_service.types import OnDisconnect, TurnStatus


class Desertion:
    """Decides what becomes of a turn when its followers leave."""

    def __init__(self, shared: SharedTurns | None) -> None:
        self._shared = shared
        self._looking: set[asyncio.Task[None]] = set()

    def left(self, turn: Turn) -> None:
        """A follower has left the turn here."""
        if turn.is_deserted:
            self._unless_followed_elsewhere(turn, self._abandon)

    def elsewhere(self, turn: Turn, followers: int) -> None:
        """So many follow the turn through other replicas."""
        if followers:
            turn.keep()
        elif turn.is_deserted and turn.grace is None:
            self._abandon(turn)

    def close(self) -> None:
        """Look no further."""
        for task in self._looking:
            task.cancel()

    def _abandon(self, turn: Turn) -> None:
        """Nobody follows the turn: end it now, or when the grace it was started with is over."""
        if turn.request.on_disconnect is OnDisconnect.CANCEL:
            turn.abort(TurnStatus.INTERRUPTED)
            return
        turn.keep()
        turn.grace = asyncio.get_running_loop().call_later(turn.request.grace_s, self._grace_is_over, turn)

    def _grace_is_over(self, turn: Turn) -> None:
        turn.grace = None
        self._unless_followed_elsewhere(turn, lambda deserted: deserted.abort(TurnStatus.INTERRUPTED))

    def _unless_followed_elsewhere(self, turn: Turn, then: Callable[[Turn], object]) -> None:
        # Where somebody is, their leaving is told later: the mirror asks for their number every second.
        shared = self._shared
        if shared is None:
            then(turn)
            return

        async def look() -> None:
            if not await shared.followers(turn.key) and turn.is_deserted:
                then(turn)

        task = asyncio.get_running_loop().create_task(look(), name=f"followers of {turn.id}")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)
