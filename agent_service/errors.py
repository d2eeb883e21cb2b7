"""What can go wrong, as facts. No transport words: `rpc/status.py` maps these to gRPC codes.

`reason` is the error's identity on the wire; `error_reason.proto` is its registry. Messages are for the caller to
read: they never hold secrets, prompts, answers or the text of a foreign exception.
"""

from dataclasses import dataclass
from typing import ClassVar


class AgentServiceError(Exception):
    """Something that a caller is told about, with a stable `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request and the rule that it breaks."""

    field: str
    description: str


class InvalidRequestError(AgentServiceError):
    """The request breaks a rule of the contract."""

    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class BudgetExceededError(InvalidRequestError):
    """The question with its context does not fit the agent's token budget."""

    reason = "BUDGET_EXCEEDED"


class UnknownResourceError(AgentServiceError):
    """Something named by the request is not there, or not for this caller: the two are not told apart."""

    kind: ClassVar[str]

    def __init__(self, name: str) -> None:
        super().__init__(f"no {self.kind} {name!r}")
        self.name = name


class UnknownAgentError(UnknownResourceError):
    """The roster has no agent of that name."""

    reason = "UNKNOWN_AGENT"
    kind = "agent"


class UnknownDocumentError(UnknownResourceError):
    """No such document that the caller may read, or another version of it is current."""

    reason = "UNKNOWN_DOCUMENT"
    kind = "document"


class UnknownCollectionError(UnknownResourceError):
    """Neither the roster nor the store knows the collection."""

    reason = "UNKNOWN_COLLECTION"
    kind = "collection"


class UnknownTurnError(UnknownResourceError):
    """No such turn of this caller, or it is no longer kept."""

    reason = "UNKNOWN_TURN"
    kind = "turn"


class CollectionNotReadyError(AgentServiceError):
    """Nothing was ingested yet into any of the collections that the request needs."""

    reason = "COLLECTION_NOT_READY"

    def __init__(self, *collections: str) -> None:
        super().__init__(f"nothing was ingested yet into: {', '.join(collections)}")
        self.collections = collections


class IngestConflictError(AgentServiceError):
    """Somebody else is writing the same document at this moment."""

    reason = "INGEST_CONFLICT"


class RequestIdReusedError(AgentServiceError):
    """The request id stands for a request with another content."""

    reason = "REQUEST_ID_REUSED"


class SequenceExpiredError(AgentServiceError):
    """The kept log of a turn no longer reaches back to the number asked for."""

    reason = "SEQUENCE_EXPIRED"


class StoreNotSharedError(AgentServiceError):
    """Several replicas have a store of their own each, so that one of them alone must not change it."""

    reason = "STORE_NOT_SHARED"


class RetryableError(AgentServiceError):
    """The same request may succeed later, or on another replica."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RetrievalUnavailableError(RetryableError):
    """The store of documents did not answer in time, or failed."""

    reason = "RETRIEVAL_UNAVAILABLE"


class ModelUnavailableError(RetryableError):
    """The model could not be reached, or answered with a server error."""

    reason = "MODEL_UNAVAILABLE"


class ModelRateLimitedError(RetryableError):
    """The model's provider refused for its rate limit."""

    reason = "MODEL_RATE_LIMITED"


class OverloadedError(RetryableError):
    """As many turns are running as allowed."""

    reason = "OVERLOADED"


class DrainingError(RetryableError):
    """This replica is shutting down."""

    reason = "DRAINING"


class TurnLostError(RetryableError):
    """The replica that ran the turn is gone, or was taken for gone; what it wrote is kept."""

    reason = "TURN_LOST"


class TurnLogUnavailableError(RetryableError):
    """What replicas share of turns cannot be reached."""

    reason = "TURN_LOG_UNAVAILABLE"


class FollowerTooSlowError(RetryableError):
    """The caller took nothing for too long; the turn goes on and can be watched from where it is."""

    reason = "FOLLOWER_TOO_SLOW"


class ModelFailedError(AgentServiceError):
    """The model's answer could not be understood, or the provider refused our request."""

    reason = "MODEL_FAILED"


class DeadlineError(AgentServiceError):
    """The time that the caller gave is up."""

    reason = "DEADLINE_EXCEEDED"


class UnauthenticatedError(AgentServiceError):
    """The caller did not say who they are, or could not prove it."""

    reason = "UNAUTHENTICATED"


class ReplayedError(AgentServiceError):
    """What a turn failed with on another replica: the status that its own followers got, byte for byte."""

    def __init__(self, reason: str, message: str, status: bytes) -> None:
        """`status`: opaque here; `rpc` made it and understands it."""
        super().__init__(message)
        self.reason = reason
        self.status = status


class StartupError(Exception):
    """The service cannot start. The message names the setting or the part, and the remedy."""
