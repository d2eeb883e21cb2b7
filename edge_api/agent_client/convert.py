"""Between the protocol's messages and the edge's own words. Pure functions."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as pb_conversation
from answerdesk.v1 import knowledge_service_pb2 as pb_knowledge
from google.protobuf.duration_pb2 import Duration

from edge_api.agent_client.events import (
    AgentSelected,
    Completed,
    JsonObject,
    NewDocument,
    Question,
    Said,
    SourcesOffered,
    Started,
    Stopped,
    TokenAdded,
    ToolCalled,
    TurnEvent,
    TurnId,
)
from edge_api.errors import DocumentRejectedError

ROLES = {"user": pb_conversation.ROLE_USER, "assistant": pb_conversation.ROLE_ASSISTANT}

STRATEGIES: Mapping[int, str] = {
    pb_conversation.STRATEGY_RAG: "rag",
    pb_conversation.STRATEGY_CAG: "cag",
    pb_conversation.STRATEGY_HYBRID: "hybrid",
}
OUTCOMES: Mapping[int, str] = {
    pb_conversation.OUTCOME_ANSWERED: "answered",
    pb_conversation.OUTCOME_NO_EVIDENCE: "no_evidence",
    pb_conversation.OUTCOME_REFUSED: "refused",
    pb_conversation.OUTCOME_TRUNCATED: "truncated",
}
# A status of the future is an end all the same: everything else is "completed".
ENDS: Mapping[int, str] = {
    pb_conversation.TURN_STATUS_STOPPED: "stopped",
    pb_conversation.TURN_STATUS_INTERRUPTED: "interrupted",
    pb_conversation.TURN_STATUS_FAILED: "failed",
}
PHASES: Mapping[int, str] = {
    pb.Tool.PHASE_STARTED: "started",
    pb.Tool.PHASE_COMPLETED: "completed",
    pb.Tool.PHASE_FAILED: "failed",
}

INGESTED: Mapping[int, str] = {
    pb_knowledge.IngestDocumentsResponse.STATUS_CREATED: "created",
    pb_knowledge.IngestDocumentsResponse.STATUS_REPLACED: "replaced",
    pb_knowledge.IngestDocumentsResponse.STATUS_UNCHANGED: "unchanged",
}


Step: TypeAlias = pb.ChatResponse | pb.WatchTurnResponse
"""The same fields under two names."""


def question_to_proto(question: Question, *, grace_s: float) -> pb.ChatRequest:
    """A question as it is sent. `grace_s`: how long its turn runs on without a follower; 0: not at all."""
    return pb.ChatRequest(
        request_id=question.request_id,
        message=question.message,
        history=map(_said_to_proto, question.history),
        agent=question.agent,
        state=pb_conversation.State.FromString(question.state) if question.state else None,
        on_disconnect=pb.ON_DISCONNECT_DETACH if grace_s else pb.ON_DISCONNECT_CANCEL,
        grace=_duration(grace_s) if grace_s else None,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1_000))
    return duration


def _said_to_proto(said: Said) -> pb_conversation.Message:
    return pb_conversation.Message(role=ROLES[said.role], content=said.content, agent=said.agent)


def event_from_proto(message: Step) -> TurnEvent | None:
    """One step of a turn; None for a step that this build does not know."""
    kind = message.WhichOneof("event")
    return READERS[kind](message) if kind else None


def _agent_selected(message: Step) -> AgentSelected:
    chosen = message.agent
    return AgentSelected(message.sequence, chosen.agent, STRATEGIES.get(chosen.strategy))


def _sources_offered(message: Step) -> SourcesOffered:
    return SourcesOffered(message.sequence, [passage_from_proto(each) for each in message.sources.passages])


def _tool_called(message: Step) -> ToolCalled:
    tool = message.tool
    return ToolCalled(message.sequence, tool.name, tool.call_id, PHASES.get(tool.phase))


def _completed(message: Step) -> Completed:
    done = message.completed
    return Completed(
        sequence=message.sequence,
        status=ENDS.get(done.status, "completed"),
        outcome=OUTCOMES.get(done.outcome),
        agent=done.agent,
        strategy=STRATEGIES.get(done.strategy),
        citations=[citation_from_proto(each) for each in done.citations],
        usage=_usage_from_proto(done.usage),
        trace=_trace_from_proto(done.trace),
        state=done.state.SerializeToString(),
    )


READERS: Mapping[str, Callable[[Step], TurnEvent]] = {
    "started": lambda message: Started(message.sequence, TurnId(message.turn_id)),
    "agent": _agent_selected,
    "sources": _sources_offered,
    "tool": _tool_called,
    "token": lambda message: TokenAdded(message.sequence, message.token.content),
    "completed": _completed,
}


def _span_from_proto(span: pb_conversation.Span) -> JsonObject:
    return {"start": span.start, "end": span.end}


def passage_from_proto(passage: pb_conversation.Passage) -> JsonObject:
    """A source or search hit."""
    return {
        "marker": passage.marker,
        "document_id": passage.document_id,
        "version": passage.version,
        "title": passage.title,
        "uri": passage.uri,
        "heading": passage.heading,
        "span": _span_from_proto(passage.span),
        "text": passage.text,
        "score": passage.score,
        "collection": passage.collection,
    }


def citation_from_proto(citation: pb_conversation.Citation) -> JsonObject:
    """A checked citation; `page` is None for formats without pages."""
    return {
        "marker": citation.marker,
        "answer_span": _span_from_proto(citation.answer_span),
        "document_id": citation.document_id,
        "version": citation.version,
        "title": citation.title,
        "uri": citation.uri,
        "heading": citation.heading,
        "source_span": _span_from_proto(citation.source_span),
        "page": citation.page or None,
        "quote": citation.quote,
        "collection": citation.collection,
    }


def _usage_from_proto(usage: pb_conversation.Usage) -> JsonObject:
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def _trace_from_proto(trace: pb_conversation.Trace) -> JsonObject:
    return {
        "agent": trace.agent,
        "strategy": STRATEGIES.get(trace.strategy),
        "reason": trace.reason,
        "considered": [passage_from_proto(each) for each in trace.considered],
        "used": list(trace.used),
        "cache_hit": trace.cache_hit,
        "stages": [
            {"name": each.name, "agent": each.agent, "duration_ms": each.duration_ms, "tokens": each.tokens}
            for each in trace.stages
        ],
        "dropped_markers": trace.dropped_markers,
        "agents": list(trace.agents),
        "support": trace.support,
        "model": trace.model,
        "retries": trace.retries,
        "removed_links": trace.removed_links,
    }


def stopped_from_proto(reply: pb.StopTurnResponse) -> Stopped:
    """How a turn has ended that was to be stopped."""
    return Stopped(ENDS.get(reply.status, "completed"), _usage_from_proto(reply.usage), reply.abort_ms)


def agent_from_proto(agent: pb.Agent) -> JsonObject:
    """A member of the team."""
    return {
        "name": agent.name,
        "description": agent.description,
        "strategy": STRATEGIES.get(agent.strategy),
        "model": agent.model,
        "collections": list(agent.collections),
        "entry": agent.entry,
    }


def search_from_proto(found: pb_knowledge.SearchResponse) -> JsonObject:
    """What a search found, best first."""
    return {
        "passages": [passage_from_proto(each) for each in found.passages],
        "support": found.support,
        "duration_ms": found.duration_ms,
    }


def document_to_proto(document: NewDocument) -> pb_knowledge.IngestDocumentsRequest:
    """A document to store; its tenant is that of the token."""
    return pb_knowledge.IngestDocumentsRequest(
        document=pb_knowledge.Document(
            uri=document.uri,
            collection=document.collection,
            title=document.title,
            text=document.text,
            access=pb_conversation.Access(groups=document.groups),
        )
    )


def ingested_from_proto(answer: pb_knowledge.IngestDocumentsResponse) -> JsonObject:
    """What became of a document, and what is known of it.

    Raises:
        DocumentRejectedError: nothing of it is stored.
    """
    if answer.status not in INGESTED:
        raise DocumentRejectedError(answer.problem or "the document was refused")
    return {"status": INGESTED[answer.status], **_info_from_proto(answer.document)}


def documents_from_proto(page: pb_knowledge.ListDocumentsResponse) -> JsonObject:
    """A page of documents, without their texts."""
    return {
        "documents": [_info_from_proto(each) for each in page.documents],
        "next_cursor": page.next_page_token or None,
    }


def document_from_proto(found: pb_knowledge.GetDocumentResponse) -> JsonObject:
    """A document, whole."""
    return {**_info_from_proto(found.document), "text": found.text}


def _info_from_proto(info: pb_knowledge.DocumentInfo) -> JsonObject:
    """What is known of a document. Who else may read it is said to nobody."""
    return {
        "id": info.id,
        "version": info.version,
        "title": info.title,
        "uri": info.uri,
        "collection": info.collection,
        "characters": info.characters,
        "passages": info.passages,
        "ingested_at": info.ingested_at.ToJsonString() if info.HasField("ingested_at") else None,
    }
