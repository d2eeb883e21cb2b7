from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from answerdesk.v1 import agent_service_pb2 as agent_pb
from answerdesk.v1 import conversation_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage
from hypothesis import given
from hypothesis import strategies as st

from agent_service.errors import InvalidRequestError
from agent_service.rpc import convert
from agent_service.rpc.convert import event_to_proto, turn_from_proto
from agent_service.types import (
    AgentInfo,
    AgentName,
    AgentSelected,
    CachedPassage,
    Caller,
    Citation,
    CollectionName,
    Completed,
    DocumentId,
    Event,
    Message,
    OnDisconnect,
    Outcome,
    Passage,
    PassageId,
    RequestId,
    Role,
    ScoredPassage,
    Source,
    Sources,
    Span,
    Stage,
    Started,
    State,
    Strategy,
    Token,
    Tool,
    ToolPhase,
    Trace,
    TurnEvent,
    TurnId,
    TurnRequest,
    TurnStatus,
    Usage,
)

CALLER = Caller("ada", "acme", ("staff",))
GRIN = "\U0001f600"  # one code point, four bytes, two UTF-16 units


def broken_fields(request: agent_pb.ChatRequest) -> list[str]:
    with pytest.raises(InvalidRequestError) as raised:
        turn_from_proto(request, CALLER)
    return [violation.field for violation in raised.value.violations]


def chat(**fields: Any) -> agent_pb.ChatRequest:
    return agent_pb.ChatRequest(**({"message": "why?"} | fields))


def unset(message: ProtoMessage) -> set[str]:
    """Fields without a value."""
    given = {field.name for field, _ in message.ListFields()}
    return {field.name for field in message.DESCRIPTOR.fields} - given


# --- requests ---


def test_a_message_alone_is_a_request_with_the_contracts_defaults() -> None:
    turn = turn_from_proto(agent_pb.ChatRequest(message="why?"), CALLER)

    assert turn == TurnRequest(request_id=RequestId(""), message="why?", caller=CALLER)
    assert turn.on_disconnect is OnDisconnect.CANCEL
    assert turn.grace_s == 30.0
    assert turn.max_output_tokens is None


def test_every_field_of_a_request_arrives() -> None:
    request = agent_pb.ChatRequest(
        request_id="r-1",
        message="And yearly?",
        history=[
            pb.Message(role=pb.ROLE_USER, content="What does it cost?"),
            pb.Message(role=pb.ROLE_ASSISTANT, content="EUR 29.", agent="billing"),
        ],
        agent="billing",
        state=pb.State(
            agent="billing", cached=[pb.CachedPassage(document_id="d", version="0123456789abcdef", passage_id="p")]
        ),
        on_disconnect=agent_pb.ON_DISCONNECT_DETACH,
        grace=Duration(seconds=2, nanos=500_000_000),
        limits=agent_pb.Limits(max_output_tokens=100),
    )
    assert not unset(request), "a new field: does the conversion know it?"

    assert turn_from_proto(request, CALLER) == TurnRequest(
        request_id=RequestId("r-1"),
        message="And yearly?",
        caller=CALLER,
        history=(Message(Role.USER, "What does it cost?"), Message(Role.ASSISTANT, "EUR 29.")),
        agent=AgentName("billing"),
        state=State(AgentName("billing"), (CachedPassage(DocumentId("d"), "0123456789abcdef", PassageId("p")),)),
        on_disconnect=OnDisconnect.DETACH,
        grace_s=2.5,
        max_output_tokens=100,
    )


