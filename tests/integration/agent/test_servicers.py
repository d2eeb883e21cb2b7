"""Both services over a real channel: the real parts, the fake store, the offline model."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as conversation_pb
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb
from answerdesk.v1 import knowledge_service_pb2_grpc as knowledge_grpc
from google.rpc import error_details_pb2 as details_pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent_service.errors import StartupError
from agent_service.rpc import knowledge_servicer
from agent_service.rpc.knowledge_servicer import KnowledgeServicer
from agent_service.server import SERVICES, AgentServer
from tests.support.answerers import HeldAnswerer
from tests.support.served import (
    WAIT_S,
    Client,
    Served,
    failure_of,
    on_one_loop,
    parts_over,
    servicers,
    serving,
    settings,
    settled,
)
from tests.support.shelf import LOCAL, Shelf

pytestmark = on_one_loop

PLANS = """\
# Plans and prices

The Enterprise plan costs EUR 1,200 a month. The Basic plan costs EUR 9 a month.

## Upgrades

You can upgrade from the Basic plan at any time; the change takes effect at once.
"""
REFUNDS = "# Refunds\n\nRefunds are paid within **14 days** to the card that was charged \U0001f600.\n"
TIMEOUTS = """\
# Time-outs

An API integration keeps timing out where an answer takes 30 seconds. To fix this, raise `timeout_s` in the client.

```json
{
  "client": {
    "retry_backoff_jitter": true
  }
}
```
"""
GDPR = "# GDPR\n\nWe comply with the GDPR. " + "Personal data is stored in Frankfurt. " * 40 + "\n"
RETENTION = "# Retention\n\nAudit logs are kept for 400 days.\n"
TEXTS = {"plans.md": PLANS, "refunds.md": REFUNDS, "timeouts.md": TIMEOUTS, "gdpr.md": GDPR, "retention.md": RETENTION}


async def filled() -> Shelf:
    shelf = Shelf()
    for collection, uris in (
        ("billing", ("plans.md", "refunds.md")),
        ("technical", ("timeouts.md",)),
        ("policy", ("gdpr.md", "retention.md")),
    ):
        for uri in uris:
            await shelf.put(uri, TEXTS[uri], collection=collection)
    return shelf


@pytest_asyncio.fixture(loop_scope="session")
async def served() -> AsyncIterator[Served]:
    async with serving(await filled()) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def client(served: Served) -> Client:
    return served.client


def kinds(events: Sequence[pb.ChatResponse]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


def text(events: Sequence[pb.ChatResponse]) -> str:
    return "".join(event.token.content for event in events)


def only(events: Sequence[pb.ChatResponse], kind: str) -> Any:
    (found,) = (getattr(event, kind) for event in events if event.WhichOneof("event") == kind)
    return found


def completed(events: Sequence[pb.ChatResponse]) -> pb.Completed:
    assert events[-1].WhichOneof("event") == "completed"
    return events[-1].completed


def check_grammar(events: Sequence[pb.ChatResponse]) -> None:
    """`started`, any of the others, exactly one `completed`; numbered from 1 without gaps, of one turn."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    (turn_id,) = {event.turn_id for event in events}
    assert str(uuid.UUID(turn_id)) == turn_id
    assert kinds(events)[0] == "started"
    assert kinds(events)[-1] == "completed"
    assert set(kinds(events)[1:-1]) <= {"agent", "sources", "tool", "token"}
    assert all(event.token.content for event in events if event.WhichOneof("event") == "token")


async def check_citations(client: Client, events: Sequence[pb.ChatResponse]) -> list[conversation_pb.Citation]:
    """Every citation: its marker stands in the answer and in the sources, its quote in the stored document."""
    answer, citations = text(events), list(completed(events).citations)
    offered = {passage.marker: passage for passage in only(events, "sources").passages}
    for citation in citations:
        stored = await client.knowledge.GetDocument(
            knowledge_pb.GetDocumentRequest(id=citation.document_id, version=citation.version), timeout=WAIT_S
        )
        assert citation.quote
        assert stored.text[citation.source_span.start : citation.source_span.end] == citation.quote
        said = answer[citation.answer_span.start : citation.answer_span.end]
        assert f"[{citation.marker}]" in said
        source = offered[citation.marker]
        assert (source.document_id, source.version) == (citation.document_id, citation.version)
        assert (citation.title, citation.uri, citation.collection) == (
            stored.document.title,
            stored.document.uri,
            stored.document.collection,
        )
    starts = [citation.answer_span.start for citation in citations]
    assert starts == sorted(starts)
    return citations


