"""A turn outlives its connection: resumed, stopped, answered again, sent twice, taken over after a restart."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from edge_api.conversations.leases import ABOUT_TO_ASK
from edge_api.errors import StorageUnavailableError
from tests.integration.edge.conftest import Edge, StartEdge
from tests.integration.edge.streams import Stream, streaming
from tests.support.scripted_agent import PRICE, ScriptedAgent, answer, started, status, token
from tests.unit.edge.sse_parser import Event, parse

SSE = {"Accept": "text/event-stream"}


class Gate:
    """Holds a scripted turn until it is opened."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    async def __call__(self, _context: object) -> None:
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
async def agent(agent: ScriptedAgent) -> ScriptedAgent:
    agent.names_turns_by_request = True
    return agent


@pytest.fixture
def gate() -> Gate:
    return Gate()


def slow(gate: Gate, *pieces: str) -> list[Any]:
    """An answer that waits after its first piece."""
    whole = answer(*pieces)
    first = next(place for place, step in enumerate(whole) if step.HasField("token")) + 1
    return [*whole[:first], gate, *whole[first:]]


def text_of(events: list[Event]) -> str:
    return "".join(event.json["content"] for event in events if event.type == "token")


def numbers_of(events: list[Event]) -> list[int]:
    return [int(event.id) for event in events if event.id is not None]


@asynccontextmanager
async def resuming(
    http: httpx.AsyncClient, session: str, after: object = None, turn: str = ""
) -> AsyncIterator[Stream]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    params = {"turn_id": turn} if turn else {}
    async with http.stream("GET", f"/api/chat/{session}/stream", headers=headers, params=params) as response:
        yield Stream(response)


async def resumed(http: httpx.AsyncClient, session: str, after: object = None, turn: str = "") -> httpx.Response:
    async with resuming(http, session, after, turn) as stream:
        await stream.response.aread()
        return stream.response


async def messages(http: httpx.AsyncClient, session: str) -> list[dict[str, Any]]:
    page = await http.get(f"/api/session/{session}/messages")
    found: list[dict[str, Any]] = page.raise_for_status().json()["messages"]
    return found


async def hang_up_after(http: httpx.AsyncClient, wanted: str) -> dict[str, Any]:
    """Ask, read as far as that, and leave. Returns the data of `start`."""
    async with streaming(http) as stream:
        await stream.until(wanted)
        start: dict[str, Any] = parse(stream.text)[0].json
        return start


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            pass


async def ended(http: httpx.AsyncClient, session: str) -> None:
    async def idle() -> bool:
        return (await http.get(f"/api/session/{session}")).json()["running_turn_id"] is None

    await until(idle)


# Resume


@pytest.mark.parametrize("after", [None, 0, 1, 4])
async def test_a_running_turn_is_resumed_after_any_event(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate, after: int | None
) -> None:
    agent.turns.append(slow(gate, "one ", "two ", "three"))
    start = await hang_up_after(http, "one ")

    async with resuming(http, start["session_id"], after) as stream:
        await stream.until("one ") if (after or 0) < 5 else None
        gate.open()
        found = await stream.rest()

    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert stream.response.headers["cache-control"] == "no-cache"
    assert numbers_of(found) == list(range((after or 0) + 1, 9))
    assert found[-1].type == "complete"
    assert found[-1].json["message_id"] == start["message_id"]
    (_, said) = await messages(http, start["session_id"])
    assert (said["content"], said["status"]) == ("one two three", "completed")
    assert len(agent.calls) == 1


