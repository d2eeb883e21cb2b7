"""The turns that this edge follows: asked or adopted, read once, shown to any number of readers, and stored.

A turn runs in the agent service and is nobody's call. While somebody reads it here, this edge counts as its follower;
when the last one leaves, it goes on looking as an observer, until the answer is there to be stored.
"""

import asyncio
import logging
from contextlib import aclosing
from typing import Final

from edge_api.agent_client.answer import EventCall
from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.events import Completed, Question, Started, Stopped, TurnEvent
from edge_api.chat.feed import TurnFeed
from edge_api.chat.patience import Patience
from edge_api.chat.recorder import Recorder
from edge_api.conversations.schemas import Draft, Failure, MessageId, OpenTurn
from edge_api.conversations.service import TURN_MARGIN_S, ConversationService
from edge_api.db import Clock, utc_now
from edge_api.errors import (
    EdgeError,
    SessionForgottenError,
    ShuttingDownError,
    StorageUnavailableError,
    UpstreamError,
)

log = logging.getLogger(__name__)

STOP_PATIENCE_S = 3.0
"""How long a turn that was opened a moment ago may take to reach the agent that is to stop it."""

STOPPED_PATIENCE_S = 8.0
"""How long the end of a stopped turn may take to be stored."""

PAUSE_S: Final = 0.05
LEAST_S: Final = 0.1