# --- chat: the main job ---


@pytest.mark.parametrize(
    ("question", "agent", "strategy", "quote"),
    [
        (
            "What does the Enterprise plan cost?",
            "billing",
            conversation_pb.STRATEGY_HYBRID,
            "The Enterprise plan costs EUR 1,200 a month.",
        ),
        (
            "My API integration keeps timing out. How do I fix this?",
            "technical",
            conversation_pb.STRATEGY_RAG,
            "An API integration keeps timing out where an answer takes 30 seconds.",
        ),
        ("Do you comply with GDPR?", "policy", conversation_pb.STRATEGY_CAG, "We comply with the GDPR."),
    ],
)
async def test_a_question_is_answered_by_its_specialist_with_checked_citations(
    client: Client, question: str, agent: str, strategy: int, quote: str
) -> None:
    events = await client.chat(question)

    check_grammar(events)
    assert only(events, "agent") == pb.AgentSelected(agent=agent, strategy=strategy)  # type: ignore[arg-type]
    end = completed(events)
    assert (end.status, end.outcome) == (conversation_pb.TURN_STATUS_COMPLETED, conversation_pb.OUTCOME_ANSWERED)
    assert (end.agent, end.strategy) == (agent, strategy)
    assert quote in [citation.quote for citation in await check_citations(client, events)]


async def test_the_agent_and_the_sources_come_before_the_first_token(client: Client) -> None:
    order = kinds(await client.chat("What does the Enterprise plan cost?"))

    assert order[:4] == ["started", "agent", "sources", "token"]


async def test_sources_are_numbered_from_one_in_the_order_offered(client: Client) -> None:
    for question in ("What does the Enterprise plan cost?", "Do you comply with GDPR?"):
        passages = only(await client.chat(question), "sources").passages

        assert [passage.marker for passage in passages] == list(range(1, len(passages) + 1))


async def test_whole_documents_are_shown_by_their_first_500_characters(client: Client) -> None:
    sources = only(await client.chat("Do you comply with GDPR?"), "sources").passages

    assert {passage.uri: passage.text for passage in sources} == {"gdpr.md": GDPR[:500], "retention.md": RETENTION}
    assert {passage.span.end for passage in sources} == {len(GDPR), len(RETENTION)}
    assert {passage.score for passage in sources} == {0}


async def test_the_trace_tells_how_the_answer_came_about(client: Client) -> None:
    events = await client.chat("What does the Enterprise plan cost?")
    end = completed(events)
    trace = end.trace

    assert (trace.agent, trace.strategy) == ("billing", conversation_pb.STRATEGY_HYBRID)
    assert list(trace.agents) == ["orchestrator", "billing"]
    assert trace.reason
    assert not trace.cache_hit
    assert 0.5 <= trace.support <= 1
    assert trace.considered
    assert all(passage.text == "" for passage in trace.considered)
    scores = [passage.score for passage in trace.considered]
    assert scores == sorted(scores, reverse=True)
    assert list(trace.used) == sorted({citation.marker for citation in end.citations})
    assert {stage.name for stage in trace.stages} == {"retrieval", "model", "citations"}
    assert all(stage.duration_ms >= 0 for stage in trace.stages)
    assert trace.dropped_markers == 0


async def test_usage_adds_up(client: Client) -> None:
    usage = completed(await client.chat("What does the Enterprise plan cost?")).usage

    assert usage.requests == 2, "the orchestrator's call and the specialist's"
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_a_follow_up_with_state_stays_with_its_agent_and_its_passages(client: Client) -> None:
    first = await client.chat("What does the Enterprise plan cost?")
    state = completed(first).state
    assert state.agent == "billing"
    assert state.cached

    history = [
        conversation_pb.Message(role=conversation_pb.ROLE_USER, content="What does the Enterprise plan cost?"),
        conversation_pb.Message(role=conversation_pb.ROLE_ASSISTANT, content=text(first), agent="billing"),
    ]
    second = await client.chat("Can I upgrade from the Basic plan?", history=history, state=state)

    check_grammar(second)
    assert only(second, "agent").agent == "billing"
    assert list(completed(second).trace.agents) == ["billing"]
    quotes = [citation.quote for citation in await check_citations(client, second)]
    assert any("upgrade from the Basic plan" in quote for quote in quotes)


async def test_a_follow_up_that_the_kept_passages_support_needs_no_search(client: Client) -> None:
    first = await client.chat("What does the Enterprise plan cost?")

    second = await client.chat("What does the Enterprise plan cost a month?", state=completed(first).state)

    assert completed(second).trace.cache_hit
    assert completed(second).state == completed(first).state


