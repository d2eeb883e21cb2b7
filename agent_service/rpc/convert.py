"""Between the messages of conversations and our types. Pure; validation of requests is here, policy is not."""

import re
from collections.abc import Sequence
from typing import Final

from answerdesk.v1 import agent_service_pb2 as agent_pb
from answerdesk.v1 import conversation_pb2 as pb

from agent_service.rpc.rules import Rules
from agent_service.types import (
    AgentInfo,
    AgentName,
    AgentSelected,
    CachedPassage,
    Caller,
    Citation,
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
    TurnRequest,
    TurnStatus,
    Usage,
)

MAX_MESSAGE: Final = 8_000
MAX_HISTORY: Final = 200
MAX_HISTORY_CHARACTERS: Final = 256_000
MAX_HISTORY_MESSAGE: Final = 32_000
MAX_CACHED: Final = 32
MAX_CONSIDERED: Final = 50
SNIPPET: Final = 500
"""Characters of a whole document (CAG) in an event: the reader gets an idea, not the collection."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{0,128}")

ROLES: Final = {pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT}
STRATEGIES: Final = {
    None: pb.STRATEGY_UNSPECIFIED,
    Strategy.RAG: pb.STRATEGY_RAG,
    Strategy.CAG: pb.STRATEGY_CAG,
    Strategy.HYBRID: pb.STRATEGY_HYBRID,
}
STATUSES: Final = {
    TurnStatus.RUNNING: pb.TURN_STATUS_RUNNING,
    TurnStatus.COMPLETED: pb.TURN_STATUS_COMPLETED,
    TurnStatus.STOPPED: pb.TURN_STATUS_STOPPED,
    TurnStatus.INTERRUPTED: pb.TURN_STATUS_INTERRUPTED,
    TurnStatus.FAILED: pb.TURN_STATUS_FAILED,
}
OUTCOMES: Final = {
    None: pb.OUTCOME_UNSPECIFIED,
    Outcome.ANSWERED: pb.OUTCOME_ANSWERED,
    Outcome.NO_EVIDENCE: pb.OUTCOME_NO_EVIDENCE,
    Outcome.REFUSED: pb.OUTCOME_REFUSED,
    Outcome.TRUNCATED: pb.OUTCOME_TRUNCATED,
}
PHASES: Final = {
    ToolPhase.STARTED: agent_pb.Tool.PHASE_STARTED,
    ToolPhase.COMPLETED: agent_pb.Tool.PHASE_COMPLETED,
    ToolPhase.FAILED: agent_pb.Tool.PHASE_FAILED,
}


def turn_from_proto(request: agent_pb.ChatRequest, caller: Caller) -> TurnRequest:
    """A validated turn.

    Raises:
        InvalidRequestError: with every broken rule.
    """
    rules = Rules()
    rules.hold(REQUEST_ID.fullmatch(request.request_id) is not None, "request_id", "must match [A-Za-z0-9._-]{1,128}")
    rules.text(request.message, "message", MAX_MESSAGE)
    _check_history(request.history, rules)
    rules.hold(len(request.state.cached) <= MAX_CACHED, "state.cached", f"must have at most {MAX_CACHED} entries")
    grace_s = request.grace.seconds + request.grace.nanos / 1e9 if request.HasField("grace") else 30.0
    rules.hold(0 <= grace_s <= 600, "grace", "must be 0 to 600 s")
    known = request.on_disconnect in agent_pb.OnDisconnect.values()
    rules.hold(known, "on_disconnect", "is not a known value")
    most = request.limits.max_output_tokens
    rules.hold(most <= 32_768, "limits.max_output_tokens", "must be 1 to 32768")
    rules.check()
    detach = request.on_disconnect == agent_pb.ON_DISCONNECT_DETACH
    return TurnRequest(
        request_id=RequestId(request.request_id),
        message=request.message,
        caller=caller,
        history=tuple(Message(ROLES[m.role], m.content) for m in request.history),
        agent=AgentName(request.agent) if request.agent else None,
        state=state_from_proto(request.state),
        on_disconnect=OnDisconnect.DETACH if detach else OnDisconnect.CANCEL,
        grace_s=grace_s,
        max_output_tokens=most or None,
    )


def _check_history(history: Sequence[pb.Message], rules: Rules) -> None:
    rules.hold(len(history) <= MAX_HISTORY, "history", f"must have at most {MAX_HISTORY} messages")
    characters = sum(len(message.content) for message in history)
    rules.hold(
        characters <= MAX_HISTORY_CHARACTERS, "history", f"must have at most {MAX_HISTORY_CHARACTERS} characters"
    )
    for place, message in enumerate(history[:MAX_HISTORY]):
        rules.hold(message.role in ROLES, f"history[{place}].role", "must be ROLE_USER or ROLE_ASSISTANT")
        fits = 1 <= len(message.content) <= MAX_HISTORY_MESSAGE
        rules.hold(fits, f"history[{place}].content", f"must have 1 to {MAX_HISTORY_MESSAGE} characters")


def state_from_proto(state: pb.State) -> State:
    """What a conversation keeps; ids that are none are simply not found later."""
    return State(
        agent=AgentName(state.agent) if state.agent else None,
        cached=tuple(
            CachedPassage(DocumentId(c.document_id), c.version, PassageId(c.passage_id)) for c in state.cached
        ),
    )


def event_to_proto(event: TurnEvent) -> agent_pb.ChatResponse:
    """One step of a turn."""
    response = agent_pb.ChatResponse(turn_id=event.turn_id, sequence=event.sequence)
    fill_event(response, event.event)
    return response


def fill_event(response: agent_pb.ChatResponse | agent_pb.WatchTurnResponse, event: Event) -> None:
    """Set the step of a response; those of all calls are the same."""
    match event:
        case Token(content):
            response.token.content = content
        case Started(request_id):
            response.started.request_id = request_id
        case AgentSelected(agent, strategy):
            response.agent.agent = agent
            response.agent.strategy = STRATEGIES[strategy]
        case Sources(sources):
            response.sources.passages.extend(map(source_to_proto, sources))
        case Tool(name, call_id, phase):
            response.tool.CopyFrom(agent_pb.Tool(name=name, call_id=call_id, phase=PHASES[phase]))
        case Completed():
            response.completed.CopyFrom(completed_to_proto(event))


def completed_to_proto(completed: Completed) -> agent_pb.Completed:
    """The end of a turn."""
    message = agent_pb.Completed(
        status=STATUSES[completed.status],
        outcome=OUTCOMES[completed.outcome],
        agent=completed.agent,
        strategy=STRATEGIES[completed.strategy],
        citations=map(citation_to_proto, completed.citations),
        usage=usage_to_proto(completed.usage),
        state=state_to_proto(completed.state),
    )
    if completed.trace is not None:
        message.trace.CopyFrom(trace_to_proto(completed.trace))
    return message


def span_to_proto(span: Span) -> pb.Span:
    """A span."""
    return pb.Span(start=span.start, end=span.end)


def passage_to_proto(passage: Passage, *, marker: int = 0, score: float = 0.0, text: str | None = None) -> pb.Passage:
    """A passage; `text` in place of its own where it is to be shorter."""
    return pb.Passage(
        marker=marker,
        document_id=passage.document_id,
        version=passage.version,
        title=passage.title,
        uri=passage.uri,
        heading=passage.heading,
        span=span_to_proto(passage.span),
        text=passage.text if text is None else text,
        score=score,
        collection=passage.collection,
    )


def source_to_proto(source: Source) -> pb.Passage:
    """A source; a whole document (it has the document's own id) is shown by its beginning."""
    whole = str(source.passage.id) == str(source.passage.document_id)
    text = source.passage.text[:SNIPPET] if whole else None
    return passage_to_proto(source.passage, marker=source.marker, score=source.score, text=text)


def citation_to_proto(citation: Citation) -> pb.Citation:
    """A checked citation."""
    passage = citation.passage
    return pb.Citation(
        marker=citation.marker,
        answer_span=span_to_proto(citation.answer_span),
        document_id=passage.document_id,
        version=passage.version,
        title=passage.title,
        uri=passage.uri,
        heading=citation.heading,
        source_span=span_to_proto(citation.source_span),
        quote=citation.quote,
        collection=passage.collection,
    )


def usage_to_proto(usage: Usage) -> pb.Usage:
    """Tokens used."""
    return pb.Usage(
        requests=usage.requests,
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
    )


def trace_to_proto(trace: Trace) -> pb.Trace:
    """How an answer came about; the texts of passages are left out."""
    return pb.Trace(
        agent=trace.agent,
        strategy=STRATEGIES[trace.strategy],
        reason=trace.reason,
        considered=[
            passage_to_proto(hit.passage, score=hit.score, text="") for hit in trace.considered[:MAX_CONSIDERED]
        ],
        used=trace.used,
        cache_hit=trace.cache_hit,
        stages=map(_stage_to_proto, trace.stages),
        dropped_markers=trace.dropped_markers,
        agents=trace.agents,
        support=trace.support,
        model=trace.model,
        retries=trace.retries,
        removed_links=trace.removed_links,
    )


def _stage_to_proto(stage: Stage) -> pb.Stage:
    return pb.Stage(name=stage.name, agent=stage.agent, duration_ms=stage.duration_ms, tokens=stage.tokens)


def state_to_proto(state: State) -> pb.State:
    """What a conversation keeps."""
    return pb.State(
        agent=state.agent or "",
        cached=[
            pb.CachedPassage(document_id=c.document_id, version=c.version, passage_id=c.passage_id)
            for c in state.cached[:MAX_CACHED]
        ],
    )


def agent_to_proto(agent: AgentInfo) -> agent_pb.Agent:
    """A member of the team."""
    return agent_pb.Agent(
        name=agent.name,
        description=agent.description,
        strategy=STRATEGIES[agent.strategy],
        model=agent.model,
        collections=agent.collections,
        entry=agent.entry,
    )
