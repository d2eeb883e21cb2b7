"""Whether this process lives, and whether it can answer."""

import asyncio
import time
from dataclasses import dataclass
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
    """What every answer needs: "ok", "not_serving", "unreachable", "timeout", "schema_outdated" or "schema_newer"."""

    status: str = Field(examples=["ok"])
    checks: dict[str, str] = Field(examples=[{"edge": "ok", "database": "ok", "agent": "ok", "knowledge": "ok"}])


class Health(Ready):
    """The same with what answers may do without for a while, and what operators ask next."""

    status: str = Field(description='"ok", or "degraded" while one of `checks` is not.', examples=["ok", "degraded"])
    checks: dict[str, str] = Field(
        description=(
            'Those of `/readyz`, and: `model`: "not_serving" while a model\'s provider fails; `tools`: while a server '
            'of tools does; `limits`: "unreachable" while each edge counts for itself. An older agent tells neither '
            "`model` nor `tools`."
        ),
        examples=[
            {
                "edge": "ok",
                "database": "ok",
                "agent": "ok",
                "knowledge": "ok",
                "model": "not_serving",
                "tools": "ok",
                "limits": "ok",
            }
        ],
    )
    version: str
    uptime_s: float


@router.get("/livez", summary="Is the process alive?", response_model=Live)
async def livez() -> Any:
    """Always 200 while the process runs; asks nobody else. For liveness probes."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it answer?", response_model=Ready, responses={503: {"model": Ready}})
async def readyz(request: Request, agent: Agent) -> Any:
    """200 when questions can be answered, else 503 that names the part which cannot. Takes at most 2 s.

    Models and tools do not count: what ails them ails every edge, and no other one would answer better.
    """
    checks = (await _looked(request, agent)).needed
    if _all_ok(checks):
        return {"status": "ok", "checks": checks}
    return JSONResponse({"status": "unavailable", "checks": checks}, status_code=503)


@router.get("/health", summary="How is it?", response_model=Health)
async def health(request: Request, agent: Agent) -> Any:
    """For people and dashboards: always 200; `status` is "ok" or "degraded"."""
    look, limits = await asyncio.gather(_looked(request, agent), request.app.state.limits.check())
    # Without Redis each edge counts for itself: worth knowing, and no reason to send people away. So is what is wanted.
    checks = {**look.needed, **look.wanted, "limits": limits}
    return {
        "status": "ok" if _all_ok(checks) else "degraded",
        "checks": checks,
        "version": __version__,
        "uptime_s": round(time.monotonic() - request.app.state.started_s, 3),
    }


@dataclass(frozen=True, slots=True)
class Look:
    """How each part was: those that every answer needs, and those that it is better with."""

    needed: dict[str, str]
    wanted: dict[str, str]


async def _looked(request: Request, agent: Agent) -> Look:
    """The state of each part, at most a moment old: anybody may ask, as often as they like, and it costs one look."""
    state, now_s = request.app.state, time.monotonic()
    asked_s, look = getattr(state, "look", (-KEPT_S, None))
    # One that still waits, for a part that hangs, is waited for by all: they are not added up.
    if look is None or (look.done() and now_s - asked_s >= KEPT_S):
        look = asyncio.create_task(_look(state.database, agent))
        state.look = (now_s, look)
    # Who leaves meanwhile does not end it for the others.
    found: Look = await asyncio.shield(look)
    return found


async def _look(database: Database, agent: AgentClient) -> Look:
    stored, services, parts = await asyncio.gather(schema.state(database), agent.health(), agent.parts())
    return Look(needed={"edge": "ok", "database": stored, **services}, wanted={**parts})


def _all_ok(checks: dict[str, str]) -> bool:
    return set(checks.values()) == {"ok"}