async def test_a_conversation_changes_hands_with_its_subject(client: Client) -> None:
    first = await client.chat("What does the Enterprise plan cost?")

    second = await client.chat("Do you comply with GDPR?", state=completed(first).state)

    assert only(second, "agent").agent == "policy"
    assert completed(second).state.agent == "policy"
    assert not completed(second).state.cached


async def test_the_second_question_to_a_whole_collection_finds_it_prepared(client: Client) -> None:
    first = await client.chat("Do you comply with GDPR?", agent="policy")
    second = await client.chat("How long are audit logs kept?", agent="policy")

    assert not completed(first).trace.cache_hit
    assert completed(second).trace.cache_hit
    assert [citation.quote for citation in completed(second).citations] == ["Audit logs are kept for 400 days."]


@pytest.mark.parametrize("question", ["Who won the 1998 World Cup?", "Do zeppelins fly over Lisbon?"])
async def test_a_question_that_no_document_supports_ends_without_evidence(client: Client, question: str) -> None:
    events = await client.chat(question)

    check_grammar(events)
    end = completed(events)
    assert (end.status, end.outcome) == (conversation_pb.TURN_STATUS_COMPLETED, conversation_pb.OUTCOME_NO_EVIDENCE)
    assert not end.citations
    assert not re.search(r"\[\d+]|\d", text(events)), "nothing is invented"


async def test_an_agent_asked_directly_answers_itself(client: Client) -> None:
    events = await client.chat("How long are audit logs kept?", agent="policy")

    assert only(events, "agent").agent == "policy"
    assert list(completed(events).trace.agents) == ["policy"]
    assert completed(events).outcome == conversation_pb.OUTCOME_ANSWERED


async def test_an_agent_asked_directly_does_not_pass_the_question_on(client: Client) -> None:
    events = await client.chat("What does the Enterprise plan cost?", agent="policy")

    assert only(events, "agent").agent == "policy"
    assert completed(events).outcome == conversation_pb.OUTCOME_NO_EVIDENCE


async def test_a_state_of_an_agent_who_left_the_team_begins_anew(client: Client) -> None:
    events = await client.chat(
        "What does the Enterprise plan cost?", state=conversation_pb.State(agent="gone-since-yesterday")
    )

    assert only(events, "agent").agent == "billing"


async def test_an_answer_that_is_cut_says_so(client: Client) -> None:
    events = await client.chat("What does the Enterprise plan cost?", limits=pb.Limits(max_output_tokens=3))

    assert 0 < len(text(events).split()) <= 3
    assert completed(events).outcome == conversation_pb.OUTCOME_TRUNCATED


async def test_a_quoted_block_of_code_keeps_its_citation(client: Client) -> None:
    events = await client.chat("What is retry_backoff_jitter of the client in json?", agent="technical")

    assert "retry_backoff_jitter" in text(events)
    quotes = [citation.quote for citation in await check_citations(client, events)]
    assert any("retry_backoff_jitter" in quote for quote in quotes)
    assert completed(events).trace.dropped_markers == 0


async def test_spans_of_an_answer_count_code_points(client: Client) -> None:
    events = await client.chat("When are refunds paid to the card that was charged?")

    (citation,) = await check_citations(client, events)
    assert citation.quote == "Refunds are paid within **14 days** to the card that was charged \U0001f600."
    said = text(events)[citation.answer_span.start : citation.answer_span.end]
    assert said.startswith("Refunds are paid")
    assert said.endswith(f"[{citation.marker}]")


async def test_the_team_is_listed_with_the_entry_first(client: Client) -> None:
    agents = (await client.agent.ListAgents(pb.ListAgentsRequest(), timeout=WAIT_S)).agents

    assert [agent.entry for agent in agents] == [True, False, False, False]
    assert {agent.name: agent.strategy for agent in agents} == {
        "orchestrator": conversation_pb.STRATEGY_UNSPECIFIED,
        "billing": conversation_pb.STRATEGY_HYBRID,
        "technical": conversation_pb.STRATEGY_RAG,
        "policy": conversation_pb.STRATEGY_CAG,
    }
    assert all(agent.description and agent.model for agent in agents)
    assert list(agents[0].collections) == []


# --- chat: what is refused, and what fails ---


async def test_an_invalid_request_names_every_field(client: Client) -> None:
    failure = await failure_of(client.chat("  ", request_id="not allowed", history=[conversation_pb.Message()]))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_REQUEST"
    assert set(failure.fields) == {"message", "request_id", "history[0].role", "history[0].content"}


