"""What can go wrong on the edge, stated as facts. No HTTP and no gRPC here: `problem.py` has the codes."""

from collections.abc import Sequence


class StartupError(Exception):
    """The process cannot start; the text names the variable and the remedy."""


class EdgeError(Exception):
    """A request cannot be served. The text is written for the caller and quotes nothing of theirs but ids."""


class SessionNotFoundError(EdgeError):
    """There is no such session."""


class SessionExpiredError(EdgeError):
    """The session was idle for longer than it is kept."""


class TurnRunningError(EdgeError):
    """The session's last message is still being answered."""

    def __init__(self, turn_id: str | None) -> None:
        super().__init__("the last message of this session is still being answered")
        self.turn_id = turn_id


class TurnNotFoundError(EdgeError):
    """There is no such turn in this session."""


class TurnForgottenError(EdgeError):
    """The events of the turn are no longer kept; its answer is.

    Attributes:
        session_id: where it was.
        message_id: its answer; None: it left none.
    """

    def __init__(self, session_id: str, message_id: str | None) -> None:
        super().__init__("the events of this turn are no longer kept; what is stored of it can be read")
        self.session_id = session_id
        self.message_id = message_id


class UnknownSequenceError(EdgeError):
    """`Last-Event-ID` is no number of an event that this turn has."""


class KeyReusedError(EdgeError):
    """An `Idempotency-Key` that stands for another request."""


class MessageNotFoundError(EdgeError):
    """There is no such message."""


class NotYourSessionError(EdgeError):
    """The session, or the message, belongs to somebody else."""


class UnauthenticatedError(EdgeError):
    """No token came with the request, or one that is not valid here. Why is for the log, not for the caller."""


class TokenExpiredError(UnauthenticatedError):
    """The access token was valid once: a refresh will do."""


class InvalidCredentialsError(EdgeError):
    """The name or the password is wrong; which one is not said."""


class InvalidRefreshTokenError(EdgeError):
    """There is no refresh token, or it is unknown, expired, revoked or used already."""


class MissingScopeError(EdgeError):
    """The token is valid and does not allow this."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the token lacks the scope {scope}")
        self.scope = scope


class ForeignOriginError(EdgeError):
    """A page of another origin made the browser send its cookie."""


class RegistrationClosedError(EdgeError):
    """This edge does not take new accounts of that kind."""


class UsernameTakenError(EdgeError):
    """Somebody has an account of that name."""


class UnknownAccountError(EdgeError):
    """There is no built-in account of that name."""


class InvalidAccountError(EdgeError):
    """The name or the password of an account breaks a rule; the text says which."""


class LimitedError(EdgeError):
    """The caller did too much.

    Attributes:
        retry_after_s: when it is worth trying again. Seconds, at least 0.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitedError(LimitedError):
    """The caller sent more requests than are allowed in a time."""


class TooManyTurnsError(LimitedError):
    """As many answers as one user may have are being made for this one."""


class OverloadedError(EdgeError):
    """This edge has more of this work than it can do in time."""


class StorageUnavailableError(EdgeError):
    """The database did not answer in time, or cannot be reached."""


class IssuerUnavailableError(EdgeError):
    """The keys of the external issuer cannot be fetched, and none are known yet."""


class UnvouchedCallerError(EdgeError):
    """The caller's tenant or groups matter, and this edge has no key to vouch for them at the agent service."""


class DocumentRejectedError(EdgeError):
    """The document breaks a rule; the text says which."""


class InvalidCursorError(EdgeError):
    """A cursor that no page of this list gave."""


class ConflictingIdsError(EdgeError):
    """A request names two different sessions."""


class UnsupportedMediaTypeError(EdgeError):
    """The request's body has another type than is read here."""


class ClientLeftError(EdgeError):
    """The client closed its connection before it was answered."""


class SessionForgottenError(EdgeError):
    """The session was reset or deleted while its last message was being answered."""


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
