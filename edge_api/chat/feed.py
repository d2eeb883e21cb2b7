"""One turn at this edge: its events, kept once, for any number of readers, each from any place on."""

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable

from edge_api.agent_client.answer import EventCall
from edge_api.agent_client.events import Started, TurnEvent
from edge_api.chat.frames import error_frame, event_frame
from edge_api.conversations.schemas import Draft, OpenTurn
from edge_api.errors import ClientLeftError, ShuttingDownError, UnknownSequenceError

MOST_FRAMES = 64
"""Events of one write: a reader who comes late gets a turn's log in pieces of some kilobytes."""

QUIET_S = 3.0
CATCH_UP_S = 10.0
"""How long nothing may come, and how long it may take in all, until a reader's place is reached: another edge may have
shown them what has not come here yet."""


class TurnFeed:
    """What has come of a turn. It is bounded by the agent's own log of a turn, and dropped with the last reader.

    Readers take what is there at their own speed: a slow one costs nothing but its place.
    """

    def __init__(self, turn: OpenTurn, *, ours: bool, readers_changed: Callable[["TurnFeed"], None]) -> None:
        """`ours`: this edge opened or adopted the turn, and so records how it fails, too."""
        self.turn = turn
        self.ours = ours
        self.draft = Draft()
        self.call: EventCall | None = None
        self.observing = False
        self.readers = 0
        self.read_since_s = 0.0
        self.failure: Exception | None = None
        self.ended = False
        self.cut = False
        self._readers_changed = readers_changed
        self._events: list[TurnEvent] = []
        self._sequences: list[int] = []
        # Made when somebody reads them, once for all readers.
        self._frames: list[bytes] = []
        self._changed = asyncio.Event()

    @property
    def begun(self) -> Started | None:
        """The first event; None: it has not come yet."""
        first = self._events[0] if self._events else None
        return first if isinstance(first, Started) else None

    @property
    def last_sequence(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._sequences[-1] if self._sequences else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing will follow."""
        return self.ended or self.cut

    def append(self, event: TurnEvent) -> None:
        """Show an event to the readers."""
        self._events.append(event)
        self._sequences.append(event.sequence)
        self.wake()

    def end(self, failure: Exception | None = None) -> None:
        """Nothing will follow but the failure, if any."""
        self.ended, self.failure = True, failure
        self.wake()

    def cut_off(self) -> None:
        """Send the readers away without an end: the turn goes on, and they can resume elsewhere."""
        self.cut = True
        self.wake()

    def reader(self, after: int = 0) -> "Reader":
        """Somebody who follows from there on; the turn runs for their sake until they leave."""
        if not self.readers:
            self.read_since_s = time.monotonic()
        self.readers += 1
        self._readers_changed(self)
        return Reader(self, after)

    def reader_left(self) -> None:
        """One reader less."""
        self.readers -= 1
        self._readers_changed(self)
        self.wake()

    def place_after(self, sequence: int) -> int:
        """The index of the first event with a larger number."""
        return bisect_right(self._sequences, sequence)

    def frames(self, place: int) -> list[bytes]:
        """Frames from an index on; at most so many that one write is not large."""
        end = min(len(self._events), place + MOST_FRAMES)
        for event in self._events[len(self._frames) : end]:
            self._frames.append(event_frame(event, self.turn))
        return self._frames[place:end]

    async def changed(self) -> None:
        """Wait until something has happened."""
        await self._changed.wait()

    async def over(self) -> None:
        """Wait until nothing will follow."""
        while not self.is_over:
            await self.changed()

    def wake(self) -> None:
        """Let everybody look who waits."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Reader:
    """Somebody who follows a turn."""

    def __init__(self, feed: TurnFeed, after: int) -> None:
        self.feed = feed
        self._after = after
        self._left = False

    @property
    def turn(self) -> OpenTurn:
        """What is followed."""
        return self.feed.turn

    def leave(self) -> None:
        """Stop following; who waits in one of the other methods is let go. Idempotent."""
        if not self._left:
            self._left = True
            self.feed.reader_left()

    async def begin(self) -> None:
        """Wait for the turn to begin and for the reader's place, so that what fails at once fails here.

        Raises:
            UnknownSequenceError: the turn has no event of that number yet.
            ClientLeftError: `leave` was called.
            ShuttingDownError: this edge is stopping.
            EdgeError: the turn failed before it began.
        """
        feed = self.feed
        while feed.begun is None:
            if feed.failure is not None:
                raise feed.failure
            self._require_going_on()
            await feed.changed()
        try:
            async with asyncio.timeout(CATCH_UP_S):
                while feed.last_sequence < self._after and not feed.is_over:
                    self._require_going_on()
                    async with asyncio.timeout(QUIET_S):
                        await feed.changed()
        except TimeoutError:
            raise UnknownSequenceError("Last-Event-ID lies beyond what this turn has written") from None

    async def frames(self, *, instance: str) -> AsyncGenerator[bytes, None]:
        """All events after the reader's place, ready to send; a failure is the terminal `error` frame.

        Ends without a terminal frame where the turn goes on without this edge, or the reader has left.
        """
        feed = self.feed
        place = feed.place_after(self._after)
        while not self._left:
            if frames := feed.frames(place):
                place += len(frames)
                yield b"".join(frames)
            elif feed.failure is not None:
                yield error_frame(feed.failure, instance)
                return
            elif feed.is_over:
                return
            else:
                await feed.changed()

    async def answer(self) -> Draft:
        """The whole answer.

        Raises:
            ClientLeftError, ShuttingDownError: as `begin`.
            EdgeError: the turn failed.
        """
        feed = self.feed
        while not feed.ended:
            self._require_going_on()
            await feed.changed()
        if feed.failure is not None:
            raise feed.failure
        return feed.draft

    def _require_going_on(self) -> None:
        if self._left:
            raise ClientLeftError("the client closed the connection")
        if self.feed.cut:
            raise ShuttingDownError("this edge is stopping; the answer goes on without it")