async def test_a_request_with_as_many_broken_rules_as_it_can_have_is_refused_readably(client: Client) -> None:
    failure = await failure_of(client.chat("", history=[conversation_pb.Message()] * 200))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_REQUEST"


async def test_an_unknown_agent_is_named(client: Client) -> None:
    failure = await failure_of(client.chat("why?", agent="biling"))

    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_AGENT")
    resource = failure.detail(details_pb.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("agent", "biling")


async def test_an_unknown_agent_with_an_endless_name_is_refused_readably(client: Client) -> None:
    failure = await failure_of(client.chat("why?", agent="x" * 50_000))

    assert failure.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
    assert failure.reason in {"UNKNOWN_AGENT", "INVALID_REQUEST"}


async def test_a_history_beyond_the_models_window_exceeds_the_budget(client: Client) -> None:
    history = [conversation_pb.Message(role=conversation_pb.ROLE_USER, content="x" * 32_000)] * 8

    failure = await failure_of(client.chat("why?", history=history))

    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BUDGET_EXCEEDED")
    assert failure.fields == ["history"]


async def test_nothing_can_be_asked_before_anything_was_ingested() -> None:
    async with serving(Shelf()) as empty:
        chat = await failure_of(empty.client.chat("What does the Enterprise plan cost?"))
        direct = await failure_of(empty.client.chat("What does it cost?", agent="billing"))
        search = await failure_of(search_for(empty.client, "plan"))

    for failure in (chat, direct, search):
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COLLECTION_NOT_READY")
    violations = direct.detail(details_pb.PreconditionFailure).violations
    assert [violation.subject for violation in violations] == ["billing"]


async def test_a_store_that_is_away_makes_every_call_unavailable(served: Served) -> None:
    served.store.unavailable = True

    failures = [
        await failure_of(served.client.chat("What does the Enterprise plan cost?")),
        await failure_of(search_for(served.client, "plan")),
        await failure_of(listed(served.client)),
        await failure_of(get(served.client, str(uuid.uuid4()))),
    ]

    served.store.unavailable = False
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "RETRIEVAL_UNAVAILABLE")
        assert failure.detail(details_pb.RetryInfo).retry_delay.ToMilliseconds() > 0


async def test_a_turn_ends_before_its_callers_deadline_and_says_why() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as waiting:
        failure = await failure_of(waiting.client.chat("why?", timeout_s=1.0))

        await asyncio.wait_for(held.cancelled.wait(), WAIT_S)
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_call_that_is_cancelled_cancels_its_turn() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as waiting:
        call = waiting.client.agent.Chat(pb.ChatRequest(message="why?"), timeout=WAIT_S)
        await asyncio.wait_for(held.started.wait(), WAIT_S)

        call.cancel()

        await asyncio.wait_for(held.cancelled.wait(), WAIT_S)


async def test_a_turn_that_is_detached_runs_on_and_can_be_attached_to() -> None:
    held = HeldAnswerer()
    request = pb.ChatRequest(message="why?", request_id="r", on_disconnect=pb.ON_DISCONNECT_DETACH)
    async with serving(Shelf(), answerer=held) as waiting:
        first = waiting.client.agent.Chat(request, timeout=WAIT_S)
        events = aiter(first)
        started = await anext(events)
        first.cancel()

        async def again() -> list[pb.ChatResponse]:
            return [event async for event in waiting.client.agent.Chat(request, timeout=WAIT_S)]

        second = asyncio.create_task(again())
        held.release.set()

        replayed = await second
    assert replayed[0] == started
    assert kinds(replayed)[-1] == "completed"
    assert len(held.requests) == 1
    assert not held.cancelled.is_set()


async def test_the_same_request_id_attaches_to_its_turn(client: Client) -> None:
    first = await client.chat("What does the Enterprise plan cost?", request_id="once")
    second = await client.chat("What does the Enterprise plan cost?", request_id="once")

    assert second == first
    assert only(first, "started").request_id == "once"


async def test_the_same_request_id_runs_its_turn_once() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as waiting:
        first = asyncio.create_task(waiting.client.chat("why?", request_id="once"))
        await asyncio.wait_for(held.started.wait(), WAIT_S)
        second = asyncio.create_task(waiting.client.chat("why?", request_id="once"))
        held.release.set()

        assert await first == await second
    assert len(held.requests) == 1


