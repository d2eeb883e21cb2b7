"""A turn that has ended, shown once more: from the agent's log while that is kept, else from what is stored."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress

from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.events import AgentSelected, Completed, Started, TokenAdded, TurnEvent
from edge_api.chat.frames import error_frame, event_frame
from edge_api.conversations.schemas import Draft, EndedTurn
from edge_api.errors import EdgeError, TurnForgottenError, UpstreamError

REPLAY_TIMEOUT_S = 60.0
"""Longest replay: a reader that takes nothing is cut off before."""

FORGOTTEN = frozenset({"UNKNOWN_TURN", "SEQUENCE_EXPIRED"})


class Replay:
    """An ended turn and how it went on after a place in its log."""

    def __init__(self, turn: EndedTurn, draft: Draft, *, agent: AgentClient | None = None) -> None:
        """Make it from what is stored.

        Args:
            turn: what is shown.
            draft: the stored answer.
            agent: asked for the log by `frames`, for whom what is stored would do, too. None: `open` was called, or
                nobody is asked.
        """
        self.turn = turn
        self._draft = draft
        self._agent = agent
        self._first: TurnEvent | EdgeError | None = None
        self._rest: AsyncGenerator[TurnEvent, None] | None = None

    async def open(self, agent: AgentClient, *, after: int = 0) -> None:
        """Look for the log, so that what cannot be shown is said before anything is promised.

        Raises:
            TurnForgottenError: it is no longer kept.
            UpstreamError: the agent service cannot be reached.
        """
        turn = self.turn
        call = agent.watch(turn.turn_id, turn.caller, after=after, observer=True, timeout_s=REPLAY_TIMEOUT_S)
        events = call.events()
        try:
            self._first = await anext(events, None)
        except UpstreamError as err:
            if err.reason in FORGOTTEN or err.code == "UNIMPLEMENTED":
                raise TurnForgottenError(turn.session_id, turn.message_id if self._draft.content else None) from None
            if turn.status != "failed":
                raise
            # How it ended is known, also where the agent cannot be reached now.
            self._first = self._failure() or err
        self._rest = events

    async def frames(self, *, instance: str) -> AsyncGenerator[bytes, None]:
        """Frames of the log where it was opened, else of the stored answer, renumbered."""
        if self._agent is not None:
            with suppress(EdgeError):
                await self.open(self._agent)
        if self._rest is None:
            for event in self._stored():
                yield event_frame(event, self.turn)
            if (failure := self._failure()) is not None:
                yield error_frame(failure, instance)
            return
        async with aclosing(self._rest) as rest:
            if isinstance(self._first, EdgeError):
                yield error_frame(self._first, instance)
                return
            if self._first is None:
                return
            yield self._frame(self._first, instance)
            try:
                async for event in rest:
                    yield self._frame(event, instance)
            except EdgeError as err:
                yield error_frame(self._failure() or err, instance)

    @property
    def is_empty(self) -> bool:
        """Whether the log was opened and has nothing after that place."""
        return self._rest is not None and self._first is None

    def _frame(self, event: TurnEvent, instance: str) -> bytes:
        failure = self._failure()
        # An answer that nobody could store in time is no answer that can be read again.
        return (
            event_frame(event, self.turn)
            if failure is None or not isinstance(event, Completed)
            else error_frame(failure, instance)
        )

    async def close(self) -> None:
        """Hang up."""
        if self._rest is not None:
            await self._rest.aclose()

    async def answer(self) -> Draft:
        """The stored answer.

        Raises:
            UpstreamError: what the turn has failed with.
        """
        if (failure := self._failure()) is not None:
            raise failure
        return self._draft

    def _failure(self) -> UpstreamError | None:
        if self.turn.status != "failed":
            return None
        known = self.turn.failure
        return UpstreamError(known.code, known.reason) if known else UpstreamError("UNAVAILABLE", "TURN_LOST")

    def _stored(self) -> Iterator[TurnEvent]:
        """The steps that a stored answer still tells of."""
        draft, sequence = self._draft, 1
        yield Started(sequence, self.turn.turn_id)
        if draft.agent:
            sequence += 1
            yield AgentSelected(sequence, draft.agent, draft.strategy)
        if draft.content:
            sequence += 1
            yield TokenAdded(sequence, draft.content)
        if self.turn.status != "failed":
            yield Completed(
                sequence + 1,
                draft.status,
                draft.outcome,
                draft.agent,
                draft.strategy,
                draft.citations,
                draft.usage,
                draft.trace,
                b"",
            )
