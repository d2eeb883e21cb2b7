"""Real MCP servers, programs and HTTP, of the protocol before and since 2026: found, lost and found again."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import FunctionTool

from agent_service.team import mcp_servers
from agent_service.team.mcp_transports import ErrorTail
from agent_service.team.spec import Roster, load_roster
from agent_service.team.tool_call import FAILED, TOO_SLOW, ToolRefusedError
from agent_service.team.toolbox import Toolbox
from agent_service.vitals import PartVitals
from tests.support.mcp_http import HttpMcpServer, http_mcp_server
from tests.support.mcp_rosters import FixedSearch, ListVitals, Table, mcp, offered, roster, stdio

WAIT_S = 20.0
"""Bound of what should happen by itself: only a hanging test meets it."""


class OpenBox:
    """A toolbox that is open, whose changes can be waited for."""

    def __init__(self, of: Roster) -> None:
        self.roster = of
        self.vitals = ListVitals()
        self.box = Toolbox(of, FixedSearch(), self.vitals)
        self.table = Table()
        self._changed = asyncio.Event()
        self.box.on_change(self._changed.set)

    @property
    def tools(self) -> dict[str, FunctionTool]:
        return offered(self.box, self.roster)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def call(self, name: str, table: Table | None = None, **arguments: Any) -> str:
        async with asyncio.timeout(WAIT_S):
            return await (table or self.table).call(self.tools[name], json.dumps(arguments))

    async def counts(self, started: int, cancelled: int) -> None:
        """Return when the server has seen so many calls of `wait` begin and be cancelled."""
        assert f"{started} {cancelled}" in await self.call("counts", Table(), started=started, cancelled=cancelled)


@asynccontextmanager
async def opened(of: Roster) -> AsyncIterator[OpenBox]:
    open_box = OpenBox(of)
    await open_box.box.open()
    try:
        yield open_box
    finally:
        async with asyncio.timeout(WAIT_S):
            await open_box.box.close()


@asynccontextmanager
async def connected(of: Roster) -> AsyncIterator[OpenBox]:
    async with opened(of) as box:
        await box.until(lambda: len(box.vitals.told) == len(of.mcp_servers))
        yield box


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a server to come back."""
    monkeypatch.setattr(mcp_servers, "PAUSES_S", (0.02,))


@pytest.fixture
async def http() -> AsyncIterator[HttpMcpServer]:
    async with http_mcp_server() as server:
        yield server


def at(server: HttpMcpServer, **changes: Any) -> dict[str, Any]:
    return {"name": "test", "url": server.url, **changes}


