"""The tables between protocol, errors and HTTP are total."""

import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2, error_reason_pb2
from google.protobuf.descriptor import EnumDescriptor

from edge_api.agent_client import convert
from edge_api.agent_client.events import Completed
from edge_api.agent_client.schemas import Trace
from edge_api.errors import EdgeError, LimitedError, UpstreamError
from edge_api.problem import OWN, REASONS, problem_of

REASON_NAMES = [name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name]


def subclasses(kind: type[EdgeError]) -> set[type[EdgeError]]:
    return {kind for each in kind.__subclasses__() for kind in {each, *subclasses(each)}}


def test_every_reason_of_the_protocol_has_a_row_and_every_row_a_reason() -> None:
    assert set(REASONS) == set(REASON_NAMES)


def test_every_error_of_the_edge_has_a_row() -> None:
    assert set(OWN) == subclasses(EdgeError) - {UpstreamError, LimitedError}


@pytest.mark.parametrize("reason", REASON_NAMES)
def test_a_reason_keeps_its_name_as_the_code_unless_the_fault_is_ours(reason: str) -> None:
    kind = REASONS[reason]

    assert kind.code == reason.lower() or kind.code in {"agent_failed", "agent_refused"}
    # Whatever is not the caller's to mend has a text of its own, so that upstream's is never shown.
    assert (kind.detail is None) == (kind.status < 500)
    assert kind.title


@pytest.mark.parametrize("reason", REASON_NAMES)
def test_401_403_and_429_are_never_the_agents_to_give(reason: str) -> None:
    assert problem_of(UpstreamError("UNKNOWN", reason)).kind.status not in {401, 403, 429}


@pytest.mark.parametrize(
    ("descriptor", "table", "left_out"),
    [
        (conversation_pb2.Strategy.DESCRIPTOR, convert.STRATEGIES, {"STRATEGY_UNSPECIFIED"}),
        (conversation_pb2.Outcome.DESCRIPTOR, convert.OUTCOMES, {"OUTCOME_UNSPECIFIED"}),
        (
            conversation_pb2.TurnStatus.DESCRIPTOR,
            convert.ENDS,
            {"TURN_STATUS_UNSPECIFIED", "TURN_STATUS_RUNNING", "TURN_STATUS_COMPLETED"},
        ),
        (pb.Tool.Phase.DESCRIPTOR, convert.PHASES, {"PHASE_UNSPECIFIED"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_value_of_an_enum_has_its_word(
    descriptor: EnumDescriptor, table: dict[int, str], left_out: set[str]
) -> None:
    words = {value.name: table.get(value.number) for value in descriptor.values}

    assert {name for name, word in words.items() if word is None} == left_out
    assert all(word is None or name.endswith(word.upper()) for name, word in words.items())


def test_every_field_of_a_trace_is_told() -> None:
    told = convert.event_from_proto(pb.ChatResponse(completed=pb.Completed()))
    assert isinstance(told, Completed)

    assert set(told.trace) == set(conversation_pb2.Trace.DESCRIPTOR.fields_by_name) == set(Trace.model_fields)


def test_every_step_of_a_turn_is_read() -> None:
    steps = pb.ChatResponse.DESCRIPTOR.oneofs_by_name["event"].fields

    assert set(convert.READERS) == {step.name for step in steps}
