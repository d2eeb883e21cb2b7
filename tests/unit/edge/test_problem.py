"""What an error is to a caller who did not cause it: nothing but its kind."""

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from edge_api.errors import SessionNotFoundError, ShuttingDownError, TurnRunningError, UpstreamError
from edge_api.problem import MAX_FIELD_ERRORS, problem_of, problem_response
from edge_api.telemetry import request_id_var

SECRET = "postgres://admin:hunter2@db"


def test_a_problem_document_has_the_members_of_the_rfc_and_ours() -> None:
    token = request_id_var.set("r-1")
    try:
        document = problem_of(SessionNotFoundError("there is no such session")).document("/api/chat/x")
    finally:
        request_id_var.reset(token)

    assert document == {
        "type": "urn:answerdesk:problem:session_not_found",
        "title": "No such session",
        "status": 404,
        "detail": "there is no such session",
        "instance": "/api/chat/x",
        "code": "session_not_found",
        "request_id": "r-1",
        "retryable": False,
    }


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("INTERNAL", "INTERNAL", 502),
        ("INTERNAL", "MODEL_FAILED", 502),
        ("INTERNAL", "", 502),
        ("UNKNOWN", "", 502),
        ("UNAVAILABLE", "", 503),
        ("UNAVAILABLE", "MODEL_UNAVAILABLE", 503),
        ("RESOURCE_EXHAUSTED", "", 502),
        ("UNAUTHENTICATED", "UNAUTHENTICATED", 502),
        ("PERMISSION_DENIED", "", 502),
        ("DEADLINE_EXCEEDED", "", 504),
        ("INVALID_ARGUMENT", "", 502),
        ("INVALID_ARGUMENT", "SOMETHING_NEW", 502),
    ],
)
def test_what_broke_behind_the_edge_is_not_told(code: str, reason: str, status: int) -> None:
    error = UpstreamError(code, reason, SECRET, field_violations=[("field", SECRET)])

    problem = problem_of(error)

    assert problem.kind.status == status
    assert SECRET not in str(problem.document("/"))
    assert SECRET not in str(error)


def test_a_fault_between_our_services_never_looks_like_the_users_login() -> None:
    for reason in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        problem = problem_of(UpstreamError(reason, reason))
        assert (problem.kind.status, problem.kind.code) == (502, "agent_refused")


def test_what_the_caller_can_mend_is_told_with_its_fields() -> None:
    error = UpstreamError(
        "INVALID_ARGUMENT", "INVALID_REQUEST", "the request is not valid", field_violations=[("agent", "is too long")]
    )

    document = problem_of(error).document("/")

    assert (document["status"], document["code"]) == (422, "invalid_request")
    assert document["detail"] == "the request is not valid"
    assert document["errors"] == [{"field": "agent", "detail": "is too long"}]


@pytest.mark.parametrize(
    ("asked_s", "sent"), [(None, "3"), (0.0, "1"), (0.2, "1"), (2.0, "2"), (2.001, "3"), (1e9, "3600")]
)
def test_retry_after_is_whole_seconds_never_too_early(asked_s: float | None, sent: str) -> None:
    problem = problem_of(UpstreamError("UNAVAILABLE", "OVERLOADED", retry_after_s=asked_s))

    response = problem_response(problem, instance="/")

    assert response.status_code == 503
    assert response.headers["retry-after"] == sent
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.document("/")["retryable"] is True
    assert problem.document("/")["retry_after"] == int(sent)


def test_only_503_says_when_to_come_back() -> None:
    assert problem_of(UpstreamError("INTERNAL", "MODEL_FAILED", retry_after_s=5)).retry_after_s is None
    assert problem_of(ShuttingDownError("x")).retry_after_s == 3


def test_a_running_turn_is_named() -> None:
    assert problem_of(TurnRunningError("t-1")).document("/")["turn_id"] == "t-1"
    assert problem_of(TurnRunningError(None)).document("/")["turn_id"] is None


@pytest.mark.parametrize("error", [ValueError(SECRET), HTTPException(418, SECRET), KeyError(SECRET)])
def test_an_unknown_error_says_nothing_of_itself(error: Exception) -> None:
    document = problem_of(error).document("/")

    assert (document["status"], document["code"], document["retryable"]) == (500, "internal", False)
    assert SECRET not in str(document)


def test_field_errors_are_bounded_and_always_encodable() -> None:
    errors = [{"type": "extra_forbidden", "loc": ("body", "\ud800" + "x" * 5_000), "msg": "no"}] * 50

    problem = problem_of(RequestValidationError(errors))
    body = problem_response(problem, instance="/").body

    assert len(problem.errors) == MAX_FIELD_ERRORS
    assert problem.errors[0]["field"] == "?" + "x" * 99
    assert problem.errors[0]["detail"] == "is not a field of this request"
    assert len(body) < 10_000


def test_a_body_that_is_missing_altogether_is_named_body() -> None:
    problem = problem_of(RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}]))

    assert problem.errors == [{"field": "body", "detail": "Field required"}]
