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
from edge_api.agent_client.client import connect
from edge_api.auth import router as accounts
from edge_api.chat import router as chat
from edge_api.chat.hub import TurnHub
from edge_api.chat.stream import DEFAULT_PACE, Pace
from edge_api.conversations import router as sessions
from edge_api.db import Clock, utc_now
from edge_api.docs_page import add_docs
from edge_api.documents import router as documents
from edge_api.errors import EdgeError, StartupError
from edge_api.middleware import BodyLimit, Cors, LastResort, RequestLog
from edge_api.problem import ProblemDocument, handle
from edge_api.settings import Settings
from edge_api.wiring import Secrets, following_turns, read_secrets, running_parts

ROUTERS = (
    chat.router,
    sessions.router,
    documents.router,
    documents.writing,
    accounts.router,
    accounts.signing_in,
    accounts.guests,
    accounts.guarded,
    health.router,
)

DESCRIPTION = "Answers people's questions from an organisation's own documents, with citations that can be checked."


def create_app(settings: Settings, *, pace: Pace = DEFAULT_PACE, clock: Clock = utc_now) -> FastAPI:
    """The edge as an ASGI application.

    Args:
        settings: what the process was told.
        pace: heartbeats and patience of streams.
        clock: the time of day; decides which sessions and tokens have expired.

    Raises:
        StartupError: a secret is missing or weak, or a certificate cannot be used.
    """
    app = Edge(
        title="Answerdesk",
        summary=DESCRIPTION,
        version=__version__,
        lifespan=_lifespan(settings, read_secrets(settings), clock),
        middleware=_middleware(settings),
        exception_handlers=dict.fromkeys((EdgeError, RequestValidationError, HTTPException), handle),
        generate_unique_id_function=_operation_id,
        # A redirect would be built from the Host header, and drop the body of a POST in some clients.
        redirect_slashes=False,
        redoc_url=None,
        docs_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # FastAPI's own log records hold the texts of exceptions, and those may quote a question.
        telemetry={"logs": False},
    )
    app.state.pace = pace
    app.state.started_s = time.monotonic()
    app.add_api_route("/", _information(app), summary="About this API", tags=["operations"], name="api_information")
    app.state.origins = settings.cors_origins
    for router in ROUTERS:
        app.include_router(router)
    add_docs(app)
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
    """Send away who still follows an answer: this process is about to stop, and the answer goes on without it."""
    hub: TurnHub = app.state.hub
    hub.cut_off()


def _lifespan(settings: Settings, secrets: Secrets, clock: Clock) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with (
                running_parts(settings, secrets, clock) as parts,
                connect(
                    settings.agent_target,
                    signer=secrets.agent,
                    grace_s=settings.disconnect_grace_s,
                    tls=secrets.agent_tls,
                ) as agent,
                following_turns(parts, agent, clock) as hub,
            ):
                app.state.agent = agent
                app.state.hub = hub
                for name in ("database", "guard", "accounts", "conversations", "library", "recorder", "limits"):
                    setattr(app.state, name, getattr(parts, name))
                yield
        except StartupError as err:
            # The server only notes that there was one; who started it tells a person.
            app.state.startup_error = err
            raise

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