class TurnHub:
    """Follows turns; each has one task and one call here, however many read it."""

    def __init__(
        self, agent: AgentClient, conversations: ConversationService, recorder: Recorder, *, clock: Clock = utc_now
    ) -> None:
        self._agent = agent
        self._conversations = conversations
        self._recorder = recorder
        self._clock = clock
        self._feeds: dict[MessageId, TurnFeed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False

    def ask(self, turn: OpenTurn, question: Question) -> TurnFeed:
        """Ask the agent, on behalf of a turn that was just opened here."""
        return self._begun(turn, question, ours=True)

    def join(self, turn: OpenTurn) -> TurnFeed:
        """The feed of a turn that is being answered, whichever edge has opened it."""
        return self._feeds.get(turn.message_id) or self._begun(turn, None, ours=False)

    def is_at_work_on(self, message_id: MessageId) -> bool:
        """Whether a turn is followed here, or its answer being stored."""
        return message_id in self._feeds or self._recorder.is_storing(message_id)

    def adopt(self, turn: OpenTurn) -> None:
        """Follow a turn whose edge is gone, to its end, and store it."""
        self.join(turn).ours = True

    async def stop(self, turn: OpenTurn) -> tuple[Draft, Stopped]:
        """Abort a turn, wherever it runs. Returns its answer, which is stored by then, and how it was stopped.

        Raises:
            UpstreamError: the agent service failed the call.
            StorageUnavailableError: it was stopped, and is not stored yet.
        """
        feed = self.join(turn)
        stopped = await self._stopped(feed)
        try:
            async with asyncio.timeout(STOPPED_PATIENCE_S):
                await feed.over()
        except TimeoutError:
            raise StorageUnavailableError("the answer was stopped and is not stored yet") from None
        if feed.cut:
            raise ShuttingDownError("this edge is stopping; the answer was stopped")
        if isinstance(feed.failure, UpstreamError):
            # It has failed before it could be stopped.
            feed.draft.status, feed.draft.usage = stopped.status, stopped.usage
        elif feed.failure is not None:
            raise feed.failure
        return feed.draft, stopped

    def cut_off(self) -> None:
        """Send all readers away: this process is about to end, and the turns are not."""
        self._cut = True
        for feed in tuple(self._feeds.values()):
            feed.cut_off()

    async def close(self, timeout_s: float) -> None:
        """Hang up everywhere. What is being stored is the recorder's to wait for."""
        self.cut_off()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _begun(self, turn: OpenTurn, question: Question | None, *, ours: bool) -> TurnFeed:
        feed = TurnFeed(turn, ours=ours, readers_changed=self._match)
        self._feeds[turn.message_id] = feed
        if self._cut:
            feed.cut_off()
        task = asyncio.create_task(self._run(feed, question), name=f"turn {turn.message_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return feed

    async def _run(self, feed: TurnFeed, question: Question | None) -> None:
        try:
            feed.end(await self._to_its_end(feed, question))
        except asyncio.CancelledError:
            feed.cut_off()
            raise
        except Exception as err:  # noqa: BLE001 - the recorder has logged it
            feed.end(err)
        finally:
            # A newcomer reads the end from the agent's log, or from the database.
            self._feeds.pop(feed.turn.message_id, None)

    async def _to_its_end(self, feed: TurnFeed, question: Question | None) -> Exception | None:
        """Follow a turn and store it. Returns what its readers are told in place of an end.

        Raises:
            Exception: it could not be stored.
        """
        try:
            completed = await self._follow(feed, question)
        except Exception as err:
            if not isinstance(err, EdgeError):
                log.exception("a turn could not be followed", extra={"message_id": feed.turn.message_id})
            if feed.ours:
                await self._store_failure(feed, err, asked=question is not None)
            return err
        # Only when it is stored its last event is shown.
        if await self._recorder.store(feed.turn, feed.draft) == "gone":
            return SessionForgottenError("the session was emptied or deleted while this was answered")
        feed.append(completed)
        return None

    async def _follow(self, feed: TurnFeed, question: Question | None) -> Completed:
        """Read the turn to its end, over as many calls as it takes."""
        turn = feed.turn
        patience = Patience(asked=question is not None)
        while True:
            left_s = (turn.deadline_at - self._clock()).total_seconds()
            if left_s <= 0:
                raise UpstreamError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
            # Who left before it began was promised nothing, and will ask again.
            asks = question is not None and feed.begun is None and bool(feed.readers)
            call = self._call(feed, question if asks else None, left_s)
            try:
                async with aclosing(call.events()) as events:
                    async for event in events:
                        patience.reset()
                        if isinstance(event, Completed):
                            feed.draft.take(event)
                            return event
                        await self._take(feed, event)
                if not call.was_hung_up:
                    raise _cut_short(feed)
            except UpstreamError as err:
                await asyncio.sleep(patience.pause_s(err, feed, asking=asks))
            finally:
                feed.call = None

    def _call(self, feed: TurnFeed, question: Question | None, left_s: float) -> EventCall:
        turn = feed.turn
        feed.observing = not feed.readers
        feed.call = (
            self._agent.ask(question, turn.caller, timeout_s=max(LEAST_S, left_s - TURN_MARGIN_S))
            if question is not None
            else self._agent.watch(
                feed.draft.turn_id or turn.name,
                turn.caller,
                after=feed.last_sequence,
                observer=feed.observing,
                timeout_s=left_s,
            )
        )
        return feed.call

    async def _take(self, feed: TurnFeed, event: TurnEvent) -> None:
        # Attaching to a turn repeats what is known already.
        if event.sequence <= feed.last_sequence:
            return
        if feed.begun is None and not isinstance(event, Started):
            raise _cut_short(feed)
        feed.draft.take(event)
        if isinstance(event, Started):
            feed.draft.turn_id = event.turn_id
            if feed.ours and event.turn_id != feed.turn.name:
                await self._name(feed, event)
        feed.append(event)

    async def _name(self, feed: TurnFeed, started: Started) -> None:
        """Write down how the agent calls the turn, where that is not as we do."""
        try:
            await self._conversations.name(feed.turn, started.turn_id)
        except StorageUnavailableError:
            # The answer is being made; its name is written with it.
            log.warning("a turn could not be named", extra={"turn_id": started.turn_id})

    def _match(self, feed: TurnFeed) -> None:
        """See that this edge follows while there are readers, and only looks on while there are none."""
        if feed.call is not None and feed.observing == bool(feed.readers):
            feed.call.hang_up()

    async def _store_failure(self, feed: TurnFeed, failure: Exception, *, asked: bool) -> None:
        """Store how a turn has failed; one that never began is forgotten, and its sender may send it again."""
        feed.draft.status = "failed"
        feed.draft.failure = (
            Failure(failure.code, failure.reason) if isinstance(failure, UpstreamError) else Failure("INTERNAL")
        )
        try:
            if asked and feed.begun is None:
                await self._recorder.withdraw(feed.turn)
            else:
                await self._recorder.store(feed.turn, feed.draft)
        except StorageUnavailableError:
            # The recorder goes on trying; the reader learns what came first.
            log.warning("a failed turn is not stored yet", extra={"message_id": feed.turn.message_id})

    async def _stopped(self, feed: TurnFeed) -> Stopped:
        turn = feed.turn
        loop = asyncio.get_running_loop()
        end_s = loop.time() + STOP_PATIENCE_S
        while True:
            try:
                return await self._agent.stop(feed.draft.turn_id or turn.name, turn.caller)
            except UpstreamError as err:
                # It may be on its way to the agent.
                if err.reason != "UNKNOWN_TURN" or feed.is_over or loop.time() > end_s:
                    raise
            await asyncio.sleep(PAUSE_S)


def _cut_short(feed: TurnFeed) -> UpstreamError:
    if feed.begun is None:
        return UpstreamError("INTERNAL", message="an answer began without its first step")
    return UpstreamError("UNAVAILABLE", message="an answer was cut short")
