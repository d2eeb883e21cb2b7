"""From what went wrong to `application/problem+json` (RFC 9457): the only tables that know HTTP codes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from edge_api import errors
from edge_api.errors import EdgeError, LimitedError, TurnForgottenError, TurnRunningError, UpstreamError
from edge_api.telemetry import request_id_var

MEDIA_TYPE = "application/problem+json"
# When an unreachable agent is worth another try: it is looked for every two seconds.
RETRY_AFTER_S = 3
MAX_RETRY_AFTER_S = 3_600
MAX_FIELD_ERRORS = 20
MAX_FIELD_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem. `detail` None: the error's own text is fit for the caller."""

    status: int
    code: str
    title: str
    detail: str | None = None
    retryable: bool = False


_BROKEN = "The agent service could not answer. Its operators find the cause under this request id."
AGENT_FAILED = Kind(502, "agent_failed", "The agent service failed", _BROKEN)
AGENT_REFUSED = Kind(502, "agent_refused", "The agent service refused this edge", _BROKEN)
AGENT_UNAVAILABLE = Kind(
    503, "agent_unavailable", "The agent service is unreachable", "Try again after the stated time.", retryable=True
)
DEADLINE_EXCEEDED = Kind(
    504, "deadline_exceeded", "The answer took too long", "The time for this answer is up.", retryable=True
)
INTERNAL = Kind(500, "internal", "Internal error", "This edge failed. Its log has the cause under this request id.")
INVALID_REQUEST = Kind(422, "invalid_request", "The request is not valid")
MALFORMED_JSON = Kind(422, "malformed_json", "The body is not well-formed", "The body could not be read.")


def _busy(code: str, title: str) -> Kind:
    return Kind(503, code, title, "Try again after the stated time.", retryable=True)


REASONS: Mapping[str, Kind] = {
    "UNSPECIFIED": AGENT_FAILED,
    "INVALID_REQUEST": INVALID_REQUEST,
    "BUDGET_EXCEEDED": Kind(422, "budget_exceeded", "The conversation is too long for this agent"),
    "UNKNOWN_AGENT": Kind(404, "unknown_agent", "No such agent"),
    "UNKNOWN_DOCUMENT": Kind(404, "unknown_document", "No such document"),
    "UNKNOWN_COLLECTION": Kind(404, "unknown_collection", "No such collection"),
    "UNKNOWN_TURN": Kind(404, "unknown_turn", "No such turn"),
    "COLLECTION_NOT_READY": Kind(409, "collection_not_ready", "The collection holds no documents yet"),
    "TURN_RUNNING": Kind(409, "turn_running", "A turn is running", retryable=True),
    "INGEST_CONFLICT": Kind(409, "ingest_conflict", "The document is being written", retryable=True),
    "REQUEST_ID_REUSED": Kind(422, "request_id_reused", "The request id stands for another request"),
    "SEQUENCE_EXPIRED": Kind(410, "sequence_expired", "That part of the turn is no longer kept"),
    "RETRIEVAL_UNAVAILABLE": _busy("retrieval_unavailable", "The document store is unreachable"),
    "MODEL_UNAVAILABLE": _busy("model_unavailable", "The model is unreachable"),
    "MODEL_RATE_LIMITED": _busy("model_rate_limited", "The model's provider limits our requests"),
    "MODEL_FAILED": Kind(502, "model_failed", "The model failed", _BROKEN, retryable=True),
    "OVERLOADED": _busy("overloaded", "Too many answers are being made"),
    "DRAINING": _busy("draining", "The agent service is restarting"),
    "DEADLINE_EXCEEDED": DEADLINE_EXCEEDED,
    "TURN_LOST": _busy("turn_lost", "The agent that made this answer is gone"),
    "TURN_LOG_UNAVAILABLE": _busy("turn_log_unavailable", "Running answers cannot be reached"),
    "FOLLOWER_TOO_SLOW": _busy("follower_too_slow", "This edge was too slow to follow the answer"),
    "STORE_NOT_SHARED": Kind(409, "store_not_shared", "Every agent has a document store of its own"),
    # Never the codes of a user's own login: a page would log its user out for a fault between our services.
    "UNAUTHENTICATED": AGENT_REFUSED,
    "PERMISSION_DENIED": AGENT_REFUSED,
    "INTERNAL": Kind(502, "internal", "The agent service failed", _BROKEN),
}
"""By `ErrorInfo.reason`: answerdesk.v1.ErrorReason without its prefix. A test holds it total."""

CODES: Mapping[str, Kind] = {
    # More calls than gRPC can take are refused as CANCELLED.
    "CANCELLED": AGENT_UNAVAILABLE,
    "UNAVAILABLE": AGENT_UNAVAILABLE,
    "DEADLINE_EXCEEDED": DEADLINE_EXCEEDED,
    "UNAUTHENTICATED": AGENT_REFUSED,
    "PERMISSION_DENIED": AGENT_REFUSED,
}
"""By gRPC status, where no reason of ours came with it; all others are AGENT_FAILED."""

