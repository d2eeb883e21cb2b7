"""From domain errors to gRPC statuses with google.rpc details: the only place that knows both."""

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from agent_service.errors import (
    AgentServiceError,
    BudgetExceededError,
    CollectionNotReadyError,
    DeadlineError,
    DrainingError,
    FollowerTooSlowError,
    IngestConflictError,
    InvalidRequestError,
    ModelFailedError,
    ModelRateLimitedError,
    ModelUnavailableError,
    OverloadedError,
    ReplayedError,
    RequestIdReusedError,
    RetrievalUnavailableError,
    RetryableError,
    SequenceExpiredError,
    StoreNotSharedError,
    TurnLogUnavailableError,
    TurnLostError,
    UnauthenticatedError,
    UnknownAgentError,
    UnknownCollectionError,
    UnknownDocumentError,
    UnknownResourceError,
    UnknownTurnError,
)

DOMAIN = "answerdesk"
"""`ErrorInfo.domain` of every error of these services."""

LONGEST_NAME = 200
MOST_VIOLATIONS = 10
"""A status travels in HTTP/2 headers, of which a receiver takes 8 KiB by default; beyond that it would arrive as
another error. A caller who broke more rules hears of the first ones."""

CODES: Mapping[type[AgentServiceError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    BudgetExceededError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownAgentError: grpc.StatusCode.NOT_FOUND,
    UnknownDocumentError: grpc.StatusCode.NOT_FOUND,
    UnknownCollectionError: grpc.StatusCode.NOT_FOUND,
    UnknownTurnError: grpc.StatusCode.NOT_FOUND,
    CollectionNotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    StoreNotSharedError: grpc.StatusCode.FAILED_PRECONDITION,
    IngestConflictError: grpc.StatusCode.ABORTED,
    RequestIdReusedError: grpc.StatusCode.ALREADY_EXISTS,
    SequenceExpiredError: grpc.StatusCode.OUT_OF_RANGE,
    RetrievalUnavailableError: grpc.StatusCode.UNAVAILABLE,
    ModelUnavailableError: grpc.StatusCode.UNAVAILABLE,
    OverloadedError: grpc.StatusCode.UNAVAILABLE,
    DrainingError: grpc.StatusCode.UNAVAILABLE,
    TurnLostError: grpc.StatusCode.UNAVAILABLE,
    TurnLogUnavailableError: grpc.StatusCode.UNAVAILABLE,
    FollowerTooSlowError: grpc.StatusCode.UNAVAILABLE,
    ModelRateLimitedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelFailedError: grpc.StatusCode.INTERNAL,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
}


def to_status(err: AgentServiceError) -> status_pb2.Status:
    """The whole status of an error: code, message, ErrorInfo and what else its kind carries."""
    if isinstance(err, ReplayedError):
        return from_bytes(err.status)
    code: int = CODES[type(err)].value[0]
    return _status(code, str(err)[: 2 * LONGEST_NAME], [_error_info(err.reason), *_details(err)])


def internal() -> status_pb2.Status:
    """The status of everything unforeseen: it says nothing but that. The log has the rest."""
    code: int = grpc.StatusCode.INTERNAL.value[0]
    return _status(code, "internal error", [_error_info("INTERNAL")])


def from_bytes(payload: bytes) -> status_pb2.Status:
    """A status that was serialised by a replica of this service; what is none becomes an internal error."""
    try:
        status = status_pb2.Status.FromString(payload)
    except DecodeError:
        return internal()
    return status if status.code in {code.value[0] for code in CODES.values()} else internal()


def code_name(status: status_pb2.Status) -> str:
    """The name of a status's code, such as "NOT_FOUND"."""
    return next((code.name for code in grpc.StatusCode if code.value[0] == status.code), str(status.code))


def reason_of(status: status_pb2.Status) -> str:
    """The reason in a status's ErrorInfo; empty without one."""
    info = error_details_pb2.ErrorInfo()
    return next((str(info.reason) for box in status.details if box.Unpack(info)), "")


def _details(err: AgentServiceError) -> list[Message]:
    details: list[Message] = []
    if isinstance(err, InvalidRequestError):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=v.field[:LONGEST_NAME], description=v.description[:LONGEST_NAME]
            )
            for v in err.violations[:MOST_VIOLATIONS]
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(err, UnknownResourceError):
        details.append(error_details_pb2.ResourceInfo(resource_type=err.kind, resource_name=err.name[:LONGEST_NAME]))
    if isinstance(err, CollectionNotReadyError):
        violations_ = [
            error_details_pb2.PreconditionFailure.Violation(
                type="COLLECTION_NOT_READY", subject=name[:LONGEST_NAME], description="nothing was ingested yet"
            )
            for name in err.collections[:MOST_VIOLATIONS]
        ]
        details.append(error_details_pb2.PreconditionFailure(violations=violations_))
    if isinstance(err, StoreNotSharedError):
        broken = error_details_pb2.PreconditionFailure.Violation(
            type="STORE_NOT_SHARED", subject="store", description=str(err)[: 2 * LONGEST_NAME]
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[broken]))
    if isinstance(err, RetryableError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(err.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(err, ModelRateLimitedError):
        violation = error_details_pb2.QuotaFailure.Violation(subject="model", description=str(err))
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    return details


def _error_info(reason: str) -> Message:
    info: Message = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    return info


def _status(code: int, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return status_pb2.Status(code=code, message=message, details=packed)
