"""What holds for every request, as plain ASGI: request id and log line, CORS, the body's bound, the last resort.

No BaseHTTPMiddleware: it costs 12 microseconds for every event of a stream.
"""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_api.errors import ShuttingDownError
from edge_api.problem import Kind, Problem, problem_of, problem_response
from edge_api.telemetry import request_id_var

log = logging.getLogger("edge_api.requests")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# What nginx logs for a client that left before its answer began.
CLIENT_LEFT = 499


class RequestLog:
    """Gives every request an id, and writes one log line when its response has ended, stream or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = str(uuid.uuid4())
        status = CLIENT_LEFT
        started_s = time.perf_counter()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        token = request_id_var.set(request_id)
        try:
            await self._app(scope, receive, named)
        finally:
            extra = {
                "method": scope["method"],
                "route": _route_of(scope),
                "status": status,
                "duration_ms": round((time.perf_counter() - started_s) * 1000, 3),
            }
            log.log(logging.WARNING if status >= 500 else logging.INFO, "request", extra=extra)
            request_id_var.reset(token)


def _route_of(scope: Scope) -> str | None:
    """The template that matched; None where none did: the path of such a request may hold anything."""
    if route := scope.get("route"):
        path: str = route.path
        return path
    # FastAPI's own pages are plain routes: a fixed path, and no template in the scope.
    return scope["path"] if "endpoint" in scope and not scope["path_params"] else None


class Cors(CORSMiddleware):
    """Starlette's, but an origin that is not on the list gets no CORS header at all, and problems are problem+json."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """See `CORSMiddleware`."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            # Browsers look for this on the answer itself; who reads the contract off a preflight finds it here, too.
            answer.headers["access-control-expose-headers"] = self.simple_headers["Access-Control-Expose-Headers"]
            return answer
        allowed = self.is_allowed_origin(request_headers["origin"])
        headers = {
            name: value
            for name, value in answer.headers.items()
            if name == "vary" or (allowed and name.startswith("access-control-"))
        }
        kind = Kind(400, "cors_refused", "The origin, method or header is not allowed")
        return problem_response(Problem(kind, bytes(answer.body).decode()), instance="", headers=headers)

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """See `CORSMiddleware`."""
        origin = request_headers.get("origin")
        if message["type"] != "http.response.start" or (origin and self.is_allowed_origin(origin)):
            await super().send(message, send, request_headers)
            return
        MutableHeaders(scope=message).add_vary_header("Origin")
        await send(message)


class BodyLimit:
    """Refuses a body that says it is too large at once, and one that turns out so while it is read."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = HTTPException(413)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            response = problem_response(problem_of(too_large), instance=scope["path"])
            await response(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                # Reaches the exception handlers through whoever reads the body.
                raise too_large
            return message

        await self._app(scope, counted, send)


class LastResort:
    """Answers 500 for what nobody foresaw, inside CORS and the request id, so that a browser may read it.

    A request that the server cancels because the process ends gets 503: that is worth trying again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            # Only the server cancels requests, and this is the end of its task: nobody else waits for it.
            if begun or scope["type"] != "http":
                raise
            stopping = ShuttingDownError("this edge is stopping; send the request again")
            await problem_response(problem_of(stopping), instance=scope["path"])(scope, receive, send)
        except Exception as err:
            if begun or scope["type"] != "http":
                raise
            logging.getLogger(__name__).exception("unhandled error")
            response = problem_response(problem_of(err), instance=scope["path"])
            await response(scope, receive, send)