async def test_the_same_request_id_for_another_message_is_refused(client: Client) -> None:
    await client.chat("What does the Enterprise plan cost?", request_id="once")

    failure = await failure_of(client.chat("What does the Basic plan cost?", request_id="once"))

    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_turns_at_the_same_time_keep_apart(client: Client) -> None:
    questions = ["What does the Enterprise plan cost?", "Do you comply with GDPR?", "Who won the 1998 World Cup?"] * 7

    turns = await asyncio.gather(*map(client.chat, questions))

    assert len({events[0].turn_id for events in turns}) == len(questions)
    for place, events in enumerate(turns):
        check_grammar(events)
        assert text(events) == text(turns[place % 3])
    assert len({text(events) for events in turns}) == 3


async def test_a_service_with_as_many_turns_as_allowed_refuses_the_next_one_at_once() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as waiting:
        calls = [waiting.client.agent.Chat(pb.ChatRequest(message=f"{n}?"), timeout=WAIT_S) for n in range(10)]
        for call in calls:
            assert (await anext(aiter(call))).WhichOneof("event") == "started"

        failure = await failure_of(waiting.client.chat("And one more?"))

        held.release.set()
        for call in calls:
            call.cancel()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert failure.detail(details_pb.RetryInfo).retry_delay.ToMilliseconds() > 0


async def test_a_request_without_an_id_gets_one(client: Client) -> None:
    ids = [only(await client.chat("Do you comply with GDPR?"), "started").request_id for _ in range(2)]

    assert ids[0] != ids[1]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", each) for each in ids)


async def test_the_turn_is_asked_as_the_local_caller_with_what_is_left_of_the_deadline() -> None:
    held = HeldAnswerer()
    held.release.set()
    async with serving(Shelf(), answerer=held) as waiting:
        await waiting.client.chat(
            "why?", history=[conversation_pb.Message(role=conversation_pb.ROLE_USER, content="what?")]
        )

    (request,) = held.requests
    assert request.caller == LOCAL
    assert request.previous_user_message == "what?"


# --- knowledge ---


async def search_for(client: Client, query: str, **fields: Any) -> knowledge_pb.SearchResponse:
    return await client.knowledge.Search(knowledge_pb.SearchRequest(query=query, **fields), timeout=WAIT_S)


async def listed(client: Client, **fields: Any) -> knowledge_pb.ListDocumentsResponse:
    return await client.knowledge.ListDocuments(knowledge_pb.ListDocumentsRequest(**fields), timeout=WAIT_S)


async def get(client: Client, id_: str, version: str = "") -> knowledge_pb.GetDocumentResponse:
    return await client.knowledge.GetDocument(knowledge_pb.GetDocumentRequest(id=id_, version=version), timeout=WAIT_S)


async def delete(client: Client, id_: str) -> knowledge_pb.DeleteDocumentResponse:
    return await client.knowledge.DeleteDocument(knowledge_pb.DeleteDocumentRequest(id=id_), timeout=WAIT_S)


def document(uri: str, text: str, **fields: Any) -> knowledge_pb.Document:
    return knowledge_pb.Document(**({"uri": uri, "text": text, "collection": "billing"} | fields))


async def ingest(client: Client, *documents: knowledge_pb.Document) -> list[knowledge_pb.IngestDocumentsResponse]:
    async def requests() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
        for each in documents:
            yield knowledge_pb.IngestDocumentsRequest(document=each)

    return [answer async for answer in client.knowledge.IngestDocuments(requests(), timeout=WAIT_S)]


def statuses(answers: Sequence[Any]) -> list[str]:
    return [knowledge_pb.IngestDocumentsResponse.Status.Name(answer.status) for answer in answers]


async def test_search_returns_passages_with_support_and_time(client: Client) -> None:
    found = await search_for(client, "Enterprise plan", collections=["billing"], top_k=1)

    (passage,) = found.passages
    assert passage.text == PLANS[passage.span.start : passage.span.end]
    assert (passage.uri, passage.collection, passage.marker) == ("plans.md", "billing", 0)
    assert passage.score > 0
    assert found.support == 1
    assert found.duration_ms > 0


async def test_search_takes_the_previous_message_along(client: Client) -> None:
    alone = await search_for(client, "paid")
    together = await search_for(client, "paid", previous_query="audit logs")

    assert {passage.uri for passage in alone.passages} == {"refunds.md"}
    assert {passage.uri for passage in together.passages} == {"refunds.md", "retention.md"}


async def test_search_for_nothing_that_is_there_finds_nothing(client: Client) -> None:
    found = await search_for(client, "zeppelins")

    assert (list(found.passages), found.support) == ([], 0)


async def test_an_invalid_search_names_its_fields(client: Client) -> None:
    failure = await failure_of(search_for(client, "", top_k=51))

    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failure.fields == ["query", "top_k"]


