"""Whether this process lives, and whether it can answer."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from edge_api import __version__
from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.dependencies import Agent
from edge_api.db import Database
from edge_api.migrations import schema

router = APIRouter(tags=["operations"])

KEPT_S = 0.2
"""How old an answer may be: so old that a crowd costs five looks a second, so young that nobody is sent to the dead."""


class Live(BaseModel):
    """This process runs."""

    status: str = Field(examples=["ok"])


class Ready(BaseModel):
    """Each part: "ok", "not_serving", "unreachable", "timeout", "schema_outdated" or "schema_newer"."""

    status: str = Field(examples=["ok"])
    checks: dict[str, str] = Field(examples=[{"edge": "ok", "database": "ok", "agent": "ok", "knowledge": "ok"}])


class Health(Ready):
    """The same with what operators ask next."""

    version: str
    uptime_s: float


@router.get("/livez", summary="Is the process alive?", response_model=Live)
async def livez() -> Any:
    """Always 200 while the process runs; asks nobody else. For liveness probes."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it answer?", response_model=Ready, responses={503: {"model": Ready}})
async def readyz(request: Request, agent: Agent) -> Any:
    """200 when questions can be answered, else 503 that names the part which cannot. Takes at most 2 s."""
    checks = await _checks(request, agent)
    if _all_ok(checks):
        return {"status": "ok", "checks": checks}
    return JSONResponse({"status": "unavailable", "checks": checks}, status_code=503)


@router.get("/health", summary="How is it?", response_model=Health)
async def health(request: Request, agent: Agent) -> Any:
    """For people and dashboards: always 200; `status` is "ok" or "degraded"."""
    checks, limits = await asyncio.gather(_checks(request, agent), request.app.state.limits.check())
    # Without Redis each edge counts for itself: worth knowing, and no reason to send people away.
    checks["limits"] = limits
    return {
        "status": "ok" if _all_ok(checks) else "degraded",
        "checks": checks,
        "version": __version__,
        "uptime_s": round(time.monotonic() - request.app.state.started_s, 3),
    }


async def _checks(request: Request, agent: Agent) -> dict[str, str]:
    """The state of each part, at most a moment old: anybody may ask, as often as they like, and it costs one look."""
    state, now_s = request.app.state, time.monotonic()
    asked_s, look = getattr(state, "look", (-KEPT_S, None))
    # One that still waits, for a part that hangs, is waited for by all: they are not added up.
    if look is None or (look.done() and now_s - asked_s >= KEPT_S):
        look = asyncio.create_task(_look(state.database, agent))
        state.look = (now_s, look)
    # Who leaves meanwhile does not end it for the others.
    return dict(await asyncio.shield(look))


async def _look(database: Database, agent: AgentClient) -> dict[str, str]:
    found, parts = await asyncio.gather(schema.state(database), agent.health())
    return {"edge": "ok", "database": found, **parts}


def _all_ok(checks: dict[str, str]) -> bool:
    return set(checks.values()) == {"ok"}
