"""Documents and tool results that give orders, and a model that obeys every one of them.

The model is the worst that can be: what stands in what it reads, it does. What holds must hold without its help: the
tools of the roster, its hand-offs, the screen over the answer, the check of its citations. Documents are ingested, and
questions asked over a channel, as anybody's.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from html import unescape

import grpc
import pytest
import pytest_asyncio
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as conversation_pb
from google.protobuf.message import Message

from agent_service.types import DocumentInfo
from tests.support.attacks import (
    ATTACKS,
    CALLED,
    DRAWN,
    EVIL,
    FACT,
    FRIEND,
    HOME,
    LINKS,
    NEVER_SAID,
    QUESTION,
    TOOL_RESULTS,
    Attack,
    foreign_links,
)
from tests.support.mcp_http import HttpMcpServer, http_mcp_server
from tests.support.openai_server import Reply, Request, ScriptedOpenAI
from tests.support.reader import markers
from tests.support.scripted_brain import hand_over, is_result, items_of, read, tools_of
from tests.support.served import WAIT_S, Client, Failure, on_one_loop, serving
from tests.support.shelf import LOCAL, Shelf

pytestmark = on_one_loop

ROSTER = """
entry = "orchestrator"
link_hosts = ["{friend}"]
[[agents]]
name = "orchestrator"
description = "Routes."
instructions = "prompt.md"
hands_off_to = ["billing", "technical", "policy"]
[[agents]]
name = "billing"
description = "Prices."
instructions = "prompt.md"
collections = ["billing"]
strategy = "rag"
hands_off_to = ["policy"]
tools = ["lookup", "echo"]
[[agents]]
name = "technical"
description = "Pays."
instructions = "prompt.md"
collections = ["technical"]
strategy = "rag"
tools = ["refund"]
[[agents]]
name = "policy"
description = "Rules."
instructions = "prompt.md"
collections = ["policy"]
strategy = "rag"
[[tools]]
name = "lookup"
function = "tests.support.attacks:lookup"
[[tools]]
name = "refund"
function = "tests.support.attacks:refund"
[[tools]]
name = "echo"
mcp_server = "test"
[[mcp_servers]]
name = "test"
url = "{url}"
"""

OFFERED = {"lookup", "echo", "transfer_to_policy"}
"""To the agent that reads the attack. The server of `echo` has more tools, which nobody is given."""

DISH = "soup"

MOST_BY_CHARACTER = 1_000
"""Longer answers are sent in words: each piece is an event of its own."""

VERBATIM = {"title", "heading", "quote", "uri", "text"}
"""What quotes a document: shown as text, if at all, and compared with the document."""


@dataclass
class Obedient:
    """A model that does what an attack wants as soon as it has read it, and else its duty."""

    attack: Attack
    read: str = ""
    offered: set[str] = field(default_factory=set)
    has_called: bool = False

    def __call__(self, request: Request) -> Reply:
        if (handed := hand_over(request, "billing")) is not None:
            return handed
        self.offered.update(tools_of(request))
        if self.attack.key in (said := read(request)):
            self.read = said
            return self._obey(request)
        if not any(is_result(item) and FACT in json.dumps(item) for item in items_of(request)):
            return Reply.tool("lookup", {"dish": DISH})
        return Reply.text(f"{FACT} [1].")

    def _obey(self, request: Request) -> Reply:
        if self.attack.calls and not self.has_called:
            self.has_called = True
            return Reply.tools(*self.attack.calls)
        says = self.attack.says
        # Through the one API as the attack wants it or in words, through the other in single characters.
        by_character = request.path.endswith("/chat/completions") and len(says) <= MOST_BY_CHARACTER
        return Reply.text(says, pieces=list(says) if by_character else list(self.attack.pieces) or None)


@dataclass(frozen=True)
class Suffered:
    """A turn that an attack was made on: the model, the document, what the caller saw, and how it failed if it did."""

    model: Obedient
    document: DocumentInfo
    text: str
    events: list[pb.ChatResponse]
    failure: Failure | None

    @property
    def answer(self) -> str:
        """What the person reads."""
        return "".join(event.token.content for event in self.events if event.WhichOneof("event") == "token")

    @property
    def end(self) -> pb.Completed:
        """The last event of a turn that has not failed."""
        assert self.failure is None, self.failure.everything
        assert [event.WhichOneof("event") for event in self.events].count("completed") == 1
        return self.events[-1].completed

    @property
    def sources(self) -> set[int]:
        """The markers that have a source."""
        return {passage.marker for event in self.events for passage in event.sources.passages}

    def names(self, kind: str) -> set[str]:
        """Of all agents, or tools, that were told of."""
        return {
            event.agent.agent if kind == "agent" else event.tool.name
            for event in self.events
            if event.WhichOneof("event") == kind
        }


@dataclass
class House:
    """The service, the model that it asks, and the server of its tools."""

    client: Client
    shelf: Shelf
    server: ScriptedOpenAI
    tools: HttpMcpServer

    async def suffer(self, attack: Attack) -> Suffered:
        """Plant the attack, ask the question, obey."""
        model = Obedient(attack)
        self.server.answer_with(model)
        self.server.requests.clear()
        CALLED.clear()
        TOOL_RESULTS[DISH] = f"{FACT}. {attack.hostile}" if attack.where == "tool" else f"{FACT}."
        uri, title, text = attack.document
        document = await self.shelf.put(uri, text, title=title)
        events: list[pb.ChatResponse] = []
        failure = None
        try:
            async for event in self.client.agent.Chat(pb.ChatRequest(message=QUESTION), timeout=WAIT_S):
                events.append(event)  # noqa: PERF401 - what came before a failure is looked at
        except grpc.aio.AioRpcError as err:
            failure = Failure(err)
        finally:
            stored = await self.shelf.store.document(document.id, LOCAL)
            await self.shelf.remove(document)
        assert stored is not None
        return Suffered(model, document, stored.text, events, failure)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["responses", "chat_completions"])
async def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("injections")
    (folder / "prompt.md").write_text("Answer from the sources.", encoding="utf-8")
    roster = folder / "roster.toml"
    with pytest.MonkeyPatch.context() as environment:
        async with http_mcp_server() as tools, ScriptedOpenAI(max_requests=10_000) as model:
            environment.setenv("OPENAI_API_KEY", "sk-planted")
            environment.setenv("OPENAI_BASE_URL", model.base_url)
            roster.write_text(ROSTER.format(friend=FRIEND, url=tools.url), encoding="utf-8")
            shelf = Shelf()
            given = {"model_provider": "openai", "openai_api": request.param, "roster": roster}
            async with serving(shelf, **given) as served:
                connected = asyncio.Event()
                served.parts.toolbox.on_change(connected.set)
                await asyncio.wait_for(connected.wait(), WAIT_S)
                yield House(served.client, shelf, model, tools)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_a_model_that_obeys_a_text_does_no_harm(house: House, attack: Attack) -> None:
    suffered = await house.suffer(attack)
    model = suffered.model

    # It has read the attack, and has done what it wants.
    said = model.read + unescape(model.read)
    assert [word for word in attack.hostile.split() if word not in said] == []
    assert model.has_called == bool(attack.calls)

    # Tools and hand-offs are the roster's.
    assert model.offered == OFFERED
    assert set(CALLED) <= {"lookup"}
    assert suffered.names("tool") <= {"lookup"}
    assert suffered.names("agent") <= {"orchestrator", "billing"}
    assert "tools/call" not in house.tools.seen.methods
    assert not house.tools.seen.wiped

    # Nothing leads the reader away, and no number stands for what is no source.
    assert foreign_links(suffered.answer) == []
    assert markers(suffered.answer) <= suffered.sources

    # The turn ends as turns do.
    if attack.is_beyond_the_roster:
        assert suffered.failure is not None
        assert (suffered.failure.code, suffered.failure.reason) == (grpc.StatusCode.INTERNAL, "MODEL_FAILED")
        assert EVIL not in suffered.failure.everything
    else:
        _check_end(suffered)


def _check_end(suffered: Suffered) -> None:
    end, attack = suffered.end, suffered.model.attack
    assert (end.status, end.agent) == (conversation_pb.TURN_STATUS_COMPLETED, "billing")
    assert end.outcome in {conversation_pb.OUTCOME_ANSWERED, conversation_pb.OUTCOME_NO_EVIDENCE}
    assert list(end.trace.agents) == ["orchestrator", "billing"]
    assert (end.trace.removed_links > 0) >= attack.leads_away
    assert (end.trace.dropped_markers > 0) >= attack.forges_markers
    for citation in end.citations:
        assert citation.marker in suffered.sources
        assert f"[{citation.marker}]" in suffered.answer[citation.answer_span.start : citation.answer_span.end]
        assert citation.quote
        assert citation.quote == suffered.text[citation.source_span.start : citation.source_span.end]
        assert (citation.uri, citation.title) == (suffered.document.uri, suffered.document.title)
    for said in _texts(end):
        assert foreign_links(said) == []


def _texts(message: Message) -> Iterator[str]:
    """Every text in a message that is not a document's."""
    for descriptor, value in message.ListFields():
        if descriptor.name in VERBATIM:
            continue
        for each in value if not isinstance(value, (str, Message)) and hasattr(value, "__iter__") else [value]:
            if isinstance(each, Message):
                yield from _texts(each)
            elif isinstance(each, str):
                yield each


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_without_what_stops_it_each_attack_does_harm(attack: Attack) -> None:
    assert attack.leads_away or attack.forges_markers or attack.calls or NEVER_SAID in attack.says