async def test_a_search_of_an_unknown_collection_names_it(client: Client) -> None:
    failure = await failure_of(search_for(client, "plan", collections=["bilings"]))

    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_COLLECTION")
    assert failure.detail(details_pb.ResourceInfo).resource_name == "bilings"


async def test_documents_are_answered_in_order_and_a_refused_one_ends_nothing(client: Client) -> None:
    answers = await ingest(
        client,
        document("new.md", "# New\n\nZeppelins fly.\n"),
        document("empty.md", ""),
        document("bad.md", "x", collection="No Such Name"),
        knowledge_pb.Document(),
        document("theirs.md", "x", access=conversation_pb.Access(tenant="umbrella")),
        document("big.md", "x" * (2 * 1024 * 1024 + 1)),
        document("new.md", "# New\n\nZeppelins fly.\n"),
        document("new.md", "# New\n\nZeppelins fly high.\n"),
    )

    assert [answer.position for answer in answers] == list(range(1, 9))
    assert statuses(answers) == [
        "STATUS_CREATED",
        *["STATUS_REJECTED"] * 5,
        "STATUS_UNCHANGED",
        "STATUS_REPLACED",
    ]
    assert [answer.uri for answer in answers] == [
        "new.md", "empty.md", "bad.md", "", "theirs.md", "big.md", "new.md", "new.md"
    ]  # fmt: skip
    for answer, field in zip(answers[1:6], ("text", "collection", "uri", "access.tenant", "text"), strict=True):
        assert f"document.{field}" in answer.problem
        assert not answer.HasField("document")
    for answer in (answers[0], *answers[6:]):
        assert not answer.problem
        assert answer.duration_ms >= 0
    assert answers[0].document.version == answers[6].document.version != answers[7].document.version
    assert {answers[n].document.id for n in (0, 6, 7)} == {answers[0].document.id}


async def test_an_ingested_document_is_durable_and_found_when_it_is_answered(client: Client) -> None:
    (answer,) = await ingest(client, document("new.md", "# New\n\nZeppelins fly.\n"))

    assert [p.document_id for p in (await search_for(client, "zeppelins")).passages] == [answer.document.id]
    assert (await get(client, answer.document.id)).text == "# New\n\nZeppelins fly.\n"
    assert answer.document.access == conversation_pb.Access(tenant="default")
    assert answer.document.characters == len("# New\n\nZeppelins fly.\n")


async def test_a_new_version_takes_the_place_of_the_old_one_in_answers(client: Client) -> None:
    await client.chat("Do you comply with GDPR?")
    await ingest(client, document("plans.md", PLANS.replace("1,200", "1,500")))

    events = await client.chat("What does the Enterprise plan cost?")

    assert "1,500" in text(events)
    assert "1,200" not in text(events)


async def test_an_answer_shows_a_document_while_its_ingestion_goes_on(client: Client) -> None:
    sent = asyncio.Event()

    async def requests() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
        yield knowledge_pb.IngestDocumentsRequest(document=document("a.md", "Zeppelins fly.\n"))
        await sent.wait()

    answers = aiter(client.knowledge.IngestDocuments(requests(), timeout=WAIT_S))
    first = await anext(answers)

    assert statuses([first]) == ["STATUS_CREATED"]
    assert (await search_for(client, "zeppelins")).passages
    sent.set()
    assert [answer async for answer in answers] == []


async def test_an_empty_ingestion_ends_with_nothing(client: Client) -> None:
    assert await ingest(client) == []