OWN: Mapping[type[EdgeError], Kind] = {
    errors.SessionNotFoundError: Kind(404, "session_not_found", "No such session"),
    errors.SessionExpiredError: Kind(404, "session_expired", "The session has expired"),
    errors.TurnNotFoundError: REASONS["UNKNOWN_TURN"],
    errors.TurnForgottenError: REASONS["SEQUENCE_EXPIRED"],
    errors.UnknownSequenceError: Kind(422, "unknown_sequence", "The turn has no such event"),
    errors.KeyReusedError: Kind(422, "idempotency_key_reused", "The key stands for another request"),
    errors.MessageNotFoundError: Kind(404, "message_not_found", "No such message"),
    errors.NotYourSessionError: Kind(403, "not_your_session", "Somebody else's session"),
    errors.TurnRunningError: REASONS["TURN_RUNNING"],
    errors.UnauthenticatedError: Kind(401, "unauthenticated", "An access token is needed"),
    errors.TokenExpiredError: Kind(401, "token_expired", "The access token has expired"),
    errors.InvalidCredentialsError: Kind(401, "invalid_credentials", "Wrong name or password"),
    errors.InvalidRefreshTokenError: Kind(401, "invalid_refresh_token", "The refresh token is not valid"),
    errors.MissingScopeError: Kind(403, "missing_scope", "The token does not allow this"),
    errors.ForeignOriginError: Kind(403, "foreign_origin", "The origin is not allowed"),
    errors.RegistrationClosedError: Kind(403, "registration_closed", "No new accounts"),
    errors.UsernameTakenError: Kind(409, "username_taken", "The name is taken"),
    errors.UnknownAccountError: Kind(404, "account_not_found", "No such account"),
    errors.InvalidAccountError: Kind(422, "invalid_account", "The account is not valid"),
    errors.RateLimitedError: Kind(429, "rate_limited", "Too many requests", retryable=True),
    errors.TooManyTurnsError: Kind(429, "too_many_turns", "Too many answers at once", retryable=True),
    errors.OverloadedError: _busy("overloaded", "This edge has too much to do"),
    errors.StorageUnavailableError: _busy("storage_unavailable", "The database is unreachable"),
    errors.IssuerUnavailableError: _busy("issuer_unavailable", "The keys of the token's issuer are unreachable"),
    errors.UnvouchedCallerError: AGENT_REFUSED,
    errors.DocumentRejectedError: Kind(422, "document_rejected", "The document is not valid"),
    errors.InvalidCursorError: INVALID_REQUEST,
    errors.ConflictingIdsError: INVALID_REQUEST,
    errors.UnsupportedMediaTypeError: Kind(
        415, "unsupported_media_type", "The body has another type than is read here"
    ),
    errors.ClientLeftError: Kind(499, "client_left", "The client closed the connection"),
    errors.SessionForgottenError: Kind(409, "session_forgotten", "The session was emptied or deleted"),
    errors.ShuttingDownError: _busy("shutting_down", "This edge is stopping"),
}
"""The edge's own errors. A test holds it total."""

HTTP: Mapping[int, Kind] = {
    # FastAPI's word for a body that is no text, or nested too deeply.
    400: MALFORMED_JSON,
    404: Kind(404, "not_found", "Not found", "There is nothing at this path."),
    405: Kind(405, "method_not_allowed", "Method not allowed", "The Allow header lists what this path takes."),
    413: Kind(413, "body_too_large", "The body is too large", "The body exceeds this edge's limit."),
}
"""What the framework raises by itself."""

_DOCUMENTED: Mapping[int, str] = {
    401: "No token, or no valid one",
    403: "Somebody else's session, a scope that the token lacks, or an origin that is not allowed",
    404: "No such thing, or an expired session",
    409: "A turn is running, nothing was ingested yet, or the name is taken",
    410: "The events of that turn are no longer kept; the answer is stored",
    413: "The body is too large",
    415: "The body has another type than is read here",
    422: "The request is not valid",
    429: "Too many requests, or too many answers at once; see `Retry-After`",
    502: "The model or the agent service failed",
    503: "The agent service or the model is unreachable or overloaded; see `Retry-After`",
    504: "The answer took too long",
}


