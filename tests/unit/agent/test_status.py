import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb
from google.rpc import status_pb2

from agent_service import errors
from agent_service.errors import FieldViolation
from agent_service.rpc.status import DOMAIN, internal, to_status


def unpacked(status: status_pb2.Status) -> list[Message]:
    kinds = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (
            details_pb.ErrorInfo,
            details_pb.BadRequest,
            details_pb.ResourceInfo,
            details_pb.PreconditionFailure,
            details_pb.RetryInfo,
            details_pb.QuotaFailure,
        )
    }
    found: list[Message] = []
    for box in status.details:
        message = kinds[box.TypeName()]()
        assert box.Unpack(message)
        found.append(message)
    return found


def code(status: status_pb2.Status) -> grpc.StatusCode:
    return next(each for each in grpc.StatusCode if each.value[0] == status.code)


def test_the_domain_is_the_one_that_the_registry_names() -> None:
    assert DOMAIN == "answerdesk"


def test_error_info_comes_first() -> None:
    first = unpacked(to_status(errors.UnknownAgentError("biling")))[0]

    assert first == details_pb.ErrorInfo(domain="answerdesk", reason="UNKNOWN_AGENT")


def test_an_invalid_request_names_its_fields_and_rules() -> None:
    violations = FieldViolation("message", "must not be empty"), FieldViolation("grace", "must be 0 to 600 s")

    status = to_status(errors.InvalidRequestError(*violations))

    assert code(status) is grpc.StatusCode.INVALID_ARGUMENT
    assert unpacked(status)[1:] == [
        details_pb.BadRequest(
            field_violations=[
                details_pb.BadRequest.FieldViolation(field="message", description="must not be empty"),
                details_pb.BadRequest.FieldViolation(field="grace", description="must be 0 to 600 s"),
            ]
        )
    ]


def test_an_exceeded_budget_is_an_invalid_argument_with_its_own_reason() -> None:
    status = to_status(errors.BudgetExceededError(FieldViolation("history", "is too long")))
    info, bad_request = unpacked(status)

    assert code(status) is grpc.StatusCode.INVALID_ARGUMENT
    assert info == details_pb.ErrorInfo(domain="answerdesk", reason="BUDGET_EXCEEDED")
    assert isinstance(bad_request, details_pb.BadRequest)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.UnknownAgentError("x"), "agent"),
        (errors.UnknownDocumentError("x"), "document"),
        (errors.UnknownCollectionError("x"), "collection"),
        (errors.UnknownTurnError("x"), "turn"),
    ],
)
def test_an_unknown_resource_names_its_type_and_name(error: errors.AgentServiceError, kind: str) -> None:
    status = to_status(error)

    assert code(status) is grpc.StatusCode.NOT_FOUND
    assert unpacked(status)[1:] == [details_pb.ResourceInfo(resource_type=kind, resource_name="x")]


def test_a_collection_that_is_not_ready_is_a_failed_precondition_per_collection() -> None:
    status = to_status(errors.CollectionNotReadyError("billing", "policy"))
    failure = unpacked(status)[1]

    assert code(status) is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(failure, details_pb.PreconditionFailure)
    assert [violation.subject for violation in failure.violations] == ["billing", "policy"]


def test_a_store_that_is_not_shared_is_a_failed_precondition_that_says_what_to_do() -> None:
    status = to_status(errors.StoreNotSharedError("set AGENT_QDRANT_URL"))
    failure = unpacked(status)[1]

    assert code(status) is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(failure, details_pb.PreconditionFailure)
    assert [(v.type, v.description) for v in failure.violations] == [("STORE_NOT_SHARED", "set AGENT_QDRANT_URL")]


@pytest.mark.parametrize("error", [errors.TurnLostError("gone"), errors.TurnLogUnavailableError("away")])
def test_a_turn_that_cannot_be_followed_may_be_asked_for_again(error: errors.AgentServiceError) -> None:
    status = to_status(error)

    assert code(status) is grpc.StatusCode.UNAVAILABLE
    assert isinstance(unpacked(status)[1], details_pb.RetryInfo)


@pytest.mark.parametrize(("seconds", "milliseconds"), [(1.0, 1000), (0.25, 250), (2.5, 2500), (0.0, 0)])
def test_a_retryable_error_says_when_to_try_again(seconds: float, milliseconds: int) -> None:
    retry = unpacked(to_status(errors.OverloadedError("full", retry_after_s=seconds)))[1]

    assert isinstance(retry, details_pb.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == milliseconds


def test_a_rate_limit_of_the_model_has_a_retry_and_a_quota() -> None:
    status = to_status(errors.ModelRateLimitedError("slow down", retry_after_s=7))
    _, retry, quota = unpacked(status)

    assert code(status) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(retry, details_pb.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 7000
    assert isinstance(quota, details_pb.QuotaFailure)
    assert len(quota.violations) == 1


@pytest.mark.parametrize(
    "error",
    [
        errors.IngestConflictError("busy"),
        errors.RequestIdReusedError("reused"),
        errors.SequenceExpiredError("gone"),
        errors.ModelFailedError("nonsense"),
        errors.DeadlineError("late"),
        errors.UnauthenticatedError("who?"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_carry_their_identity_and_message_alone(error: errors.AgentServiceError) -> None:
    status = to_status(error)

    assert unpacked(status) == [details_pb.ErrorInfo(domain="answerdesk", reason=error.reason)]
    assert status.message == str(error)


def test_what_is_unforeseen_says_nothing_but_that() -> None:
    status = internal()

    assert code(status) is grpc.StatusCode.INTERNAL
    assert status.message == "internal error"
    assert unpacked(status) == [details_pb.ErrorInfo(domain="answerdesk", reason="INTERNAL")]
