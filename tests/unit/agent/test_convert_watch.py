"""Messages of watching and stopping: the same steps as those of who asked, here and from another replica."""

import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as conversation_pb

from agent_service.errors import InvalidRequestError
from agent_service.rpc.convert import event_to_proto
from agent_service.rpc.convert_watch import chatted_to_proto, stopped_to_proto, turn_id_from_proto, watched_to_proto
from agent_service.rpc.turn_codec import ProtoTurnCodec
from agent_service.types import (
    AgentSelected,
    Completed,
    EncodedEvent,
    Event,
    RequestId,
    Sources,
    Started,
    StoppedTurn,
    Strategy,
    Token,
    Tool,
    ToolPhase,
    TurnEvent,
    TurnId,
    TurnStatus,
)
from tests.support.answerers import BILLING, CUT_TRACE, CUT_USAGE
from tests.support.briefings import source

EVENTS: list[Event] = [
    Started(RequestId("r1")),
    AgentSelected(BILLING, Strategy.RAG),
    Sources((source(),)),
    Token("It \U0001f600"),
    Tool("search", "c1", ToolPhase.FAILED),
    Completed(TurnStatus.STOPPED, None, BILLING, None, usage=CUT_USAGE, trace=CUT_TRACE),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_step_is_the_same_for_everyone_and_from_every_replica(event: Event) -> None:
    here = TurnEvent(TurnId("t"), 7, event)
    there = EncodedEvent(7, ProtoTurnCodec().encode_event(here))

    assert chatted_to_proto(here) == chatted_to_proto(there) == event_to_proto(here)
    assert watched_to_proto(here) == watched_to_proto(there)
    assert watched_to_proto(here).SerializeToString() == event_to_proto(here).SerializeToString()


@pytest.mark.parametrize("given", ["a", "x" * 128, "A-z_0.9", "0b0e6c1e-6f2a-4a34-9d6f-3a53f5b7a111"])
def test_a_turns_id_is_taken_as_it_is(given: str) -> None:
    assert turn_id_from_proto(given) == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\n", "é", "{t}", "a:b"])
def test_what_cannot_be_a_turns_id_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        turn_id_from_proto(given)

    assert [violation.field for violation in raised.value.violations] == ["turn_id"]


def test_how_a_turn_ended_is_told_whole() -> None:
    assert stopped_to_proto(StoppedTurn(TurnStatus.STOPPED, CUT_USAGE, 12.5, 9)) == pb.StopTurnResponse(
        status=conversation_pb.TURN_STATUS_STOPPED,
        usage=conversation_pb.Usage(requests=1, input_tokens=20, output_tokens=2, total_tokens=22),
        abort_ms=12.5,
        last_sequence=9,
    )
