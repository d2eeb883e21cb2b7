"""What holds for every request: problems, bounds, CORS, request ids, log lines, the description of the API."""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.integration.edge.conftest import Edge, StartEdge
from tests.integration.edge.streams import streaming
from tests.support.scripted_agent import ScriptedAgent, answer, events, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "http://localhost:3000"
FOREIGN = "https://evil.example"
JSON = {"Content-Type": "application/json"}
HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")
LogLines = Callable[[], list[dict[str, Any]]]


def cors_headers(response: httpx.Response) -> list[str]:
    return [name for name in response.headers if name.startswith("access-control-")]


def check_problem(response: httpx.Response, status: int, code: str) -> None:
    problem = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert {"type", "title", "detail", "instance", "retryable"} <= problem.keys()


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("path", ["/nope", "/api", "/api/chat/", "/api/chat/a/b", "/favicon.ico", "/API/agents"])
async def test_an_unknown_path_is_404(http: httpx.AsyncClient, path: str) -> None:
    check_problem(await http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/chat", "POST"),
        ("PUT", "/api/chat", "POST"),
        ("DELETE", "/api/chat/x", "POST"),
        ("POST", "/api/agents", "GET"),
        ("POST", "/readyz", "GET"),
        ("POST", "/", "GET"),
        ("OPTIONS", "/api/search", "GET"),
    ],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(
    http: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await http.request(method, path)

    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("body", [b"{", b'{"message": }', b"not json", b'\xff\xfe{"message"', b"[" * 100_000])
async def test_a_body_that_is_not_json_is_422(http: httpx.AsyncClient, body: bytes) -> None:
    check_problem(await http.post("/api/chat", content=body, headers=JSON), 422, "malformed_json")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense", ""]
)
async def test_a_body_of_another_type_is_415(http: httpx.AsyncClient, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}

    check_problem(await http.post("/chat", content=b'{"message": "x"}', headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json"])
async def test_json_by_its_other_names_is_taken(http: httpx.AsyncClient, kind: str) -> None:
    response = await http.post("/api/chat", content=b'{"message": "x"}', headers={"Content-Type": kind})

    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/chat", "/api/chat", "/api/chat/x", "/nope", "/api/agents"])
async def test_a_body_that_says_it_is_too_large_is_413_unread(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, content=b" " * 1_048_577, headers={**JSON, "Origin": ORIGIN})

    check_problem(response, 413, "body_too_large")
    assert response.headers["access-control-allow-origin"] == ORIGIN


async def test_a_body_that_turns_out_too_large_is_413(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    response = await http.post("/chat", content=chunks(65_536, 17), headers={**JSON, "Origin": ORIGIN})

    check_problem(response, 413, "body_too_large")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert agent.calls == []


async def test_a_body_of_the_limit_is_taken_in_chunks_or_whole(start_edge: StartEdge) -> None:
    body = b'{"message": "x"}' + b" " * 2_032
    async with start_edge(max_body_bytes=2_048) as edge:
        whole = await edge.http.post("/api/chat", content=body, headers=JSON)

        async def pieces() -> AsyncIterator[bytes]:
            yield body[:1_000]
            yield body[1_000:]

        chunked = await edge.http.post("/api/chat", content=pieces(), headers=JSON)
        over = await edge.http.post("/api/chat", content=body + b" ", headers=JSON)

    assert [each.status_code for each in (whole, chunked, over)] == [200, 200, 413]


@pytest.mark.parametrize("requested", [HEADERS, *((each,) for each in HEADERS)])
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_a_preflight_of_an_allowed_origin_passes(
    http: httpx.AsyncClient, requested: tuple[str, ...], method: str
) -> None:
    response = await http.options(
        "/api/chat",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ",".join(requested).lower(),
        },
    )

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"
    assert method in response.headers["access-control-allow-methods"]
    allowed = {each.strip().lower() for each in response.headers["access-control-allow-headers"].split(",")}
    assert {each.lower() for each in requested} <= allowed
    assert response.headers["access-control-expose-headers"] == "X-Request-ID, Retry-After"
    assert "origin" in response.headers["vary"].lower()
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://localhost:3001", "https://localhost:3000", f"{ORIGIN}/"])
async def test_a_preflight_of_another_origin_gets_no_cors_header(http: httpx.AsyncClient, origin: str) -> None:
    response = await http.options("/api/chat", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})

    check_problem(response, 400, "cors_refused")
    assert cors_headers(response) == []
    assert "origin" in response.headers["vary"].lower()


@pytest.mark.parametrize(
    ("name", "value"), [("Access-Control-Request-Headers", "X-Other"), ("Access-Control-Request-Method", "PUT")]
)
async def test_a_preflight_for_something_else_is_refused_readably(
    http: httpx.AsyncClient, name: str, value: str
) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", name: value}

    response = await http.options("/api/chat", headers=headers)

    check_problem(response, 400, "cors_refused")
    assert response.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/agents", None),
        ("POST", "/chat", {"message": "x"}),
        ("POST", "/api/chat", {"message": "x"}),
        ("POST", "/api/chat", {"message": ""}),
        ("POST", "/api/chat/nobody", {"message": "x"}),
        ("GET", "/nope", None),
        ("PUT", "/chat", None),
        ("GET", "/", None),
    ],
)
async def test_answers_and_errors_carry_cors_headers_for_allowed_origins_only(
    http: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    allowed = await http.request(method, path, json=body, headers={"Origin": ORIGIN})
    foreign = await http.request(method, path, json=body, headers={"Origin": FOREIGN})
    none = await http.request(method, path, json=body)

    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["access-control-allow-credentials"] == "true"
    exposed = {each.strip().lower() for each in allowed.headers["access-control-expose-headers"].split(",")}
    assert exposed == {"x-request-id", "retry-after"}
    assert cors_headers(foreign) == cors_headers(none) == []
    assert {each.headers["vary"] for each in (allowed, foreign, none)} == {"Origin"}


async def test_what_nobody_foresaw_is_500_readable_by_a_page_and_told_to_the_log_alone(
    edge: Edge, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise LookupError("planted secret")

    monkeypatch.setattr(edge.app.state.conversations, "open", broken)

    response = await edge.http.post("/api/chat", json={"message": "x"}, headers={"Origin": ORIGIN})

    check_problem(response, 500, "internal")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "planted" not in response.text
    (line,) = [line for line in log_lines() if line["message"] == "unhandled error"]
    assert "builtins.LookupError" in line["exception"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert not [line for line in log_lines() if "planted secret" in str(line)]


@pytest.mark.parametrize("given", ["a", "A.b_c-1", "x" * 128])
async def test_a_request_id_is_kept_and_reaches_the_agent(
    http: httpx.AsyncClient, agent: ScriptedAgent, given: str
) -> None:
    headers = {"X-Request-ID": given}
    responses = [
        await http.post("/chat", json={"message": "x"}, headers=headers),
        await http.post("/api/chat", json={"message": "x"}, headers=headers),
        await http.get("/api/agents", headers=headers),
        await http.get("/api/search?q=x", headers=headers),
        await http.get("/nope", headers=headers),
    ]

    assert {response.headers["x-request-id"] for response in responses} == {given}
    assert {call.metadata["x-request-id"] for call in agent.calls} == {given}
    assert {metadata["x-request-id"] for metadata in agent.unary_metadata} == {given}


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a/b", "a\tb", "ä".encode().decode("latin-1"), None])
async def test_a_request_id_of_another_form_is_replaced(
    http: httpx.AsyncClient, agent: ScriptedAgent, given: str | None
) -> None:
    headers = {} if given is None else {b"X-Request-ID": given.encode("latin-1")}

    response = await http.post("/api/chat", json={"message": "x"}, headers=headers)

    made = response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", made)
    assert agent.calls[0].metadata["x-request-id"] == made


async def requests_logged(http: httpx.AsyncClient, log_lines: LogLines, count: int) -> list[dict[str, Any]]:
    """The request lines, once there are `count`: a line is written just after its response has left."""
    while len(lines := [line for line in log_lines() if line["logger"] == "edge_api.requests"]) < count:
        await http.get("/livez")
    return lines


async def test_a_request_is_one_line_with_its_route_and_never_its_content(
    http: httpx.AsyncClient, log_text: io.StringIO, log_lines: LogLines
) -> None:
    headers = {"X-Request-ID": "r-1"}
    await http.post("/api/chat?key=planted-query", json={"message": "planted-question"}, headers=headers)
    await http.get("/planted-path")
    await http.get("/api/documents/planted-document")
    await http.put("/chat")
    await http.get("/docs")
    await http.get("/api/sessions", headers={"Authorization": "Bearer planted-token"})

    chat, unknown, document, put, docs, refused = (await requests_logged(http, log_lines, 6))[:6]
    assert {"time", "level", "message", "method", "route", "status", "duration_ms", "request_id"} <= chat.keys()
    assert (chat["method"], chat["route"], chat["status"]) == ("POST", "/api/chat", 200)
    assert (chat["message"], chat["level"], chat["request_id"]) == ("request", "info", "r-1")
    assert chat["duration_ms"] > 0
    assert (unknown["route"], unknown["status"]) == (None, 404)
    assert (document["route"], document["status"]) == ("/api/documents/{document_id}", 404)
    assert (put["route"], put["status"]) == ("/chat", 405)
    assert (docs["route"], docs["status"]) == ("/docs", 200)
    assert (refused["route"], refused["status"]) == ("/api/sessions", 401)
    edge_lines = [
        line for line in log_lines() if not line["logger"].startswith(("httpx", "httpcore", "uvicorn.access"))
    ]
    assert "planted" not in str(edge_lines)
    assert "Enterprise" not in str(edge_lines)


async def test_the_duration_of_a_stream_counts_to_its_end(
    http: httpx.AsyncClient, agent: ScriptedAgent, log_lines: LogLines
) -> None:
    go_on = asyncio.Event()

    async def wait(_context: object) -> None:
        await go_on.wait()

    agent.turns.append([started(), wait, *events(answer("x")[-1])])
    async with streaming(http) as stream:
        await stream.until("event: start")
        assert not [line for line in log_lines() if line.get("route") == "/chat"]
        go_on.set()
        await stream.rest()

    lines = await requests_logged(http, log_lines, 1)
    assert [line["route"] for line in lines if line["route"] == "/chat"] == ["/chat"]


async def test_the_root_says_what_this_is_and_where_to_go_on(http: httpx.AsyncClient) -> None:
    about = (await http.get("/")).json()

    assert about["name"] == "Answerdesk"
    assert about["version"]
    for link in about["links"].values():
        assert (await http.get(link)).status_code == 200
    assert {"method": "POST", "path": "/chat", "summary": "Ask, always as a stream"} in about["endpoints"]


async def test_no_response_names_the_server(http: httpx.AsyncClient) -> None:
    assert "server" not in (await http.get("/livez")).headers