@pytest.mark.alone
async def test_a_document_as_large_as_allowed_goes_in_and_comes_out(client: Client) -> None:
    line = "\U0001f600 is a face, four bytes long, in a line of its own.\n\n"
    whole = line * (2 * 1024 * 1024 // len(line.encode()))

    (answer,) = await ingest(client, document("large.md", whole))

    assert statuses([answer]) == ["STATUS_CREATED"], answer.problem
    assert (await get(client, answer.document.id)).text == whole


async def test_a_message_over_four_mebibytes_is_refused_and_the_service_goes_on(client: Client) -> None:
    failure = await failure_of(ingest(client, document("huge.md", "x" * (4 * 1024 * 1024 + 1))))

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not failure.details(details_pb.ErrorInfo)
    assert (await search_for(client, "plan")).passages


async def test_documents_are_listed_by_pages_in_the_order_of_their_ids(client: Client) -> None:
    everything = list((await listed(client)).documents)
    assert [info.id for info in everything] == sorted(info.id for info in everything)
    assert {info.uri for info in everything} == set(TEXTS)

    paged: list[knowledge_pb.DocumentInfo] = []
    token, sizes = "", []
    while True:
        page = await listed(client, page_size=2, page_token=token)
        paged += page.documents
        sizes.append(len(page.documents))
        token = page.next_page_token
        if not token:
            break

    assert paged == everything
    assert sizes == [2, 2, 1]


async def test_a_last_page_that_is_full_is_the_last(client: Client) -> None:
    page = await listed(client, page_size=5)

    assert (len(page.documents), page.next_page_token) == (5, "")


async def test_the_documents_of_one_collection_are_listed(client: Client) -> None:
    assert {info.uri for info in (await listed(client, collection="policy")).documents} == {"gdpr.md", "retention.md"}
    assert not (await listed(client, collection="nothing-in-it")).documents


async def test_a_page_may_begin_after_a_document_that_is_gone(client: Client) -> None:
    first = await listed(client, page_size=2)
    await delete(client, first.documents[1].id)

    rest = await listed(client, page_token=first.next_page_token)

    assert len(rest.documents) == 3


async def test_a_page_that_is_too_large_is_refused(client: Client) -> None:
    failure = await failure_of(listed(client, page_size=201))

    assert failure.fields == ["page_size"]


@pytest.mark.parametrize("token", ["garbage", "x" * 10_000, "1", "ffffffff-ffff-ffff-ffff"])
async def test_a_page_token_that_the_service_never_gave_out_is_refused(client: Client, token: str) -> None:
    failure = await failure_of(listed(client, page_token=token))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == ["page_token"]


async def test_a_document_is_read_whole_in_its_current_version(client: Client) -> None:
    info = next(each for each in (await listed(client)).documents if each.uri == "gdpr.md")

    current, named = await get(client, info.id), await get(client, info.id, info.version)

    assert current == named
    assert current.document == info
    assert current.text == GDPR


async def test_another_version_than_the_current_one_is_not_found(client: Client) -> None:
    info = (await listed(client)).documents[0]

    failure = await failure_of(get(client, info.id, "0123456789abcdef"))

    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_DOCUMENT")
    assert failure.detail(details_pb.ResourceInfo).resource_type == "document"


@pytest.mark.parametrize("call", [get, delete], ids=["get", "delete"])
@pytest.mark.parametrize(
    "id_", ["00000000-0000-0000-0000-000000000000", "not-a-uuid", "x" * 50_000, "-" * 50_000 + "0" * 32, "*", "/etc"]
)
async def test_a_document_that_is_not_there_is_not_found(client: Client, call: Any, id_: str) -> None:
    failure = await failure_of(call(client, id_))

    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_DOCUMENT")
    assert failure.detail(details_pb.ResourceInfo).resource_name


@pytest.mark.parametrize("call", [get, delete], ids=["get", "delete"])
async def test_a_document_without_an_id_is_an_invalid_request(client: Client, call: Any) -> None:
    failure = await failure_of(call(client, ""))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == ["id"]


async def test_nothing_shows_a_deleted_document(client: Client) -> None:
    info = next(each for each in (await listed(client)).documents if each.uri == "gdpr.md")
    before = await client.chat("Do you comply with GDPR?")
    assert completed(before).outcome == conversation_pb.OUTCOME_ANSWERED

    gone = await delete(client, info.id)

    assert gone.passages == info.passages
    assert (await failure_of(get(client, info.id))).reason == "UNKNOWN_DOCUMENT"
    assert (await failure_of(delete(client, info.id))).reason == "UNKNOWN_DOCUMENT"
    assert not (await search_for(client, "GDPR")).passages
    assert info.id not in {each.id for each in (await listed(client)).documents}
    after = await client.chat("Do you comply with GDPR?", state=completed(before).state)
    assert completed(after).outcome == conversation_pb.OUTCOME_NO_EVIDENCE
    assert "GDPR" not in text(after)


# --- knowledge: while the service stops ---


@asynccontextmanager
async def knowledge_alone() -> AsyncIterator[tuple[KnowledgeServicer, Client]]:
    """The knowledge servicer without the rest of the service."""
    parts = parts_over(await filled())
    servicer = KnowledgeServicer(parts.searcher, parts.store, parts.pipeline)
    async with servicers(lambda server: knowledge_grpc.add_KnowledgeServiceServicer_to_server(servicer, server)) as one:
        yield servicer, one


async def test_an_ingestion_ends_after_the_document_in_hand_when_the_service_stops() -> None:
    async with knowledge_alone() as (servicer, client):
        call = client.knowledge.IngestDocuments(timeout=WAIT_S)
        await call.write(knowledge_pb.IngestDocumentsRequest(document=document("a.md", "Zeppelins fly.\n")))
        assert statuses([await call.read()]) == ["STATUS_CREATED"]

        servicer.drain()
        await call.write(knowledge_pb.IngestDocumentsRequest(document=document("b.md", "Zeppelins land.\n")))
        assert statuses([await call.read()]) == ["STATUS_CREATED"]
        failure = await failure_of(call.read())

    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert failure.detail(details_pb.RetryInfo).retry_delay.ToMilliseconds() > 0


async def test_no_ingestion_begins_while_the_service_stops() -> None:
    async with knowledge_alone() as (servicer, client):
        servicer.drain()

        failure = await failure_of(ingest(client, document("a.md", "Zeppelins fly.\n")))

        assert not (await search_for(client, "zeppelins")).passages
    await settled()
    assert failure.reason == "DRAINING"


async def test_an_ingestion_whose_caller_falls_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge_servicer, "INGEST_IDLE_S", 0.05)

    async def silence() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
        await asyncio.Event().wait()
        yield knowledge_pb.IngestDocumentsRequest()

    async with knowledge_alone() as (_, client):
        failure = await failure_of(anext(aiter(client.knowledge.IngestDocuments(silence(), timeout=WAIT_S))))

    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


