"""Events and failures of turns as the protocol's bytes: how replicas hand them to each other."""

from agent_service.errors import AgentServiceError, ReplayedError
from agent_service.rpc import status
from agent_service.rpc.convert import event_to_proto
from agent_service.types import TurnEvent


class ProtoTurnCodec:
    """The `TurnCodec`. An event is a serialised ChatResponse, a failure a serialised google.rpc.Status.

    Nothing here can run code when it is read, as a pickle could: who may write to Redis may still not do that.
    """

    def encode_event(self, event: TurnEvent) -> bytes:
        """See `TurnCodec`."""
        return event_to_proto(event).SerializeToString()

    def encode_failure(self, failure: Exception) -> bytes:
        """See `TurnCodec`."""
        reply = status.to_status(failure) if isinstance(failure, AgentServiceError) else status.internal()
        encoded: bytes = reply.SerializeToString()
        return encoded

    def decode_failure(self, payload: bytes) -> ReplayedError:
        """See `TurnCodec`."""
        reply = status.from_bytes(payload)
        return ReplayedError(status.reason_of(reply), reply.message, reply.SerializeToString())