async def cancelled(task: asyncio.Task[str]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- a program ---


async def test_a_programs_tools_are_found_called_limited_and_explained(caplog: pytest.LogCaptureFixture) -> None:
    of = roster(
        *mcp("echo", "fail", "variables", "shout", "picture"),
        *mcp("huge", max_characters=100),
        *mcp("wait", timeout_s=0.05),
        servers=[stdio()],
    )
    caplog.set_level(logging.INFO, logger="agent_service")
    async with connected(of) as box:
        # The order is the roster's, and `wipe` and the others are not there.
        assert list(box.tools) == ["echo", "fail", "variables", "shout", "picture", "huge", "wait"]
        assert box.tools["echo"].description == "Does echo."
        assert box.tools["echo"].params_json_schema["required"] == ["text"]
        assert box.vitals.told == [("tools", "test", True)]

        assert "Blåbär &lt;/tool_result>" in await box.call("echo", text="Blåbär </tool_result>")
        assert "the first 100 of 1000000" in await box.call("huge", characters=1_000_000)
        assert await box.call("wait") == TOO_SLOW
        assert "(image left out)" in await box.call("picture")
        # The server holds arguments against its schema, and what it says is for the model.
        assert "missing: ['text']" in await box.call("echo", word="x")
        assert "it did not work" in await box.call("fail")
        assert box.tools["fail"].params_json_schema == {"type": "object", "properties": {}}
        assert "JSON object" in await box.table.call(box.tools["echo"], "[]")
        # More than a pipe holds: somebody reads it, and nobody logs it.
        assert "shouted" in await box.call("shout", characters=1_000_000)
        assert "!!" not in caplog.text
    assert [phase for *_, phase in box.table.phases if phase != "started"] == [
        "completed", "completed", "failed", "completed", "failed", "failed", "failed", "completed",
    ]  # fmt: skip
    assert box.table.desk.results[0] == "Blåbär </tool_result>"


async def test_a_program_gets_few_variables_and_those_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("ORDERS_KEY", "k")
    async with connected(roster(*mcp("variables"), servers=[stdio(env=["ORDERS_KEY"])])) as box:
        names = set((await box.call("variables")).split())

    assert "ORDERS_KEY" in names
    assert not names & {"OPENAI_API_KEY", "PYTHONPATH", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST"}


async def test_a_program_that_dies_takes_its_tools_along_and_brings_them_back() -> None:
    search = {"name": "find", "builtin": "search"}
    async with connected(roster(*mcp("echo", "wait", "counts", "die"), search, servers=[stdio()])) as box:
        waiting = asyncio.create_task(box.call("wait", Table()))
        await box.counts(1, 0)
        old = box.tools["echo"]

        texts = await asyncio.gather(waiting, box.call("die"))

        assert set(texts) == {mcp_servers.AWAY}
        await box.until(lambda: list(box.tools) == ["find"])
        assert box.vitals.last == ("tools", "test", False)
        assert await box.table.call(old, '{"text": "x"}') == mcp_servers.AWAY
        await box.until(lambda: "echo" in box.tools)
        assert box.vitals.last == ("tools", "test", True)
        # A tool that somebody still holds finds the new connection.
        assert "there again" in await box.table.call(old, '{"text": "there again"}')


async def test_a_program_that_cannot_start_is_told_of_once_with_its_last_words(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()
    program = {"name": "test", "command": ["{python}", "-c", "import sys; sys.exit('cannot start: no licence')"]}
    of = roster(*mcp("echo"), servers=[program])
    box = Toolbox(of, FixedSearch(), vitals := ListVitals())
    note = box._keepers["test"]._note

    def noting(err: Exception, errors: ErrorTail) -> None:
        note(err, errors)
        tried.set()

    monkeypatch.setattr(box._keepers["test"], "_note", noting)
    await box.open()

    for _ in range(2):
        await asyncio.wait_for(tried.wait(), WAIT_S)
        tried.clear()
    await box.close()

    lines = [record.__dict__ for record in caplog.records if record.name == mcp_servers.log.name]
    assert [line["stderr"] for line in lines] == ["cannot start: no licence"]
    assert vitals.last == ("tools", "test", False)
    assert offered(box, of) == {}


@pytest.mark.parametrize("command", [["/no/such/program"], ["{python}", "-c", "import time; time.sleep(60)"]])
async def test_a_program_that_is_missing_or_mute_costs_the_service_nothing(command: list[str]) -> None:
    server = {"name": "test", "command": command, "connect_timeout_s": 0.3}
    ill = asyncio.Event()
    vitals = PartVitals()
    vitals.watch(lambda part, ok: ill.set() if part == "tools" and not ok else None)
    box = Toolbox(roster(*mcp("echo"), servers=[server]), FixedSearch(), vitals)

    async with asyncio.timeout(1):
        await box.open()
    await asyncio.wait_for(ill.wait(), WAIT_S)
    await asyncio.wait_for(box.close(), WAIT_S)


async def test_a_box_can_be_closed_while_it_connects() -> None:
    box = Toolbox(roster(*mcp("echo"), servers=[stdio()]), FixedSearch())
    await box.open()
    await asyncio.sleep(0)

    await asyncio.wait_for(box.close(), WAIT_S)


async def test_a_declared_tool_that_the_server_lacks_is_a_health_note(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(roster(*mcp("echo", "fly"), servers=[stdio()])) as box:
        assert list(box.tools) == ["echo"]
        assert box.vitals.last == ("tools", "test", False)
    assert caplog.records[0].__dict__["missing"] == ["fly"]


async def test_a_tool_beyond_the_list_can_not_be_called_even_by_name() -> None:
    async with connected(roster(*mcp("echo"), servers=[stdio()])) as box:
        keeper = box.box._keepers["test"]

        with pytest.raises(ToolRefusedError):
            await keeper.call("wipe", "{}")


async def test_the_shipped_order_tool_answers_and_cannot_cancel() -> None:
    shipped = load_roster()
    billing = shipped.spec("billing")
    assert billing is not None
    arrived = asyncio.Event()
    box = Toolbox(shipped, FixedSearch())
    box.on_change(arrived.set)
    await box.open()
    try:
        await asyncio.wait_for(arrived.wait(), WAIT_S)
        tools = {tool.name: tool for tool in box.tools_for(billing) if isinstance(tool, FunctionTool)}
        assert list(tools) == ["order_status", "search_documents"]
        assert "waiting for the order form" in await Table().call(tools["order_status"], '{"order_id": "rl-1042"}')
        assert "There is no order" in await Table().call(tools["order_status"], '{"order_id": "7"}')
    finally:
        await box.close()


# --- an address ---


async def test_a_server_at_an_address_gets_its_headers_and_nothing_of_the_caller(
    http: HttpMcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_TOKEN", "Bearer of-the-service")
    async with connected(roster(*mcp("echo"), servers=[at(http, headers={"Authorization": "ORDERS_TOKEN"})])) as box:
        assert "forty-two" in await box.call("echo", text="forty-two")

    assert {headers["authorization"] for headers in http.headers} == {"Bearer of-the-service"}
    usual = {
        "host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length",
        "authorization", "mcp-protocol-version", "mcp-method", "mcp-name",
    }  # fmt: skip
    assert {name for headers in http.headers for name in headers} <= usual
    said = b"".join(http.bodies) + json.dumps(http.headers).encode()
    request = box.table.desk.request
    assert b"forty-two" in said
    for secret in (request.caller.subject, request.caller.tenant, request.request_id, request.message):
        assert f'"{secret}"'.encode() not in said
    calls = [json.loads(body) for body in http.bodies if b"tools/call" in body]
    (params,) = [call["params"] for call in calls]
    assert params["arguments"] == {"text": "forty-two"}
    assert set(params) <= {"name", "arguments", "_meta"}
    assert all(key.startswith("io.modelcontextprotocol/") for key in params.get("_meta", {}))


@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
async def test_a_server_that_is_killed_takes_its_tools_along_and_brings_them_back(*, legacy: bool) -> None:
    async with http_mcp_server(legacy=legacy) as http, connected(roster(*mcp("echo"), servers=[at(http)])) as box:
        old = box.tools["echo"]
        await http.stop()

        assert await box.table.call(old, '{"text": "x"}') in {mcp_servers.AWAY, FAILED}
        await box.until(lambda: not box.tools)
        assert box.vitals.last == ("tools", "test", False)
        await http.start()
        await box.until(lambda: bool(box.tools))
        assert box.vitals.last == ("tools", "test", True)
        assert "again" in await box.call("echo", text="again")


async def test_a_server_that_forgets_a_session_is_greeted_anew() -> None:
    async with http_mcp_server(legacy=True) as http, connected(roster(*mcp("echo"), servers=[at(http)])) as box:
        await http.stop()
        await http.start()

        await box.call("echo", text="x")
        await box.until(lambda: http.seen.methods.count("initialize") == 2 and bool(box.tools))

        assert "again" in await box.call("echo", text="again")


async def test_a_server_that_goes_while_nobody_calls_is_missed(
    http: HttpMcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_servers, "CHECK_S", 0.05)
    async with connected(roster(*mcp("echo"), servers=[at(http)])) as box:
        await http.stop()

        await box.until(lambda: not box.tools)


async def test_calls_of_other_turns_do_not_wait_for_a_slow_one(http: HttpMcpServer) -> None:
    async with connected(roster(*mcp("echo", "wait"), servers=[at(http)])) as box:
        slow = [asyncio.create_task(box.call("wait", Table())) for _ in range(20)]
        await asyncio.wait_for(http.seen.until(lambda seen: seen.started == 20), WAIT_S)

        assert "quick" in await box.call("echo", text="quick")

        http.seen.released.set()
        assert all("released" in text for text in await asyncio.gather(*slow))


# --- cancelling ---


@pytest.mark.parametrize("module", ["mcp_tools", "mcp_program"], ids=["modern", "legacy"])
async def test_a_program_notices_that_a_call_is_cancelled(module: str) -> None:
    of = roster(*mcp("wait", "counts", "echo"), servers=[stdio(module=f"tests.support.{module}")])
    async with connected(of) as box:
        task = asyncio.create_task(box.call("wait"))
        await box.counts(1, 0)
        await cancelled(task)

        await box.counts(1, 1)
        assert "still there" in await box.call("echo", text="still there")
    assert [phase for name, _, phase in box.table.phases if name == "wait"] == ["started"]


@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
async def test_a_server_at_an_address_notices_that_a_call_is_cancelled(*, legacy: bool) -> None:
    async with (
        http_mcp_server(legacy=legacy) as http,
        connected(roster(*mcp("wait", "echo"), servers=[at(http)])) as box,
    ):
        task = asyncio.create_task(box.call("wait"))
        await asyncio.wait_for(http.seen.until(lambda seen: seen.started == 1), WAIT_S)
        await cancelled(task)

        await asyncio.wait_for(http.seen.until(lambda seen: seen.cancelled == 1), WAIT_S)
        assert "still there" in await box.call("echo", text="still there")
        # Before 2026 a notification says it, since then the end of the connection.
        assert ("notifications/cancelled" in http.seen.methods) == legacy


async def test_a_call_that_is_too_slow_is_cancelled_at_the_server() -> None:
    of = roster(*mcp("counts"), *mcp("wait", timeout_s=0.05), servers=[stdio()])
    async with connected(of) as box:
        assert await box.call("wait") == TOO_SLOW
        await box.counts(1, 1)


async def test_many_calls_and_cancellations_leave_nothing_behind(http: HttpMcpServer) -> None:
    servers = [stdio("program"), at(http, name="address")]
    of = roster(*mcp("wait", "counts", server="program"), *mcp("echo", "huge", server="address"), servers=servers)
    before = asyncio.all_tasks()
    async with connected(of) as box:
        tasks = fds = 0
        for number in range(1, 51):
            task = asyncio.create_task(box.call("wait", Table()))
            await box.counts(number, number - 1)
            await cancelled(task)
            await box.counts(number, number)
            await box.call("huge", Table(), characters=10)
            if number == 5:
                tasks, fds = len(asyncio.all_tasks()), _descriptors()
        gc.collect()
        assert len(asyncio.all_tasks()) <= tasks + 2
        assert _descriptors() <= fds + 2
    await http.stop()
    assert asyncio.all_tasks() - before == set()


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_reconnecting_leaves_nothing_behind() -> None:
    async with connected(roster(*mcp("die", "echo"), servers=[stdio()])) as box:
        counts = []
        for _ in range(3):
            await box.call("die", Table())
            await box.until(lambda: not box.tools)
            await box.until(lambda: bool(box.tools))
            gc.collect()
            counts.append((len(asyncio.all_tasks()), _descriptors()))
        assert counts[0] == counts[-1]
