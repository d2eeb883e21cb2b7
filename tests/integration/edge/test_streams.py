"""Streams as they live: hang-ups, silence, slow readers, and the end of the process."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import httpx
import pytest
from answerdesk.v1 import agent_service_pb2 as pb

from edge_api.app import begin_shutdown
from edge_api.chat.stream import Pace
from tests.integration.edge.conftest import Edge, StartEdge
from tests.integration.edge.streams import streaming
from tests.support.scripted_agent import ScriptedAgent, answer, events, started, status, token

SECRET = "disk on fire: /srv/secret"


async def forever(_context: object) -> None:
    await asyncio.Event().wait()


async def test_the_first_steps_arrive_while_the_answer_is_being_made(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    go_on = asyncio.Event()

    async def wait(_context: object) -> None:
        await go_on.wait()

    agent.turns.append([started(), wait, token("later"), *answer("x")[-1:]])
    async with streaming(http) as stream:
        assert "event: start" in await stream.until("\n\n")
        assert "later" not in stream.text
        go_on.set()
        assert (await stream.rest())[-1].type == "complete"


@pytest.mark.parametrize("steps", [[started(), forever], [started(), token("x"), forever]])
async def test_hanging_up_ends_the_agents_call_though_it_is_silent(
    http: httpx.AsyncClient, agent: ScriptedAgent, steps: list[Any]
) -> None:
    agent.turns.append(steps)
    async with streaming(http) as stream:
        await stream.until("event: token" if len(steps) == 3 else "event: start")

    await agent.calls[0].ended.wait()


@pytest.mark.parametrize("steps", [[forever], [started(), forever]])
@pytest.mark.parametrize("path", ["/chat", "/api/chat"])
async def test_hanging_up_before_anything_was_answered_ends_the_agents_call(
    edge: Edge, agent: ScriptedAgent, steps: list[Any], path: str, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    agent.turns.append(steps)
    asked = asyncio.create_task(edge.http.post(path, json={"message": "hello"}))
    await agent.called.wait()
    asked.cancel()

    await agent.calls[0].ended.wait()
    await asyncio.gather(asked, return_exceptions=True)
    while not (lines := [line for line in log_lines() if line.get("route") == path]):
        await edge.http.get("/livez")
    assert lines[0]["status"] in {200, 499}


async def test_without_grace_what_was_written_before_a_hang_up_is_remembered(
    start_edge: StartEdge, agent: ScriptedAgent
) -> None:
    async with start_edge(disconnect_grace_s=0) as edge:
        await hung_up_and_remembered(edge.http, agent)


async def hung_up_and_remembered(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    session = (await http.post("/api/chat", json={"message": "one"})).json()["session_id"]
    agent.turns.append([started(), token("half an answer"), forever])
    path = f"/api/chat/{session}"
    async with streaming(http, path, "two", {"Accept": "text/event-stream"}) as stream:
        await stream.until("half an answer")

    await agent.calls[-1].ended.wait()
    while (response := await http.post(path, json={"message": "three"})).status_code == 409:
        pass

    assert response.status_code == 200
    assert [each.content for each in agent.calls[-1].request.history][2:] == ["two", "half an answer"]


async def test_silence_is_filled_with_comments(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    enough = asyncio.Event()

    async def wait(_context: object) -> None:
        await enough.wait()

    agent.turns.append([started(), wait, *events(answer("x")[-1])])
    async with start_edge(pace=Pace(heartbeat_s=0.05)) as edge, streaming(edge.http) as stream:
        await stream.until(": keep-alive\n\n: keep-alive\n\n")
        enough.set()
        found = await stream.rest()

    assert [event.type for event in found] == ["start", "complete"]
    assert ": keep-alive\n\n" in stream.text


@pytest.fixture
def stalled_reader() -> Iterator[Callable[[Edge], None]]:
    """Asks a question and never reads what comes."""
    with socket.socket() as reader:

        def ask(edge: Edge) -> None:
            body = b'{"message": "hello"}'
            head = f"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            head += f"\r\nAuthorization: {edge.http.headers['Authorization']}"
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            reader.connect(("127.0.0.1", edge.port))
            reader.sendall(head.encode() + b"\r\n\r\n" + body)

        yield ask


def a_megabyte(sequence: int = 2) -> pb.ChatResponse:
    offered = events(answer("x")[2])[0]
    offered.sequence = sequence
    offered.sources.passages[0].text = "y" * 1_000_000
    return offered


CUT_OFF = "a reader took nothing and was cut off"


@pytest.mark.parametrize("then", ["more", "silence"])
async def test_a_reader_that_takes_nothing_is_cut_off_and_the_turn_goes_on(
    start_edge: StartEdge,
    agent: ScriptedAgent,
    stalled_reader: Callable[[Edge], None],
    log_lines: Callable[[], list[dict[str, Any]]],
    then: str,
) -> None:
    # One step of a megabyte fills every buffer on the way: what comes after it waits, or nothing comes but comments.
    steps = [a_megabyte(), token("more", 3), forever] if then == "more" else [a_megabyte(), forever]
    agent.turns.append([started(), *steps])
    async with start_edge(pace=Pace(heartbeat_s=0.05, stall_s=0.3), send_buffer=16_384) as edge:
        stalled_reader(edge)
        await agent.called.wait()
        # Nobody follows any more; the edge looks on.
        await agent.calls[0].ended.wait()
        while not agent.watches:
            await edge.http.get("/livez")

    assert agent.watches[0].observer
    assert [line["stall_s"] for line in log_lines() if line["message"] == CUT_OFF] == [0.3]


async def test_a_turn_that_never_ends_does_not_fill_the_edge(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([started(), *map(a_megabyte, range(2, 10)), forever])

    async with streaming(http) as stream:
        found = await stream.rest()

    assert [event.type for event in found] == ["start", *["sources"] * 4, "error"]
    assert found[-1].json["status"] == 502


@pytest.mark.parametrize("streamed", [True, False])
async def test_open_answers_go_on_without_the_process_that_stops(
    edge: Edge, agent: ScriptedAgent, streamed: bool
) -> None:
    agent.turns.append([started(), token("half"), forever])
    if streamed:
        async with streaming(edge.http) as stream:
            await stream.until("half")
            edge.server.should_exit = True
            found = await stream.rest()
        assert [event.type for event in found] == ["start", "token"]
    else:
        asked = asyncio.create_task(edge.http.post("/api/chat", json={"message": "hello"}))
        await agent.called.wait()
        edge.server.should_exit = True
        response = await asked
        document = response.json()
        assert (response.status_code, document["status"], document["code"]) == (503, 503, "shutting_down")
        assert document["retryable"] is True
        assert response.headers["retry-after"]
    await edge.served
    await agent.calls[0].ended.wait()
    (turn,) = agent.requests.values()
    assert not turn.aborted.is_set()


async def test_a_question_that_comes_after_the_end_began_is_refused_at_once(edge: Edge) -> None:
    begin_shutdown(edge.app)

    response = await edge.http.post("/chat", json={"message": "late"})

    assert (response.status_code, response.json()["code"]) == (503, "shutting_down")
    assert response.headers["retry-after"]


async def test_a_request_that_still_waits_when_the_process_ends_may_be_sent_again(edge: Edge) -> None:
    waiting = asyncio.Event()

    async def page(*_: object, **__: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    edge.app.state.library.page = page
    asked = asyncio.create_task(edge.http.get("/api/sessions"))
    await waiting.wait()
    edge.server.should_exit = True

    response = await asked

    assert (response.status_code, response.json()["code"]) == (503, "shutting_down")
    assert response.headers["retry-after"]


async def ask_anew_forever(port: int) -> None:
    while True:
        async with httpx.AsyncClient(trust_env=False) as late:
            # Who was let in at the last moment may be hung up on.
            with suppress(httpx.RemoteProtocolError, httpx.ReadError):
                await late.get(f"http://127.0.0.1:{port}/livez")


async def test_an_answer_may_end_within_the_grace_period(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    go_on = asyncio.Event()

    async def wait(_context: object) -> None:
        await go_on.wait()

    agent.turns.append([started(), wait, *events(answer("x")[-1])])
    async with start_edge(shutdown_grace_s=60) as edge, streaming(edge.http) as stream:
        await stream.until("event: start")
        edge.server.should_exit = True
        # The port closes first; what is open goes on.
        with pytest.raises(httpx.ConnectError):
            await ask_anew_forever(edge.port)
        go_on.set()
        assert (await stream.rest())[-1].type == "complete"
        await edge.served


@pytest.mark.parametrize("answered", [True, False])
async def test_a_stream_that_fails_in_the_edge_itself_still_ends_with_an_error(
    edge: Edge, agent: ScriptedAgent, log_lines: Callable[[], list[dict[str, Any]]], answered: bool
) -> None:
    if not answered:
        agent.turns.append([started(), token("half"), status(grpc.StatusCode.INTERNAL, "MODEL_FAILED")])

    # What breaks at the end of the turn, as a database may.
    async def broken(*_: object) -> None:
        raise OSError(SECRET)

    edge.app.state.conversations.close = broken

    async with streaming(edge.http) as stream:
        found = await stream.rest()

    assert (found[-1].type, found[-1].json["status"], found[-1].json["code"]) == ("error", 500, "internal")
    assert SECRET not in stream.text
    assert SECRET not in str(log_lines())
    assert [line for line in log_lines() if line["message"] == "a stream failed"]
