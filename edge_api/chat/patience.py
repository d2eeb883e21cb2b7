"""When a call that follows a turn has failed: is the turn over, or only the call?"""

import time
from collections.abc import Callable
from typing import Final

from edge_api.chat.feed import TurnFeed
from edge_api.errors import UpstreamError

ASK_PAUSES_S: Final = (0.05, 0.3)
"""Before asking again: another replica may take the turn. A person waits for this, so it is short."""

READ_PATIENCE_S: Final = 5.0
"""How long somebody who reads waits for an agent that cannot be reached."""

UNKNOWN_PATIENCE_S: Final = 3.0
"""How long a turn that another edge has opened may be unknown to the agents."""

ALONE_PATIENCE_S: Final = 30.0
"""Likewise, where nobody reads and the answer is only to be stored."""

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0

APART_S: Final = 3.0
"""Failures that far apart are not of one row."""

ELSEWHERE: Final = frozenset({"DRAINING", "TURN_LOG_UNAVAILABLE", "FOLLOWER_TOO_SLOW"})
"""Reasons of a replica that say nothing of the turn: another one, or the same a little later, may serve it."""

LOST: Final = "the agent that made this answer is gone"


class Patience:
    """Decides about one turn, failure after failure, until something arrives again."""

    def __init__(self, *, asked: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """`asked`: this edge asks the question, so that a turn which is not there never began, or is lost."""
        self._asked = asked
        self._clock = clock
        self._since_s: float | None = None
        self._failed_s = 0.0
        self._asks = iter(ASK_PAUSES_S)
        self._pause_s = FIRST_PAUSE_S
        self._first: UpstreamError | None = None

    def reset(self) -> None:
        """Something has arrived."""
        self._since_s, self._pause_s, self._first = None, FIRST_PAUSE_S, None

    def pause_s(self, error: UpstreamError, feed: TurnFeed, *, asking: bool) -> float:
        """How long to wait before the next call. Seconds.

        Args:
            error: what the last one failed with.
            feed: what has come so far, and who waits for more.
            asking: the last call asked the question; else it watched.

        Raises:
            UpstreamError: there is no use in another: what the turn has failed with.
        """
        if error.reason == "UNKNOWN_TURN" and not asking:
            # Of a turn that another edge has opened the question may still be on its way.
            if self._asked or self._is_over(UNKNOWN_PATIENCE_S, feed):
                raise UpstreamError("UNAVAILABLE", "TURN_LOST", LOST) from None
            return self._next_pause_s()
        if error.code == "UNIMPLEMENTED" and not asking:
            # An agent that knows no resuming: what counts is why that was needed.
            raise self._first or UpstreamError("UNAVAILABLE", "TURN_LOST", LOST)
        if error.reason not in ELSEWHERE and (error.reason or error.code not in {"UNAVAILABLE", "CANCELLED"}):
            raise error
        self._first = self._first or error
        if asking and feed.begun is None:
            pause_s = next(self._asks, None)
            if pause_s is None:
                raise error
            return pause_s
        # A turn whose log cannot be reached runs on, and who is to store it waits; its deadline bounds that.
        waits = error.reason == "TURN_LOG_UNAVAILABLE" and feed.ours
        limit_s = READ_PATIENCE_S if feed.readers else ALONE_PATIENCE_S
        if not waits and self._is_over(limit_s, feed):
            raise error
        return self._next_pause_s()

    def _is_over(self, limit_s: float, feed: TurnFeed) -> bool:
        now_s = self._clock()
        # A call that was up for a while has ended a row of failures, also where the turn was silent.
        if self._since_s is None or now_s - self._failed_s > APART_S:
            self._since_s = now_s
        self._failed_s = now_s
        # Who has just come waits as long as everybody.
        since_s = max(self._since_s, feed.read_since_s) if feed.readers else self._since_s
        return now_s - since_s > limit_s

    def _next_pause_s(self) -> float:
        pause_s = self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        return pause_s
