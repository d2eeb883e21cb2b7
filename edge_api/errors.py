"""What can go wrong on the edge, stated as facts. No HTTP and no gRPC here: `problem.py` has the codes."""

from collections.abc import Sequence


class StartupError(Exception):
    """The process cannot start; the text names the variable and the remedy."""


class EdgeError(Exception):
    """A request cannot be served. The text is written for the caller and quotes nothing of theirs but ids."""


class SessionNotFoundError(EdgeError):
    """There is no such session, or it was dropped to make room."""


class SessionExpiredError(EdgeError):
    """The session was idle for longer than it is kept."""


class TurnRunningError(EdgeError):
    """The session's last message is still being answered."""

    def __init__(self, turn_id: str | None) -> None:
        super().__init__("the last message of this session is still being answered")
        self.turn_id = turn_id


class ConflictingIdsError(EdgeError):
    """A request names two different sessions."""


class UnsupportedMediaTypeError(EdgeError):
    """The request's body is not JSON."""


class ClientLeftError(EdgeError):
    """The client closed its connection before it was answered."""


class ShuttingDownError(EdgeError):
    """This edge is stopping."""


class UpstreamError(EdgeError):
    """The agent service refused or failed a call.

    Attributes:
        code: the name of the gRPC status, such as "NOT_FOUND".
        reason: `ErrorInfo.reason` of our own services, such as "UNKNOWN_AGENT"; empty where there was none.
        message: the status's text. May hold anything: `problem.py` decides whether a caller sees it.
        retry_after_s: when to try again, if the agent said so. Seconds, at least 0.
        field_violations: (field, description) of a refused request.
    """

    def __init__(
        self,
        code: str,
        reason: str = "",
        message: str = "",
        *,
        retry_after_s: float | None = None,
        field_violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.field_violations = tuple(field_violations)
