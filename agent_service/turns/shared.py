"""What hosts of turns on several replicas need of each other: who owns a turn, its log, its followers, its stop."""

from collections.abc import AsyncGenerator
from enum import Enum, auto
from typing import Protocol

from agent_service.errors import AgentServiceError
from agent_service.turns.identity import TurnKey
from agent_service.turns.log_memory import TurnLog
from agent_service.types import EncodedEvent, StoppedTurn


class Claim(Enum):
    """What came of asking for a turn."""

    CREATED = auto()
    """It is ours to run."""
    EXISTS = auto()
    """It runs, or ran, elsewhere."""
    OTHER = auto()
    """Its id stands for another request."""
    ABSENT = auto()
    """There is none, and none was to be made."""


class Hosting(Protocol):
    """What the host of this replica is told of its own turns. Never blocks; turns it does not know are no error."""

    def stop_asked(self, tag: str) -> None:
        """Somebody asked another replica to stop the turn."""
        ...

    def followed_elsewhere(self, tag: str, followers: int) -> None:
        """So many follow the turn through other replicas."""
        ...

    def lost(self, tag: str) -> None:
        """The turn was taken for lost, or belongs to somebody else: nothing more of it will be taken."""
        ...


class SharedTurns(Protocol):
    """Turns as the replicas see them together."""

    def start(self, hosting: Hosting) -> None:
        """Begin to mirror, to poll and to listen; idempotent. Needs a running event loop, and no server yet."""
        ...

    async def check(self) -> bool:
        """Whether it can be reached now; says so in the log where not."""
        ...

    async def claim(self, key: TurnKey, fingerprint: str, *, create: bool) -> Claim:
        """Ask for a turn; exactly one replica gets to run it.

        Raises:
            TurnLogUnavailableError: it could not be asked.
        """
        ...

    def own(self, key: TurnKey, log: TurnLog, fingerprint: str) -> None:
        """Mirror the log of a turn that runs here, from its first event on. Needs no claim that went well."""
        ...

    def forget(self, key: TurnKey) -> None:
        """Keep nothing more of a turn of this replica."""
        ...

    async def followers(self, key: TurnKey) -> int:
        """How many follow a turn through other replicas; 0 where nobody can say, because nobody can follow then."""
        ...

    def follow(self, key: TurnKey, after_sequence: int, *, observer: bool) -> AsyncGenerator[EncodedEvent]:
        """Follow a turn that runs on another replica.

        Raises:
            UnknownTurnError: there is none.
            InvalidRequestError: `after_sequence` lies beyond the log of a running turn.
            SequenceExpiredError: that part of its log is no longer kept.
            TurnLostError: its replica is gone.
            TurnLogUnavailableError: nobody can say.
            ReplayedError: what the turn failed with, after its last event.
        """
        ...

    async def stop(self, key: TurnKey, *, timeout_s: float) -> StoppedTurn:
        """Stop a turn that runs on another replica, and wait for its end.

        Raises:
            UnknownTurnError: there is none.
            TurnLogUnavailableError: nobody can say, or its replica did not end it in time.
        """
        ...

    def dismiss(self, err: AgentServiceError) -> None:
        """Send those away, with an error, who follow turns of other replicas through this one."""
        ...

    async def close(self) -> None:
        """Write what is left, and let go."""
        ...
