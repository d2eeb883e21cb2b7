"""`answerdesk.v1.AgentService` over a host of turns. No policy lives here."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Protocol

from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc

from agent_service.rpc.convert import agent_to_proto, turn_from_proto
from agent_service.rpc.convert_watch import chatted_to_proto, stopped_to_proto, turn_id_from_proto, watched_to_proto
from agent_service.rpc.interceptors import Context, caller_var
from agent_service.rpc.stall import StallGuard
from agent_service.types import (
    AgentInfo,
    AgentName,
    Caller,
    EncodedEvent,
    StoppedTurn,
    TurnEvent,
    TurnId,
    TurnRequest,
)

DEADLINE_MARGIN_S = 0.1
"""A turn ends this much before its caller's deadline, so that the caller still gets the error's details."""


class Turns(Protocol):
    """What the servicer needs of the host."""

    def chat(self, request: TurnRequest, *, budget_s: float | None) -> AsyncGenerator[TurnEvent | EncodedEvent]:
        """Start or attach, and follow."""
        ...

    def watch(
        self, caller: Caller, turn_id: TurnId, after_sequence: int, *, observer: bool
    ) -> AsyncGenerator[TurnEvent | EncodedEvent]:
        """Follow a turn from any place."""
        ...

    async def stop(self, caller: Caller, turn_id: TurnId) -> StoppedTurn:
        """Abort a turn."""
        ...


class TeamListing(Protocol):
    """What the servicer needs of the team."""

    def agents(self) -> Sequence[AgentInfo]:
        """The team, the entry first."""
        ...

    def require(self, agent: AgentName) -> None:
        """Raise UnknownAgentError unless there is such an agent."""
        ...


class AgentServicer(pb_grpc.AgentServiceServicer):
    """Translates calls to the host of turns."""

    def __init__(self, turns: Turns, team: TeamListing) -> None:
        self._turns = turns
        self._team = team

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:
        """Start a turn or attach to it, and follow it to its end."""
        turn = turn_from_proto(request, caller_var.get())
        if turn.agent is not None:
            self._team.require(turn.agent)
        guard = StallGuard(context)
        async with aclosing(self._turns.chat(turn, budget_s=_budget_s(context))) as events:
            async for event in events:
                with guard.handing_over():
                    yield chatted_to_proto(event)

    async def WatchTurn(self, request: pb.WatchTurnRequest, context: Context) -> AsyncIterator[pb.WatchTurnResponse]:
        """Follow a turn from any place in its log."""
        turn_id = turn_id_from_proto(request.turn_id)
        guard = StallGuard(context)
        watched = self._turns.watch(caller_var.get(), turn_id, request.after_sequence, observer=request.observer)
        async with aclosing(watched) as events:
            async for event in events:
                with guard.handing_over():
                    yield watched_to_proto(event)

    async def StopTurn(self, request: pb.StopTurnRequest, context: Context) -> pb.StopTurnResponse:  # noqa: ARG002
        """Abort a turn and say how it ended."""
        turn_id = turn_id_from_proto(request.turn_id)
        return stopped_to_proto(await self._turns.stop(caller_var.get(), turn_id))

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:  # noqa: ARG002
        """List the team."""
        return pb.ListAgentsResponse(agents=map(agent_to_proto, self._team.agents()))


def _budget_s(context: Context) -> float | None:
    remaining_s: float | None = context.time_remaining()
    return max(0.0, remaining_s - DEADLINE_MARGIN_S) if remaining_s is not None else None