async def test_many_readers_see_the_same_and_one_that_leaves_is_not_missed(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    async with streaming(http) as first:
        await first.until("one ")
        session = parse(first.text)[0].json["session_id"]
        async with resuming(http, session) as second, resuming(http, session, 3) as third:
            await second.until("one ")
            async with resuming(http, session) as leaver:
                await leaver.until("event: start")
            gate.open()
            whole, again, late = await asyncio.gather(first.rest(), second.rest(), third.rest())

    assert [event.data for event in whole] == [event.data for event in again]
    assert [event.data for event in whole[3:]] == [event.data for event in late]
    # One call, however many read.
    assert (len(agent.calls), agent.watches) == (1, [])


async def test_who_comes_back_is_a_follower_again(http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    start = await hang_up_after(http, "one ")

    async def looked_on() -> bool:
        await http.get("/livez")
        return bool(agent.watches)

    await until(looked_on)
    async with resuming(http, start["session_id"]) as stream:
        await stream.until("one ")

        async def followed() -> bool:
            await http.get("/livez")
            return len(agent.watches) == 2

        await until(followed)
        gate.open()
        assert (await stream.rest())[-1].type == "complete"
    assert [(watch.observer, watch.after_sequence) for watch in agent.watches] == [(True, 5), (False, 5)]


async def test_nobody_comes_back_and_the_answer_is_stored_all_the_same(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    start = await hang_up_after(http, "one ")
    assert (await http.get(f"/api/session/{start['session_id']}")).json()["running_turn_id"] == start["turn_id"]
    gate.open()

    await ended(http, start["session_id"])

    (_, said) = await messages(http, start["session_id"])
    assert (said["id"], said["content"], said["status"]) == (start["message_id"], "one two", "completed")


@pytest.mark.parametrize("grace_s", [0, 1])
async def test_after_the_grace_the_answer_is_interrupted_and_kept(
    start_edge: StartEdge, agent: ScriptedAgent, gate: Gate, grace_s: int
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    async with start_edge(disconnect_grace_s=grace_s) as edge:
        start = await hang_up_after(edge.http, "one ")
        await ended(edge.http, start["session_id"])
        (_, said) = await messages(edge.http, start["session_id"])

    assert (said["content"], said["status"], said["outcome"]) == ("one ", "interrupted", None)
    assert said["usage"]["total_tokens"] == 27


async def test_a_turn_that_ended_is_shown_from_the_agents_log(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append(answer("one ", "two"))
    async with streaming(http) as stream:
        whole = await stream.rest()
    session = whole[0].json["session_id"]

    again = parse((await resumed(http, session)).text)
    late = parse((await resumed(http, session, 5, whole[0].json["turn_id"])).text)

    assert [event.data for event in again] == [event.data for event in whole]
    assert [event.data for event in late] == [event.data for event in whole[5:]]


@pytest.mark.parametrize("after", [7, 8, 2**52])
async def test_at_or_after_the_end_there_is_nothing(http: httpx.AsyncClient, agent: ScriptedAgent, after: int) -> None:
    agent.turns.append(answer("one ", "two"))
    session = (await http.post("/api/chat", json={"message": "x"})).json()["session_id"]

    response = await resumed(http, session, after)

    assert (response.status_code, response.content) == (204, b"")


async def test_a_forgotten_turn_is_410_with_a_link_to_its_answer(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    reply = (await http.post("/api/chat", json={"message": "x"})).json()
    agent.requests.clear()

    response = await resumed(http, reply["session_id"], 1)

    assert (response.status_code, response.json()["code"]) == (410, "sequence_expired")
    link = response.json()["answer"]
    assert response.headers["link"] == f'<{link}>; rel="alternate"'
    stored = (await http.get(link)).raise_for_status().json()
    assert (stored["id"], stored["content"]) == (reply["message_id"], reply["answer"])


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "", 2**60])
async def test_what_is_no_number_is_422(http: httpx.AsyncClient, after: object) -> None:
    session = (await http.post("/api/chat", json={"message": "x"})).json()["session_id"]

    response = await resumed(http, session, after)

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_a_number_beyond_a_running_turn_is_422(http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    start = await hang_up_after(http, "one ")

    response = await resumed(http, start["session_id"], 6)

    assert (response.status_code, response.json()["code"]) == (422, "unknown_sequence")
    gate.open()


async def test_a_turn_of_another_session_is_not_there(http: httpx.AsyncClient) -> None:
    mine = (await http.post("/api/chat", json={"message": "x"})).json()
    other = (await http.post("/api/chat", json={"message": "x"})).json()

    response = await resumed(http, mine["session_id"], turn=other["turn_id"])

    assert (response.status_code, response.json()["code"]) == (404, "unknown_turn")


async def test_a_failed_turn_shows_its_failure_again(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([started(), token("half"), status(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")])
    async with streaming(http) as stream:
        found = await stream.rest()
    session = found[0].json["session_id"]

    again = parse((await resumed(http, session)).text)
    after_start = parse((await resumed(http, session, 1)).text)

    assert [event.type for event in again] == ["start", "token", "error"]
    assert [event.type for event in after_start] == ["token", "error"]
    assert again[-1].json["code"] == "model_unavailable"
    assert (await resumed(http, session, 2)).status_code == 204
    (_, said) = await messages(http, session)
    assert (said["content"], said["status"]) == ("half", "failed")


async def test_how_a_turn_failed_is_known_while_the_agent_is_away(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    agent.turns.append([started(), token("half"), status(grpc.StatusCode.INTERNAL, "MODEL_FAILED")])
    async with streaming(http) as stream:
        session = (await stream.rest())[0].json["session_id"]
    await agent.stop()

    found = parse((await resumed(http, session)).text)

    assert [(event.type, event.json["code"]) for event in found] == [("error", "model_failed")]


async def test_a_call_that_breaks_is_no_end(http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    # As a proxy between the two does; the turn itself goes on.
    agent.cut_chats_after = 5
    async with streaming(http) as stream:
        await stream.until("one ")
        gate.open()
        found = await stream.rest()

    assert numbers_of(found) == list(range(1, 8))
    assert (text_of(found), found[-1].type) == ("one two", "complete")
    assert [(watch.observer, watch.after_sequence) for watch in agent.watches] == [(False, 5)]


async def test_what_was_written_when_the_time_was_up_is_kept(
    start_edge: StartEdge, agent: ScriptedAgent, gate: Gate
) -> None:
    agent.turns.append(slow(gate, "half", "whole"))
    async with start_edge(turn_timeout_s=0.5) as edge:
        async with streaming(edge.http) as stream:
            found = await stream.rest()
        (_, said) = await messages(edge.http, found[0].json["session_id"])

    assert (found[-1].type, found[-1].json["status"], found[-1].json["code"]) == ("error", 504, "deadline_exceeded")
    assert (said["content"], said["status"]) == ("half", "failed")


# Stop


async def test_stop_keeps_what_was_written_and_says_what_it_cost(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    async with streaming(http) as stream:
        await stream.until("one ")
        start = parse(stream.text)[0].json
        reply = await http.post(f"/api/chat/{start['session_id']}/stop")
        (_, said) = await messages(http, start["session_id"])
        found = await stream.rest()

    assert reply.status_code == 200
    body = reply.json()
    assert {key: body[key] for key in ("session_id", "conversation_id", "turn_id", "message_id")} == {
        key: start[key] for key in ("session_id", "conversation_id", "turn_id", "message_id")
    }
    assert (body["status"], body["usage"]["total_tokens"], body["abort_ms"]) == ("stopped", 27, 1.5)
    assert (said["content"], said["status"]) == ("one ", "stopped")
    assert (found[-1].type, found[-1].json["status"], found[-1].json["outcome"]) == ("complete", "stopped", None)
    assert agent.requests[start["message_id"]].aborted.is_set()


async def test_stopping_what_has_ended_says_how_it_ended(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    asked = (await http.post("/api/chat", json={"message": "x"})).json()

    body = (await http.post(f"/api/chat/{asked['session_id']}/stop")).json()

    assert (body["status"], body["abort_ms"], body["usage"]) == ("completed", 0, asked["usage"])
    assert body["turn_id"] == asked["turn_id"]
    assert agent.stops == []


async def test_a_session_goes_on_after_a_stop(http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    start = await hang_up_after(http, "one ")
    busy = await http.post(f"/api/chat/{start['session_id']}", json={"message": "more"})
    await http.post(f"/api/chat/{start['session_id']}/stop")

    response = await http.post(f"/api/chat/{start['session_id']}", json={"message": "more"})

    assert (busy.status_code, busy.json()["code"], busy.json()["turn_id"]) == (409, "turn_running", start["turn_id"])
    assert response.status_code == 200
    assert [each.content for each in agent.calls[-1].request.history] == ["hello", "one "]


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_what_is_answered_is_stopped_before_its_session_is_emptied(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate, how: str
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    async with streaming(http) as stream:
        await stream.until("one ")
        session = parse(stream.text)[0].json["session_id"]
        reply = await (
            http.post(f"/api/session/{session}/reset") if how == "reset" else http.delete(f"/api/session/{session}")
        )
        found = await stream.rest()

    assert reply.status_code in {200, 204}
    assert len(agent.stops) >= 1
    assert (found[-1].type, found[-1].json.get("status")) in {("complete", "stopped"), ("error", 409)}
    if how == "reset":
        assert await messages(http, session) == []


async def test_stopping_what_has_failed_says_so(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    agent.turns.append([started(), token("half"), status(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")])
    async with streaming(http) as stream:
        session = (await stream.rest())[0].json["session_id"]

    reply = await http.post(f"/api/chat/{session}/stop")

    assert (reply.status_code, reply.json()["status"], reply.json()["abort_ms"]) == (200, "failed", 0)


async def test_stopping_what_the_agent_has_lost_says_that_it_failed(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    start = await hang_up_after(http, "one ")
    await agent.stop()
    agent.requests.clear()
    await agent.start()

    while (reply := await http.post(f"/api/chat/{start['session_id']}/stop")).status_code == 503:
        pass

    assert (reply.status_code, reply.json()["status"]) == (200, "failed")


# Again


async def test_regenerate_answers_the_last_message_again_and_keeps_the_earlier_answer(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    agent.turns.append(answer("first"))
    asked = (await http.post("/api/chat", json={"message": "why?"})).json()
    agent.turns.append(answer("second"))

    reply = await http.post(f"/api/chat/{asked['session_id']}/regenerate")

    assert (reply.status_code, reply.json()["answer"]) == (200, "second")
    assert reply.json()["turn_id"] != asked["turn_id"]
    question, said = await messages(http, asked["session_id"])
    assert (question["content"], question["alternatives"]) == ("why?", [])
    assert (said["content"], said["id"]) == ("second", reply.json()["message_id"])
    assert [(each["id"], each["content"]) for each in said["alternatives"]] == [(asked["message_id"], "first")]
    assert agent.calls[-1].request.message == "why?"
    assert not agent.calls[-1].request.history


async def test_an_edited_message_takes_the_place_of_the_last_one(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    session = (await http.post("/api/chat", json={"message": "zero"})).json()["session_id"]
    agent.turns.append(answer("first"))
    await http.post(f"/api/chat/{session}", json={"message": "why?"})
    agent.turns.append(answer("second"))

    response = await http.post(
        f"/api/chat/{session}/regenerate", json={"message": "why not?", "agent": "billing"}, headers=SSE
    )

    assert text_of(parse(response.text)) == "second"
    found = await messages(http, session)
    assert [each["content"] for each in found[2:]] == ["why not?", "second"]
    assert [[each["content"] for each in message["alternatives"]] for message in found[2:]] == [["why?"], ["first"]]
    request = agent.calls[-1].request
    assert (request.message, request.agent, len(request.history)) == ("why not?", "billing", 2)


async def test_there_is_nothing_to_answer_again_in_an_empty_session(http: httpx.AsyncClient) -> None:
    session = (await http.post("/api/chat", json={"message": "x"})).json()["session_id"]
    await http.post(f"/api/session/{session}/reset")

    response = await http.post(f"/api/chat/{session}/regenerate", json={})

    assert (response.status_code, response.json()["code"]) == (404, "message_not_found")


# The same request again


@pytest.mark.parametrize("path", ["/api/chat", "/chat"])
async def test_a_request_that_is_sent_again_is_answered_once(
    http: httpx.AsyncClient, agent: ScriptedAgent, path: str
) -> None:
    headers = {"Idempotency-Key": "once-1"} | SSE

    first, again = [await http.post(path, json={"message": "x"}, headers=headers) for _ in range(2)]
    agent.requests.clear()
    stored = await http.post(path, json={"message": "x"}, headers=headers)

    assert first.text == again.text
    assert len(agent.calls) == 1
    found = parse(stored.text)
    assert [event.type for event in found] == ["start", "agent", "token", "complete"]
    assert (text_of(found), numbers_of(found)) == (text_of(parse(first.text)), [1, 2, 3, 4])
    assert found[0].json["turn_id"] == parse(first.text)[0].json["turn_id"]


async def test_ten_at_once_get_ten_equal_answers_of_one_turn(
    http: httpx.AsyncClient, agent: ScriptedAgent, gate: Gate
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    headers = {"Idempotency-Key": "ten"}
    asked = [asyncio.create_task(http.post("/api/chat", json={"message": "x"}, headers=headers)) for _ in range(10)]
    await agent.called.wait()
    gate.open()

    replies = await asyncio.gather(*asked)

    assert {reply.status_code for reply in replies} == {200}
    assert all(reply.json() == replies[0].json() for reply in replies)
    assert len(agent.calls) == 1
    assert len((await http.get("/api/sessions")).json()["sessions"]) == 1


async def test_a_key_of_somebody_else_is_another(edge: Edge, agent: ScriptedAgent) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await edge.http.post("/api/chat", json={"message": "x"}, headers=headers)

    other = await edge.http.post("/api/chat", json={"message": "x"}, headers=headers | await edge.guest())

    assert first.json()["turn_id"] != other.json()["turn_id"]
    assert len(agent.calls) == 2


@pytest.mark.parametrize("change", ["body", "path"])
async def test_a_key_stands_for_one_request(http: httpx.AsyncClient, agent: ScriptedAgent, change: str) -> None:
    headers = {"Idempotency-Key": "one"}
    session = (await http.post("/api/chat", json={"message": "x"}, headers=headers)).json()["session_id"]
    path = "/api/chat" if change == "body" else f"/api/chat/{session}"

    response = await http.post(path, json={"message": "y" if change == "body" else "x"}, headers=headers)

    assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")
    assert len(agent.calls) == 1


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_a_key_that_is_none_is_422(http: httpx.AsyncClient, agent: ScriptedAgent, key: str) -> None:
    response = await http.post(
        "/api/chat", json={"message": "x"}, headers=[(b"Idempotency-Key", key.encode("latin-1"))]
    )

    assert response.status_code == 422
    assert agent.calls == []


async def test_a_retryable_failure_is_tried_again_under_its_key(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    headers = {"Idempotency-Key": "again"}
    agent.turns.append([started(), token("half"), status(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")])
    failed = await http.post("/api/chat", json={"message": "x"}, headers=headers)
    agent.turns.append(answer("whole"))

    reply = await http.post("/api/chat", json={"message": "x"}, headers=headers)

    assert (failed.status_code, reply.status_code, reply.json()["answer"]) == (503, 200, "whole")
    question, said = await messages(http, reply.json()["session_id"])
    assert (question["content"], said["content"]) == ("x", "whole")
    assert [each["status"] for each in said["alternatives"]] == ["failed"]


async def test_a_final_failure_is_told_again(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    headers = {"Idempotency-Key": "final"}
    agent.turns.append([started(), token("half"), status(grpc.StatusCode.INVALID_ARGUMENT, "BUDGET_EXCEEDED")])

    first, again = [await http.post("/api/chat", json={"message": "x"}, headers=headers) for _ in range(2)]

    assert (first.status_code, first.json()["code"]) == (422, "budget_exceeded")
    assert (again.status_code, again.json()["code"]) == (422, "budget_exceeded")
    assert len(agent.calls) == 1


async def test_a_session_has_two_names_and_a_request_one_meaning(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    session = (await http.post("/api/chat", json={"message": "x"})).json()["session_id"]
    headers = {"Idempotency-Key": "names"}

    replies = [
        await http.post("/api/chat", json={"message": "y", **names}, headers=headers)
        for names in (
            {"session_id": session},
            {"conversation_id": session},
            {"session_id": session, "conversation_id": session},
        )
    ]

    assert [reply.status_code for reply in replies] == [200] * 3
    assert len(agent.calls) == 2


# Restart


async def test_an_edge_that_comes_back_takes_its_turns_up_again(
    start_edge: StartEdge, agent: ScriptedAgent, gate: Gate, tmp_path: Path
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    async with start_edge(data_dir=tmp_path) as edge:
        headers = dict(edge.http.headers)
        async with streaming(edge.http) as stream:
            await stream.until("one ")
            edge.server.should_exit = True
            cut = await stream.rest()
    assert cut[-1].type == "token"

    session = cut[0].json["session_id"]
    async with start_edge(data_dir=tmp_path) as edge:
        edge.http.headers = httpx.Headers(headers)
        async with resuming(edge.http, session, numbers_of(cut)[-1]) as stream:
            gate.open()
            found = await stream.rest()
        said = await messages(edge.http, session)

    assert numbers_of(cut + found) == list(range(1, 8))
    assert text_of(cut + found) == "one two"
    assert [(each["content"], each["status"]) for each in said] == [("hello", "completed"), ("one two", "completed")]


async def test_an_answer_that_could_not_be_stored_in_time_is_taken_up_again(
    start_edge: StartEdge, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_api.chat.recorder.KEEP_TRYING_S", 0.2)
    monkeypatch.setattr("edge_api.wiring.RENEW_S", 0.05)
    async with start_edge() as edge:
        service = edge.app.state.conversations
        close = service.close

        async def away(*_: object) -> None:
            raise StorageUnavailableError("planted")

        monkeypatch.setattr(service, "close", away)
        async with streaming(edge.http) as stream:
            found = await stream.rest()
        monkeypatch.setattr(service, "close", close)
        edge.clock.pass_s(ABOUT_TO_ASK.total_seconds() + 1)
        session = found[0].json["session_id"]
        await ended(edge.http, session)
        said = (await messages(edge.http, session))[-1]

    assert (found[-1].type, found[-1].json["code"]) == ("error", "storage_unavailable")
    assert (said["content"], said["status"]) == (f"{PRICE} [1]", "completed")


async def test_a_turn_that_the_agent_lost_meanwhile_is_a_failure_and_the_session_goes_on(
    start_edge: StartEdge, agent: ScriptedAgent, gate: Gate, tmp_path: Path
) -> None:
    agent.turns.append(slow(gate, "one ", "two"))
    async with start_edge(data_dir=tmp_path) as edge:
        headers = dict(edge.http.headers)
        start = await hang_up_after(edge.http, "one ")
    agent.requests.clear()

    async with start_edge(data_dir=tmp_path) as edge:
        edge.http.headers = httpx.Headers(headers)
        await ended(edge.http, start["session_id"])
        kept = await messages(edge.http, start["session_id"])
        reply = await edge.http.post(f"/api/chat/{start['session_id']}/regenerate")

    assert [(each["content"], each["status"]) for each in kept] == [("hello", "completed"), ("", "failed")]
    assert reply.status_code == 200
