"""The agent client for routers."""

from typing import Annotated

from fastapi import Depends, Request

from edge_api.agent_client.client import AgentClient


async def get_agent(request: Request) -> AgentClient:
    """The client that the lifespan opened."""
    agent: AgentClient = request.app.state.agent
    return agent


Agent = Annotated[AgentClient, Depends(get_agent)]
