"""Between the messages of watching and stopping a turn and our types. Pure."""

from answerdesk.v1 import agent_service_pb2 as pb

from agent_service.rpc.convert import REQUEST_ID, STATUSES, event_to_proto, fill_event, usage_to_proto
from agent_service.rpc.rules import Rules
from agent_service.types import EncodedEvent, StoppedTurn, TurnEvent, TurnId


def turn_id_from_proto(given: str) -> TurnId:
    """A turn's id.

    Raises:
        InvalidRequestError: it cannot be one.
    """
    rules = Rules()
    rules.hold(bool(given) and REQUEST_ID.fullmatch(given) is not None, "turn_id", "must match [A-Za-z0-9._-]{1,128}")
    rules.check()
    return TurnId(given)


def chatted_to_proto(event: TurnEvent | EncodedEvent) -> pb.ChatResponse:
    """A step of a turn, for who asked."""
    return pb.ChatResponse.FromString(event.payload) if isinstance(event, EncodedEvent) else event_to_proto(event)


def watched_to_proto(event: TurnEvent | EncodedEvent) -> pb.WatchTurnResponse:
    """The same step, for who watches; both messages are the same on the wire."""
    if isinstance(event, EncodedEvent):
        return pb.WatchTurnResponse.FromString(event.payload)
    response = pb.WatchTurnResponse(turn_id=event.turn_id, sequence=event.sequence)
    fill_event(response, event.event)
    return response


def stopped_to_proto(stopped: StoppedTurn) -> pb.StopTurnResponse:
    """How a turn has ended."""
    return pb.StopTurnResponse(
        status=STATUSES[stopped.status],
        usage=usage_to_proto(stopped.usage),
        abort_ms=stopped.abort_ms,
        last_sequence=stopped.last_sequence,
    )