@pytest.mark.parametrize(
    "request_",
    [
        chat(request_id="a" * 128),
        chat(request_id="A-z_0.9"),
        chat(message="x"),
        chat(message="x" * 8_000),
        chat(message=GRIN * 8_000),
        chat(message=" x "),
        chat(history=[pb.Message(role=pb.ROLE_USER, content="x")] * 200),
        chat(history=[pb.Message(role=pb.ROLE_USER, content=GRIN * 32_000)] * 8),
        chat(state=pb.State(cached=[pb.CachedPassage(passage_id="p")] * 32)),
        chat(grace=Duration(seconds=0)),
        chat(grace=Duration(seconds=600)),
        chat(limits=agent_pb.Limits(max_output_tokens=1)),
        chat(limits=agent_pb.Limits(max_output_tokens=32_768)),
        chat(on_disconnect=agent_pb.ON_DISCONNECT_CANCEL),
    ],
    ids=lambda request: f"{request.ListFields()[-1][0].name}-{request.ByteSize()}",
)
def test_a_request_at_its_bounds_is_taken(request_: agent_pb.ChatRequest) -> None:
    assert turn_from_proto(request_, CALLER).message == request_.message


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (chat(request_id="a" * 129), "request_id"),
        (chat(request_id="a b"), "request_id"),
        (chat(request_id="a\n"), "request_id"),
        (chat(request_id="é"), "request_id"),
        (agent_pb.ChatRequest(), "message"),
        (chat(message=" \n\t"), "message"),
        (chat(message="x" * 8_001), "message"),
        (chat(message=GRIN * 8_001), "message"),
        (chat(history=[pb.Message(role=pb.ROLE_USER, content="x")] * 201), "history"),
        (chat(history=[pb.Message(role=pb.ROLE_USER, content="x" * 32_000)] * 9), "history"),
        (chat(history=[pb.Message(content="x")]), "history[0].role"),
        (chat(history=[pb.Message(role=99, content="x")]), "history[0].role"),  # type: ignore[arg-type]
        (chat(history=[pb.Message(role=pb.ROLE_USER)]), "history[0].content"),
        (chat(history=[pb.Message(role=pb.ROLE_USER, content="x" * 32_001)]), "history[0].content"),
        (chat(state=pb.State(cached=[pb.CachedPassage(passage_id="p")] * 33)), "state.cached"),
        (chat(grace=Duration(seconds=600, nanos=1)), "grace"),
        (chat(grace=Duration(seconds=-1)), "grace"),
        (chat(grace=Duration(nanos=-1)), "grace"),
        (chat(on_disconnect=7), "on_disconnect"),
        (chat(limits=agent_pb.Limits(max_output_tokens=32_769)), "limits.max_output_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_beyond_a_bound_is_refused_by_the_fields_name(request_: agent_pb.ChatRequest, field: str) -> None:
    assert broken_fields(request_) == [field]


def test_every_broken_rule_of_a_request_is_told_at_once() -> None:
    request = agent_pb.ChatRequest(
        request_id="not allowed",
        history=[pb.Message(role=pb.ROLE_USER, content="x"), pb.Message()],
        grace=Duration(seconds=601),
    )

    fields = broken_fields(request)

    assert set(fields) == {"request_id", "message", "history[1].role", "history[1].content", "grace"}


def test_a_broken_request_is_told_without_its_text() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        turn_from_proto(chat(message="hunter2" * 2_000, request_id="hunter2 hunter2"), CALLER)

    assert "hunter2" not in str(raised.value)


def test_the_previous_user_message_is_the_last_one_that_the_user_said() -> None:
    history = [
        pb.Message(role=pb.ROLE_USER, content="first"),
        pb.Message(role=pb.ROLE_USER, content="second"),
        pb.Message(role=pb.ROLE_ASSISTANT, content="answer"),
    ]

    assert turn_from_proto(chat(history=history), CALLER).previous_user_message == "second"
    assert turn_from_proto(chat(), CALLER).previous_user_message == ""


@given(st.text(min_size=1, max_size=50), st.integers(1, 400))
def test_a_message_is_measured_in_code_points(piece: str, times: int) -> None:
    piece = piece.encode("utf-8", "replace").decode() + "x"
    message = piece * times

    request = chat(message=message)

    if len(message) <= 8_000:
        assert turn_from_proto(request, CALLER).message == message
    else:
        assert broken_fields(request) == ["message"]


# --- enums ---


def known(enum: Any, *but: str) -> set[int]:
    return {number for name, number in enum.items() if name not in but}


@pytest.mark.parametrize(
    ("table", "values", "keys"),
    [
        (convert.STRATEGIES, known(pb.Strategy), {None, *Strategy}),
        (convert.STATUSES, known(pb.TurnStatus, "TURN_STATUS_UNSPECIFIED"), set(TurnStatus)),
        (convert.OUTCOMES, known(pb.Outcome), {None, *Outcome}),
        (convert.PHASES, known(agent_pb.Tool.Phase, "PHASE_UNSPECIFIED"), set(ToolPhase)),
        ({v: k for k, v in convert.ROLES.items()}, known(pb.Role, "ROLE_UNSPECIFIED"), set(Role)),
    ],
    ids=["Strategy", "TurnStatus", "Outcome", "Phase", "Role"],
)
def test_the_tables_of_enums_are_total(table: dict[Any, int], values: set[int], keys: Collection[Any]) -> None:
    assert set(table) == keys
    assert set(table.values()) == values
    assert len(table) == len(values), "two names for one value"


@pytest.mark.parametrize("value", list(Strategy), ids=str)
def test_a_strategy_has_the_same_name_on_the_wire(value: Strategy) -> None:
    assert pb.Strategy.Name(convert.STRATEGIES[value]) == f"STRATEGY_{value.name}"


@pytest.mark.parametrize("value", list(Outcome), ids=str)
def test_an_outcome_has_the_same_name_on_the_wire(value: Outcome) -> None:
    assert pb.Outcome.Name(convert.OUTCOMES[value]) == f"OUTCOME_{value.name}"


@pytest.mark.parametrize("value", list(TurnStatus), ids=str)
def test_a_status_has_the_same_name_on_the_wire(value: TurnStatus) -> None:
    assert pb.TurnStatus.Name(convert.STATUSES[value]) == f"TURN_STATUS_{value.name}"


@pytest.mark.parametrize("value", list(ToolPhase), ids=str)
def test_a_phase_has_the_same_name_on_the_wire(value: ToolPhase) -> None:
    assert agent_pb.Tool.Phase.Name(convert.PHASES[value]) == f"PHASE_{value.name}"


def test_every_value_of_on_disconnect_is_taken() -> None:
    taken = {
        name: turn_from_proto(chat(on_disconnect=number), CALLER).on_disconnect
        for name, number in agent_pb.OnDisconnect.items()
    }

    assert taken == {
        "ON_DISCONNECT_UNSPECIFIED": OnDisconnect.CANCEL,
        "ON_DISCONNECT_CANCEL": OnDisconnect.CANCEL,
        "ON_DISCONNECT_DETACH": OnDisconnect.DETACH,
    }


# --- events ---

PASSAGE = Passage(
    id=PassageId("p"),
    document_id=DocumentId("d"),
    version="0123456789abcdef",
    collection=CollectionName("billing"),
    title="Plans",
    uri="billing/plans.md",
    heading="Plans > Pro",
    ordinal=3,
    span=Span(100, 100 + 600),
    text=GRIN * 600,
)
CITATION = Citation(
    marker=2,
    answer_span=Span(1, 9),
    passage=PASSAGE,
    heading="Plans > Pro > Price",
    source_span=Span(110, 114),
    quote=GRIN * 4,
)
TRACE = Trace(
    agent=AgentName("billing"),
    strategy=Strategy.HYBRID,
    reason="because",
    considered=(ScoredPassage(PASSAGE, 1.5),),
    used=(1, 2),
    cache_hit=True,
    stages=(Stage("model", 12.5, "billing", 7),),
    dropped_markers=3,
    agents=(AgentName("orchestrator"), AgentName("billing")),
    support=0.75,
    model="fallback",
    retries=2,
    removed_links=4,
)
COMPLETED = Completed(
    status=TurnStatus.COMPLETED,
    outcome=Outcome.ANSWERED,
    agent=AgentName("billing"),
    strategy=Strategy.HYBRID,
    citations=(CITATION,),
    usage=Usage(requests=2, input_tokens=30, cached_input_tokens=10, output_tokens=12),
    trace=TRACE,
    state=State(AgentName("billing"), (CachedPassage(DocumentId("d"), "0123456789abcdef", PassageId("p")),)),
)


def sent(event: Event) -> agent_pb.ChatResponse:
    return event_to_proto(TurnEvent(TurnId("t"), 4, event))


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (Started(RequestId("r")), "started"),
        (AgentSelected(AgentName("billing"), Strategy.RAG), "agent"),
        (Sources((Source(1, PASSAGE, 2.0),)), "sources"),
        (Token("a"), "token"),
        (Tool("search", "c", ToolPhase.COMPLETED), "tool"),
        (COMPLETED, "completed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_event_is_sent_whole_in_its_own_place(event: Event, name: str) -> None:
    response = sent(event)

    assert (response.turn_id, response.sequence) == ("t", 4)
    assert response.WhichOneof("event") == name
    assert not unset(getattr(response, name))


def test_there_is_an_event_for_every_kind_that_the_contract_knows() -> None:
    kinds = {field.name for field in agent_pb.ChatResponse.DESCRIPTOR.oneofs_by_name["event"].fields}

    assert kinds == {"started", "agent", "sources", "token", "tool", "completed"}


def test_the_event_of_an_agent_without_documents_has_no_strategy() -> None:
    assert sent(AgentSelected(AgentName("orchestrator"), None)).agent == agent_pb.AgentSelected(agent="orchestrator")


def test_a_source_is_sent_whole() -> None:
    passage = sent(Sources((Source(1, PASSAGE, 2.5),))).sources.passages[0]

    assert not unset(passage)
    assert passage == pb.Passage(
        marker=1,
        document_id="d",
        version="0123456789abcdef",
        title="Plans",
        uri="billing/plans.md",
        heading="Plans > Pro",
        span=pb.Span(start=100, end=700),
        text=GRIN * 600,
        score=2.5,
        collection="billing",
    )


def test_a_whole_document_is_shown_by_its_first_500_characters() -> None:
    document = replace(PASSAGE, id=PassageId("d"))

    passage = sent(Sources((Source(1, document),))).sources.passages[0]

    assert passage.text == GRIN * 500
    assert passage.span == pb.Span(start=100, end=700)


def test_a_citation_is_sent_whole() -> None:
    citation = convert.citation_to_proto(CITATION)

    assert unset(citation) == {"page"}, "0: Markdown has no pages"
    assert citation == pb.Citation(
        marker=2,
        answer_span=pb.Span(start=1, end=9),
        document_id="d",
        version="0123456789abcdef",
        title="Plans",
        uri="billing/plans.md",
        heading="Plans > Pro > Price",
        source_span=pb.Span(start=110, end=114),
        quote=GRIN * 4,
        collection="billing",
    )


def test_a_trace_is_sent_whole_but_for_the_texts_of_passages() -> None:
    trace = convert.trace_to_proto(TRACE)

    assert not unset(trace)
    assert trace.considered[0].text == ""
    assert trace.considered[0].score == 1.5
    assert trace.stages == [pb.Stage(name="model", agent="billing", duration_ms=12.5, tokens=7)]
    assert list(trace.agents) == ["orchestrator", "billing"]
    assert list(trace.used) == [1, 2]
    assert (trace.model, trace.retries, trace.removed_links) == ("fallback", 2, 4)


def test_a_trace_lists_at_most_fifty_passages_the_best_ones() -> None:
    hits = tuple(ScoredPassage(PASSAGE, float(100 - rank)) for rank in range(60))

    trace = convert.trace_to_proto(replace(TRACE, considered=hits))

    assert [passage.score for passage in trace.considered] == [100.0 - rank for rank in range(50)]


def test_usage_is_sent_with_its_total() -> None:
    assert convert.usage_to_proto(COMPLETED.usage) == pb.Usage(
        requests=2, input_tokens=30, cached_input_tokens=10, output_tokens=12, total_tokens=42
    )


def test_the_end_of_an_interrupted_turn_has_neither_outcome_nor_trace() -> None:
    end = Completed(TurnStatus.INTERRUPTED, None, AgentName("billing"), None)

    message = sent(end).completed

    assert message.status == pb.TURN_STATUS_INTERRUPTED
    assert message.outcome == pb.OUTCOME_UNSPECIFIED
    assert not message.HasField("trace")


@pytest.mark.parametrize("agent", [None, AgentName("billing")])
@pytest.mark.parametrize("entries", [0, 1, 32])
def test_the_state_comes_back_as_it_was_sent(agent: AgentName | None, entries: int) -> None:
    cached = tuple(CachedPassage(DocumentId(f"d{n}"), f"v{n}", PassageId(f"p{n}")) for n in range(entries))
    state = State(agent, cached)

    wire = pb.State.FromString(convert.state_to_proto(state).SerializeToString())

    assert turn_from_proto(chat(state=wire), CALLER).state == state


def test_a_state_that_is_sent_is_never_refused_for_its_size() -> None:
    cached = tuple(CachedPassage(DocumentId("d"), "v", PassageId(str(n))) for n in range(40))

    wire = convert.state_to_proto(State(AgentName("billing"), cached))

    assert turn_from_proto(chat(state=wire), CALLER).state.cached == cached[:32]


def test_an_agent_is_listed_whole() -> None:
    agent = AgentInfo(AgentName("policy"), "Answers.", Strategy.CAG, "offline", (CollectionName("policy"),), entry=True)

    message = convert.agent_to_proto(agent)

    assert not unset(message)
    assert message == agent_pb.Agent(
        name="policy",
        description="Answers.",
        strategy=pb.STRATEGY_CAG,
        model="offline",
        collections=["policy"],
        entry=True,
    )


@given(st.text(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_text_and_spans_cross_the_wire_unchanged(text: str, start: int, end: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    passage = replace(PASSAGE, text=text, span=Span(start, end))

    wire = pb.Passage.FromString(convert.passage_to_proto(passage).SerializeToString())

    assert (wire.text, wire.span.start, wire.span.end) == (text, start, end)
