"""One call that follows a turn, from its start or from any place in its log."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeAlias

import grpc
from answerdesk.v1 import agent_service_pb2 as pb

from edge_api.agent_client.convert import event_from_proto
from edge_api.agent_client.decode import decoding
from edge_api.agent_client.events import TurnEvent
from edge_api.errors import UpstreamError

GrpcCall: TypeAlias = (
    "grpc.aio.UnaryStreamCall[pb.ChatRequest, pb.ChatResponse] | "
    "grpc.aio.UnaryStreamCall[pb.WatchTurnRequest, pb.WatchTurnResponse]"
)


MAX_TURN_BYTES = 4 * 2**20
"""Most of one turn that is read. The agent's own log of a turn is 256 KiB beside its citations and trace."""


class EventCall:
    """The steps of a turn as they come; hanging up ends the call and not the turn."""

    def __init__(self, call: GrpcCall) -> None:
        self._call = call
        self.was_hung_up = False

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        """The steps, until the call ends or is hung up. Closing this hangs up.

        Raises:
            UpstreamError: the call failed.
        """
        received = 0
        try:
            with decoding():
                async for message in self._call:
                    received += message.ByteSize()
                    if received > MAX_TURN_BYTES:
                        raise UpstreamError("RESOURCE_EXHAUSTED", message="the answer is too long")
                    if (event := event_from_proto(message)) is not None:
                        yield event
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Hanging up and cancelling the reader look alike here; only the first is an end.
            if not self.was_hung_up or (task is not None and task.cancelling()):
                raise
        finally:
            self._call.cancel()

    def hang_up(self) -> None:
        """End the call at once, also while the agent is silent."""
        self.was_hung_up = True
        self._call.cancel()
