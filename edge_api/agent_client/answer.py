"""One answer while it arrives."""

import asyncio
from collections.abc import AsyncGenerator

import grpc
from answerdesk.v1 import agent_service_pb2 as pb

from edge_api.agent_client.convert import event_from_proto
from edge_api.agent_client.decode import decoding
from edge_api.agent_client.events import Completed, Started, TurnEvent
from edge_api.errors import EdgeError, UpstreamError


class Answer:
    """The steps of one turn, read as slowly as the reader likes: gRPC's flow control holds the agent back."""

    def __init__(self, call: "grpc.aio.UnaryStreamCall[pb.ChatRequest, pb.ChatResponse]") -> None:
        self._call = call
        self._events = self._read()
        self._aborted_by: EdgeError | None = None

    async def start(self) -> Started:
        """Wait for the first step, so that a call that fails at once fails here, before anything was promised.

        Raises:
            UpstreamError: the agent service refused or failed the call.
            EdgeError: `abort` was called; its reason.
        """
        async for event in self._events:
            if isinstance(event, Started):
                return event
            break
        raise UpstreamError("INTERNAL", message="an answer began without its first step")

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        """The steps after the first, `Completed` being the last.

        Raises:
            UpstreamError: the call failed, or ended without `Completed`.
            EdgeError: `abort` was called; its reason.
        """
        async for event in self._events:
            yield event
            if isinstance(event, Completed):
                return
        raise UpstreamError("UNAVAILABLE", message="an answer was cut short")

    def abort(self, reason: EdgeError) -> None:
        """Cancel the call at once, also while the agent is silent; who reads gets `reason`."""
        if self._aborted_by is None:
            self._aborted_by = reason
            self._call.cancel()

    async def close(self) -> None:
        """Cancel the call, if it still runs, and let go of it."""
        self._call.cancel()
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[TurnEvent, None]:
        try:
            with decoding():
                async for message in self._call:
                    if (event := event_from_proto(message)) is not None:
                        yield event
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Cancelling the call and cancelling the reader look alike here; only the first is ours to answer.
            if self._aborted_by is None or (task is not None and task.cancelling()):
                raise
            raise self._aborted_by from None