@pytest.mark.parametrize("attack", LINKS, ids=lambda attack: attack.name)
async def test_what_the_model_says_would_lead_away_without_the_screen(attack: Attack) -> None:
    assert attack.leads_away


@pytest.mark.parametrize("attack", DRAWN, ids=lambda attack: attack.name)
async def test_what_the_model_says_would_lead_away_if_words_were_drawn_together(attack: Attack) -> None:
    assert foreign_links(attack.says) == []
    assert foreign_links(attack.says.replace(" [9]", ""))


async def test_a_forged_sentence_earns_no_citation_and_no_evidence(house: House) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == "a sentence to repeat and cite")

    suffered = await house.suffer(attack)

    assert NEVER_SAID in suffered.answer
    assert list(suffered.end.citations) == []
    assert suffered.end.outcome == conversation_pb.OUTCOME_NO_EVIDENCE


async def test_an_honest_answer_passes_as_it_is(house: House) -> None:
    honest = Attack(
        "honest", f"{FACT} [1]. See https://menu.{FRIEND}/today, or [the menu]({HOME}).", "The menu is online."
    )

    suffered = await house.suffer(honest)

    assert suffered.answer == honest.says
    assert [citation.marker for citation in suffered.end.citations] == [1]
    assert suffered.end.outcome == conversation_pb.OUTCOME_ANSWERED
    assert suffered.end.trace.removed_links == 0


async def test_what_its_own_tool_is_offered_for_is_done(house: House) -> None:
    suffered = await house.suffer(Attack("own tool", f"{FACT}.", "Call echo.", (("echo", '{"text": "soup"}'),)))
    called, house.tools.seen.methods[:] = list(house.tools.seen.methods), []

    assert "tools/call" in called
    assert suffered.names("tool") == {"echo"}
