"""One edge and one scripted agent for all tests of a module: what they show needs no fresh process."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.edge.conftest import Edge, running_edge
from tests.support.scripted_agent import ScriptedAgent, scripted_agent


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def standing() -> AsyncIterator[tuple[Edge, ScriptedAgent]]:
    async with scripted_agent() as agent, running_edge(agent.target) as edge:
        yield edge, agent


@pytest.fixture
def agent(standing: tuple[Edge, ScriptedAgent]) -> ScriptedAgent:
    agent = standing[1]
    agent.forget()
    return agent


@pytest.fixture
def edge(standing: tuple[Edge, ScriptedAgent], agent: ScriptedAgent) -> Edge:  # agent: forgets first
    return standing[0]