class FieldError(BaseModel):
    """A field of the request and what is wrong with it."""

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457, with what our clients decide by: `code` is stable, `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    retry_after: int = Field(default=0, description="Where known: seconds, as in `Retry-After`.")
    errors: list[FieldError] = Field(default=[], description="Of a 422: what is wrong where.")
    turn_id: str | None = Field(default=None, description="Of `turn_running`: the running turn.")
    answer: str | None = Field(default=None, description="Of `sequence_expired`: where the answer is stored.")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route; `app` adds the schema that they name."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": _DOCUMENTED[status], "content": content} for status in statuses}


@dataclass(frozen=True, slots=True)
class Problem:
    """One occurrence of a kind."""

    kind: Kind
    detail: str
    retry_after_s: int | None = None
    errors: Sequence[Mapping[str, str]] = ()
    extra: Mapping[str, Any] | None = None

    def document(self, instance: str) -> dict[str, Any]:
        """The problem document, for a body or the data of an `error` event."""
        document: dict[str, Any] = {
            "type": f"urn:answerdesk:problem:{self.kind.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.kind.code,
            "request_id": request_id_var.get(),
            "retryable": self.kind.retryable,
        }
        if self.errors:
            document["errors"] = self.errors
        if self.retry_after_s is not None:
            document["retry_after"] = self.retry_after_s
        return document | dict(self.extra or {})


def problem_of(error: Exception) -> Problem:
    """The problem that an error is to the caller; an unknown one says nothing of itself."""
    match error:
        case UpstreamError():
            return _upstream(error)
        case EdgeError():
            return _own(error)
        case RequestValidationError():
            return _invalid(error)
        case HTTPException() if error.status_code in HTTP:
            kind = HTTP[error.status_code]
            return Problem(kind, kind.detail or "")
        case _:
            return Problem(INTERNAL, INTERNAL.detail or "")


def _own(error: EdgeError) -> Problem:
    kind = OWN[type(error)]
    asked_s = error.retry_after_s if isinstance(error, LimitedError) else None
    return Problem(kind, kind.detail or str(error), _retry_after_s(kind, asked_s), extra=_extra(error))


def _extra(error: EdgeError) -> Mapping[str, Any] | None:
    match error:
        case TurnRunningError():
            return {"turn_id": error.turn_id}
        case TurnForgottenError():
            if error.message_id is None:
                return {"answer": f"/api/session/{quote(error.session_id, safe='')}/messages"}
            return {"answer": f"/api/messages/{quote(error.message_id, safe='')}"}
        case _:
            return None


def _upstream(error: UpstreamError) -> Problem:
    kind = REASONS.get(error.reason) or CODES.get(error.code, AGENT_FAILED)
    errors = [_field_error(field, text) for field, text in error.field_violations[:MAX_FIELD_ERRORS]]
    detail = kind.detail if kind.detail is not None else error.message
    return Problem(kind, detail, _retry_after_s(kind, error.retry_after_s), errors if kind.detail is None else ())


def _retry_after_s(kind: Kind, asked_s: float | None) -> int | None:
    """Whole seconds, rounded up, so that nobody comes back too early."""
    if kind.status not in {429, 503}:
        return None
    return RETRY_AFTER_S if asked_s is None else min(MAX_RETRY_AFTER_S, max(1, math.ceil(asked_s)))


def _invalid(error: RequestValidationError) -> Problem:
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        position = found[0]["loc"][-1]
        return Problem(MALFORMED_JSON, f"The body could not be read as JSON: mistake at character {position}.")
    errors = [_field_error(_field(each["loc"]), _text(each)) for each in found[:MAX_FIELD_ERRORS]]
    return Problem(INVALID_REQUEST, "; ".join(f"{each['field']}: {each['detail']}" for each in errors), errors=errors)


def _field(loc: Sequence[object]) -> str:
    """Where the mistake is, without "body", "query" or "path" in front."""
    return ".".join(str(part) for part in loc[1:]) or str(loc[0])


def _text(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a field of this request"
    return str(error["msg"]).removeprefix("Value error, ")


def _field_error(field: str, detail: str) -> Mapping[str, str]:
    # A client's own field name comes back to it; it may be long, and hold half a surrogate pair.
    shown = field[:MAX_FIELD_CHARACTERS].encode("utf-8", "replace").decode()
    return {"field": shown, "detail": detail}


def problem_response(problem: Problem, *, instance: str, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a whole response."""
    sent = dict(headers or {})
    if problem.kind.status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if problem.extra and "answer" in problem.extra:
        sent["Link"] = f'<{problem.extra["answer"]}>; rel="alternate"'
    if problem.retry_after_s is not None:
        sent["Retry-After"] = str(problem.retry_after_s)
    return Response(orjson.dumps(problem.document(instance)), problem.kind.status, sent, MEDIA_TYPE)


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's exception handler for every error that is foreseen."""
    headers = error.headers if isinstance(error, HTTPException) else None
    if isinstance(error, HTTPException) and error.status_code == 405:
        headers = {"Allow": ", ".join(_methods_of(request))}
    return problem_response(problem_of(error), instance=request.url.path, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """What the path takes. Starlette's own list is that of the first route with this path."""
    scope = dict(request.scope)
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches(scope | {"method": method})[0] is Match.FULL for route in request.app.routes)
    ]
