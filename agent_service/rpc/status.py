"""From domain errors to gRPC statuses with google.rpc details: the only place that knows both."""

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from agent_service.errors import (
    AgentServiceError,
    BudgetExceededError,
    CollectionNotReadyError,
    DeadlineError,
    DrainingError,
    IngestConflictError,
    InvalidRequestError,
    ModelFailedError,
    ModelRateLimitedError,
    ModelUnavailableError,
    OverloadedError,
    RequestIdReusedError,
    RetrievalUnavailableError,
    RetryableError,
    UnauthenticatedError,
    UnknownAgentError,
    UnknownCollectionError,
    UnknownDocumentError,
    UnknownResourceError,
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
    CollectionNotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    IngestConflictError: grpc.StatusCode.ABORTED,
    RequestIdReusedError: grpc.StatusCode.ALREADY_EXISTS,
    RetrievalUnavailableError: grpc.StatusCode.UNAVAILABLE,
    ModelUnavailableError: grpc.StatusCode.UNAVAILABLE,
    OverloadedError: grpc.StatusCode.UNAVAILABLE,
    DrainingError: grpc.StatusCode.UNAVAILABLE,
    ModelRateLimitedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelFailedError: grpc.StatusCode.INTERNAL,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
}


def to_status(err: AgentServiceError) -> status_pb2.Status:
    """The whole status of an error: code, message, ErrorInfo and what else its kind carries."""
    code: int = CODES[type(err)].value[0]
    return _status(code, str(err)[: 2 * LONGEST_NAME], [_error_info(err.reason), *_details(err)])


def internal() -> status_pb2.Status:
    """The status of everything unforeseen: it says nothing but that. The log has the rest."""
    code: int = grpc.StatusCode.INTERNAL.value[0]
    return _status(code, "internal error", [_error_info("INTERNAL")])


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
