"""The application: the only place where routers, middleware and settings meet."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from edge_api import __version__, health
from edge_api.agent_client.client import AgentClient, connect
from edge_api.chat import router as chat
from edge_api.chat.stream import DEFAULT_PACE, Pace
from edge_api.conversations.repository import InMemoryConversations
from edge_api.conversations.service import ConversationService
from edge_api.documents import router as documents
from edge_api.errors import EdgeError, ShuttingDownError
from edge_api.middleware import BodyLimit, Cors, LastResort, RequestLog
from edge_api.problem import ProblemDocument, handle
from edge_api.settings import Settings

DESCRIPTION = "Answers people's questions from an organisation's own documents, with citations that can be checked."


def create_app(
    settings: Settings, *, pace: Pace = DEFAULT_PACE, clock: Callable[[], float] = time.monotonic
) -> FastAPI:
    """The edge as an ASGI application.

    Args:
        settings: what the process was told.
        pace: heartbeats and patience of streams.
        clock: seconds that only grow; decides which sessions have expired.
    """
    app = Edge(
        title="Answerdesk",
        summary=DESCRIPTION,
        version=__version__,
        lifespan=_lifespan(settings, clock),
        middleware=_middleware(settings),
        exception_handlers=dict.fromkeys((EdgeError, RequestValidationError, HTTPException), handle),
        generate_unique_id_function=_operation_id,
        # A redirect would be built from the Host header, and drop the body of a POST in some clients.
        redirect_slashes=False,
        redoc_url=None,
        # FastAPI's own log records hold the texts of exceptions, and those may quote a question.
        telemetry={"logs": False},
    )
    app.state.pace = pace
    app.state.started_s = time.monotonic()
    app.add_api_route("/", _information(app), summary="About this API", tags=["operations"], name="api_information")
    for router in (chat.router, documents.router, health.router):
        app.include_router(router)
    return app


class Edge(FastAPI):
    """FastAPI, with problem documents in the description of the API in place of its own errors."""

    def openapi(self) -> dict[str, Any]:
        """See `FastAPI.openapi`."""
        if not self.openapi_schema:
            schema = super().openapi()
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= problem.pop("$defs") | {"ProblemDocument": problem}
        return super().openapi()


def begin_shutdown(app: FastAPI) -> None:
    """End what is still being answered with a retryable error: this process is about to stop."""
    agent: AgentClient = app.state.agent
    agent.abort_all(ShuttingDownError("this edge is stopping; send the message again"))


def _lifespan(settings: Settings, clock: Callable[[], float]) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with connect(settings.agent_target, turn_timeout_s=settings.turn_timeout_s) as agent:
            app.state.agent = agent
            app.state.conversations = ConversationService(
                InMemoryConversations(ttl_s=settings.session_ttl_s, clock=clock)
            )
            yield

    return lifespan


def _middleware(settings: Settings) -> list[Middleware]:
    """Outermost first: every answer gets a request id and a log line, and every error answer CORS headers."""
    return [
        Middleware(RequestLog),
        Middleware(
            Cors,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"),
            expose_headers=("X-Request-ID", "Retry-After"),
            allow_credentials=True,
        ),
        Middleware(LastResort),
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
    ]


def _operation_id(route: APIRoute) -> str:
    return route.name


def _information(app: FastAPI) -> Callable[[], Any]:
    async def api_information() -> dict[str, Any]:
        """What this is, and where to go on."""
        endpoints = [
            {"method": method.upper(), "path": path, "summary": operation.get("summary", "")}
            for path, operations in app.openapi()["paths"].items()
            for method, operation in operations.items()
        ]
        links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health", "agents": "/api/agents"}
        about = {"name": app.title, "description": app.summary, "version": app.version}
        return {**about, "links": links, "endpoints": endpoints}

    return api_information
