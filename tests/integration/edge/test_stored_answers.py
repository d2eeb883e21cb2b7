"""Answers that are read where they are stored: of other versions of the edge, and without asking the agent."""

from typing import Any

import httpx
from sqlalchemy import select

from edge_api.conversations.models import Message
from tests.integration.edge.conftest import Edge
from tests.support.scripted_agent import PRICE, ScriptedAgent
from tests.unit.edge.sse_parser import parse

SINCE = {"model": "", "retries": 0, "removed_links": 0}
"""What traces have had since they are stored, as a trace of before shows it."""

ASKED = {"message": "What does Enterprise cost?"}
KEY = {"Idempotency-Key": "k"}


async def test_a_trace_is_told_as_it_came_and_stored(http: httpx.AsyncClient) -> None:
    reply = (await http.post("/api/chat", json=ASKED)).json()

    stored = (await http.get(f"/api/messages/{reply['message_id']}")).json()

    assert {name: reply["trace"][name] for name in SINCE} == {"model": "offline", "retries": 1, "removed_links": 2}
    assert stored["trace"] == reply["trace"]


async def test_an_answer_of_an_earlier_version_is_shown(edge: Edge) -> None:
    reply = (await edge.http.post("/api/chat", json=ASKED, headers=KEY)).json()
    before = {name: value for name, value in reply["trace"].items() if name not in SINCE}
    await put(edge, reply["message_id"], trace=before)

    listed = await edge.http.get(f"/api/session/{reply['session_id']}/messages")
    read = await edge.http.get(f"/api/messages/{reply['message_id']}")
    again = await edge.http.post("/api/chat", json=ASKED, headers=KEY)

    assert [each.status_code for each in (listed, read, again)] == [200, 200, 200]
    for shown in (listed.json()["messages"][1], read.json(), again.json()):
        assert shown["trace"] == before | SINCE


async def test_an_answer_of_a_later_version_is_shown_as_far_as_it_is_known(edge: Edge) -> None:
    """Where edges are restarted one after the other, or the new version is taken back."""
    reply = (await edge.http.post("/api/chat", json=ASKED)).json()
    later = {
        "trace": {**reply["trace"], "new": 1, "stages": [{**each, "new": 1} for each in reply["trace"]["stages"]]},
        "usage": {**reply["usage"], "new": 1},
        "citations": [{**each, "new": 1} for each in reply["citations"]],
    }
    await put(edge, reply["message_id"], **later)

    read = await edge.http.get(f"/api/messages/{reply['message_id']}")

    assert read.status_code == 200
    assert {name: read.json()[name] for name in later} == {name: reply[name] for name in later}


async def test_a_request_that_is_sent_again_asks_the_agent_only_for_what_it_shows(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    first = await http.post("/api/chat", json=ASKED, headers=KEY)

    again = await http.post("/api/chat", json=ASKED, headers=KEY)
    assert again.json() == first.json()
    assert (len(agent.calls), agent.watches) == (1, [])

    streamed = await http.post("/api/chat", json=ASKED, headers=KEY | {"Accept": "text/event-stream"})
    steps = parse(streamed.text)
    assert [each.type for each in steps] == ["start", "agent", "sources", "tool", "token", "token", "complete"]
    assert (len(agent.calls), len(agent.watches)) == (1, 1)


async def test_a_request_that_is_sent_again_is_answered_while_the_agent_is_away(
    http: httpx.AsyncClient, agent: ScriptedAgent
) -> None:
    first = await http.post("/api/chat", json=ASKED, headers=KEY)
    await agent.stop()

    again = await http.post("/api/chat", json=ASKED, headers=KEY)
    streamed = await http.post("/api/chat", json=ASKED, headers=KEY | {"Accept": "text/event-stream"})

    assert again.json() == first.json()
    steps = parse(streamed.text)
    assert [each.type for each in steps] == ["start", "agent", "token", "complete"]
    assert steps[2].json["content"] == f"{PRICE} [1]"


async def put(edge: Edge, message_id: str, **columns: Any) -> None:
    """Put something else in place of what is stored of an answer."""
    async with edge.database.unit_of_work() as unit:
        said = (await unit.execute(select(Message).where(Message.id == message_id))).scalar_one()
        for name, value in columns.items():
            setattr(said, name, value)