# --- the server ---


async def test_health_says_serving_only_when_the_service_is_ready() -> None:
    async with serving(Shelf(), ready=False) as waiting:
        before = [await waiting.client.health(service) for service in ("", *SERVICES)]
        await waiting.server.ready()
        after = [await waiting.client.health(service) for service in ("", *SERVICES)]

    assert before == ["NOT_SERVING"] * 3
    assert after == ["SERVING"] * 3


async def test_health_of_a_service_that_is_none_is_not_found(client: Client) -> None:
    assert (await failure_of(client.health("answerdesk.v1.Nothing"))).code is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(client: Client) -> None:
    channel: Any = client.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="answerdesk.v1.AgentService")

    services, file = [reply async for reply in stub.ServerReflectionInfo(requests(), timeout=WAIT_S)]

    assert {service.name for service in services.list_services_response.service} == {
        "answerdesk.v1.AgentService",
        "answerdesk.v1.KnowledgeService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert file.file_descriptor_response.file_descriptor_proto


async def test_a_second_server_on_the_same_port_cannot_start(served: Served) -> None:
    taken = settings(listen=f"127.0.0.1:{served.client.port}")
    second = AgentServer(served.parts, taken)

    with pytest.raises(StartupError, match=rf"AGENT_LISTEN=127\.0\.0\.1:{served.client.port}"):
        await second.start()

    assert await served.client.health() == "SERVING"


async def test_a_stop_lets_the_running_turn_finish_and_takes_no_new_one() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held) as waiting:
        running = asyncio.create_task(waiting.client.chat("why?"))
        await asyncio.wait_for(held.started.wait(), WAIT_S)
        stub: Any = health_pb2_grpc.HealthStub(waiting.client.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]), timeout=WAIT_S)
        states = aiter(watch)
        assert (await anext(states)).status == health_pb2.HealthCheckResponse.SERVING

        stopping = asyncio.create_task(waiting.server.stop())
        assert (await anext(states)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        refused = await failure_of(waiting.client.chat("And why?"))
        assert not stopping.done()
        watch.cancel()
        held.release.set()

        events = await running
        await asyncio.wait_for(stopping, WAIT_S)
    assert kinds(events)[-1] == "completed"
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert refused.detail(details_pb.RetryInfo).retry_delay.ToMilliseconds() > 0


async def test_a_stop_interrupts_what_runs_beyond_the_time_to_drain() -> None:
    held = HeldAnswerer()
    async with serving(Shelf(), answerer=held, drain_s=0.0) as waiting:
        running = asyncio.create_task(waiting.client.chat("why?"))
        await asyncio.wait_for(held.started.wait(), WAIT_S)

        await asyncio.wait_for(waiting.server.stop(), WAIT_S)

        events = await running
    assert completed(events).status == conversation_pb.TURN_STATUS_INTERRUPTED
    assert completed(events).outcome == conversation_pb.OUTCOME_UNSPECIFIED


async def test_a_stopped_server_answers_nobody() -> None:
    async with serving(Shelf()) as one:
        await one.server.stop()
        failure = await failure_of(one.client.health())

    assert failure.code is grpc.StatusCode.UNAVAILABLE
