"""How long to wait before a model is asked again, and when not to."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

DELAYS_S = (1.0, 2.0, 4.0)
"""Before the second, third and fourth request; there is no fifth."""

LONGEST_WAIT_S = 60.0
"""Who is told to wait for longer gives up at once: a person is waiting, too."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits, with what tests need to hold still: time, sleep and chance (from 0 to 1)."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random

    def wait_s(self, failed: int, told_s: float | None, deadline: float) -> float | None:
        """Seconds to wait before the next request to the same model.

        Without a word from the provider up to a quarter less than the delay, with one up to a tenth more than it
        said: either way, turns that failed together do not come back together.

        Args:
            failed: requests to the model that failed in a row, at least one.
            told_s: how long the provider wants to be left alone; None or 0: it did not say.
            deadline: when the turn's time is up, of `clock`.

        Returns:
            None where there were enough requests, or the wait is too long or does not end before the deadline.
        """
        if failed > len(DELAYS_S):
            return None
        chance = self.chance()
        wait_s = told_s * (1 + 0.1 * chance) if told_s else DELAYS_S[failed - 1] * (1 - 0.25 * chance)
        return wait_s if wait_s <= LONGEST_WAIT_S and self.clock() + wait_s < deadline else None
