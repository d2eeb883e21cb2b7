"""A turn is stopped, or its caller hangs up, in every phase: all that runs for it ends, and nothing is left over."""

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as conversation_pb

from agent_service.wiring import Parts
from tests.support.mcp_http import HttpMcpServer, http_mcp_server
from tests.support.openai_server import Reply, Request, ScriptedOpenAI
from tests.support.scripted_brain import call, hand_over, results_of
from tests.support.served import WAIT_S, Client, on_one_loop, serving
from tests.support.shelf import Shelf

pytestmark = on_one_loop

SEEN_WITHIN_S = 1.0
"""What is promised: the model sees that it is stopped within a second."""

ROSTER = """
entry = "orchestrator"
[[agents]]
name = "orchestrator"
description = "Routes."
instructions = "prompt.md"
hands_off_to = ["billing"]
[[agents]]
name = "billing"
description = "Prices."
instructions = "prompt.md"
collections = ["billing"]
strategy = "rag"
tools = ["wait"]
[[tools]]
name = "wait"
mcp_server = "test"
timeout_s = 60
[[mcp_servers]]
name = "test"
url = "{url}"
"""

PHASES = ("routing", "tool", "before the first text", "in the middle")


class Brain:
    """Goes as far as the question says, and stays there."""

    def __call__(self, request: Request) -> Reply:
        phase = next(phase for phase in PHASES if f"stay {phase}" in str(request.body))
        if (handed := hand_over(request, "billing")) is not None:
            return Reply.hang() if phase == "routing" else handed
        if phase == "tool" and not results_of(request):
            return call("wait")
        return Reply.hang(after_pieces=3 if phase == "in the middle" else 0)


@dataclass
class Stage:
    """Everything that a turn needs, running, and what can be counted of it."""

    client: Client
    parts: Parts
    model: ScriptedOpenAI
    tools: HttpMcpServer

    @property
    def running(self) -> int:
        """Model requests that nobody has ended."""
        return len(self.model.requests) - len(self.model.ended) - len(self.model.hung_up)

    async def begin(self, phase: str) -> tuple[str, Any]:
        """A turn that has come to its phase: its id, and the call that follows it."""
        before, tools = len(self.model.requests), self.tools.seen.started
        question = pb.ChatRequest(message=f"What does the Team plan cost? Please stay {phase}.")
        turn = self.client.agent.Chat(question, timeout=WAIT_S)
        events = aiter(turn)
        turn_id = (await anext(events)).turn_id
        await self.model.wait_for_request(before + (1 if phase == "routing" else 2), WAIT_S)
        if phase == "tool":
            async with asyncio.timeout(WAIT_S):
                await self.tools.seen.until(lambda seen: seen.started > tools)
        if phase == "in the middle":
            while (await anext(events)).WhichOneof("event") != "token":
                pass
        return turn_id, turn

    async def end(self, phase: str, how: "How", within_s: float) -> None:
        """Begin a turn, end it, and see that what runs in its phase has seen its end in time."""
        hung_up, cancelled = self.model.disconnects, self.tools.seen.cancelled
        turn_id, turn = await self.begin(phase)
        async with asyncio.timeout(within_s):
            await how(self.client, turn_id, turn)
            if phase == "tool":
                await self.tools.seen.until(lambda seen: seen.cancelled > cancelled)
            else:
                await self.model.wait_for_disconnect(within_s, hung_up + 1)


How = Callable[[Client, str, Any], Awaitable[None]]


async def stop(client: Client, turn_id: str, turn: Any) -> None:
    reply = await client.agent.StopTurn(pb.StopTurnRequest(turn_id=turn_id), timeout=WAIT_S)
    assert reply.status == conversation_pb.TURN_STATUS_STOPPED
    assert reply.usage.requests >= 1
    rest = [event async for event in turn]
    assert rest[-1].completed.status == conversation_pb.TURN_STATUS_STOPPED


async def hang_up(client: Client, turn_id: str, turn: Any) -> None:
    turn.cancel()
    # With CANCEL the turn ends with its only follower.
    watched = client.agent.WatchTurn(pb.WatchTurnRequest(turn_id=turn_id, observer=True), timeout=WAIT_S)
    seen = [event async for event in watched]
    assert seen[-1].completed.status == conversation_pb.TURN_STATUS_INTERRUPTED


@pytest_asyncio.fixture(loop_scope="session", params=["responses", "chat_completions"])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    async with http_mcp_server() as tools, ScriptedOpenAI(max_requests=10_000) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
        (tmp_path / "prompt.md").write_text("You answer.")
        roster = tmp_path / "roster.toml"
        roster.write_text(ROSTER.format(url=tools.url))
        model.answer_with(Brain())
        shelf = Shelf()
        await shelf.put("plans.md", "# Plans\n\nThe Team plan costs 20 EUR.\n")
        given = {"model_provider": "openai", "openai_api": request.param, "roster": roster}
        async with serving(shelf, **given) as served:
            connected = asyncio.Event()
            served.parts.toolbox.on_change(connected.set)
            await asyncio.wait_for(connected.wait(), WAIT_S)
            yield Stage(served.client, served.parts, model, tools)


@pytest.mark.alone
@pytest.mark.parametrize("how", [stop, hang_up])
@pytest.mark.parametrize("phase", PHASES)
async def test_whatever_runs_for_a_turn_ends_with_it(stage: Stage, phase: str, how: How) -> None:
    await stage.end(phase, how, SEEN_WITHIN_S)

    assert stage.running == 0
    assert stage.parts.turns.running == 0


async def test_two_hundred_turns_that_were_cut_off_leave_nothing_behind(stage: Stage) -> None:
    ends = itertools.cycle(itertools.product(PHASES, (stop, hang_up)))

    async def rounds(count: int) -> None:
        for phase, how in itertools.islice(ends, count):
            await stage.end(phase, how, WAIT_S)

    # What is made once: pools, caches, compiled patterns.
    await rounds(16)
    before = await _counted(stage)
    await rounds(200)
    after = await _counted(stage)

    assert after.running == 0
    assert after.tasks <= before.tasks
    assert after.sockets <= before.sockets + 1
    # 200 turns that were kept would be hundreds of objects each.
    assert after.objects < before.objects + 200 * 20, (before, after)


@dataclass(frozen=True)
class Counted:
    """What there is of each kind that could leak."""

    running: int
    tasks: int
    sockets: int
    objects: int

    @classmethod
    def now(cls, stage: Stage) -> Self:
        gc.collect()
        sockets = len(list(Path("/proc/self/fd").iterdir()))
        return cls(stage.running, len(asyncio.all_tasks()), sockets, len(gc.get_objects()))


async def _counted(stage: Stage) -> Counted:
    """Count when all that only takes a moment has ended, without the turns that are kept for who comes late."""
    for turn in list(stage.parts.turns._turns._turns.values()):
        stage.parts.turns._turns.forget(turn)
    for kept in (stage.model.requests, stage.model.ended, stage.model.hung_up):
        kept.clear()
    for seen in (stage.tools.headers, stage.tools.bodies, stage.tools.seen.methods):
        seen.clear()
    before = Counted.now(stage)
    # Closing takes some rounds of the loop: what the count comes to rest at is what is left.
    for _ in range(100):
        await asyncio.sleep(0.02)
        after = Counted.now(stage)
        if (after.tasks, after.sockets) == (before.tasks, before.sockets):
            return after
        before = after
    raise AssertionError(before)
