"""Errors from where they are raised to what a client sees: both tables total, every error whole after the journey."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import error_reason_pb2
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb
from answerdesk.v1 import knowledge_service_pb2_grpc as knowledge_grpc
from google.rpc import error_details_pb2 as details_pb

from agent_service import errors
from agent_service.errors import AgentServiceError, FieldViolation
from agent_service.retrieval.search import Found
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.rpc.agent_servicer import AgentServicer
from agent_service.rpc.knowledge_servicer import KnowledgeServicer
from agent_service.rpc.status import CODES, DOMAIN, internal, to_status
from agent_service.rpc.turn_codec import ProtoTurnCodec
from agent_service.types import (
    AgentInfo,
    AgentName,
    Caller,
    CollectionName,
    DocumentId,
    DocumentInfo,
    Ingested,
    Question,
    RequestId,
    SourceDocument,
    Started,
    StoppedTurn,
    StoredDocument,
    TurnEvent,
    TurnId,
    TurnRequest,
)
from tests.conftest import ROOT
from tests.support.served import WAIT_S, Client, Failure, failure_of, on_one_loop, servicers

SECRET = "hunter2-sk-live-4711"

REASONS = frozenset(error_reason_pb2.ErrorReason.keys())
REGISTRY = ROOT / "protos/answerdesk/v1/error_reason.proto"


def subclasses(of: type[AgentServiceError]) -> Iterator[type[AgentServiceError]]:
    for each in of.__subclasses__():
        yield each
        yield from subclasses(each)


RAISED = sorted({each for each in subclasses(AgentServiceError) if hasattr(each, "reason")}, key=lambda e: e.__name__)
"""Every error with an identity of its own; the others only group these."""

PROMISED: dict[str, tuple[str, list[str]]] = {
    "INVALID_REQUEST": ("INVALID_ARGUMENT", ["BadRequest"]),
    "BUDGET_EXCEEDED": ("INVALID_ARGUMENT", ["BadRequest"]),
    "UNKNOWN_AGENT": ("NOT_FOUND", ["ResourceInfo"]),
    "UNKNOWN_DOCUMENT": ("NOT_FOUND", ["ResourceInfo"]),
    "UNKNOWN_COLLECTION": ("NOT_FOUND", ["ResourceInfo"]),
    "UNKNOWN_TURN": ("NOT_FOUND", ["ResourceInfo"]),
    "STORE_NOT_SHARED": ("FAILED_PRECONDITION", ["PreconditionFailure"]),
    "TURN_LOST": ("UNAVAILABLE", ["RetryInfo"]),
    "TURN_LOG_UNAVAILABLE": ("UNAVAILABLE", ["RetryInfo"]),
    "FOLLOWER_TOO_SLOW": ("UNAVAILABLE", ["RetryInfo"]),
    "COLLECTION_NOT_READY": ("FAILED_PRECONDITION", ["PreconditionFailure"]),
    "TURN_RUNNING": ("ABORTED", []),
    "INGEST_CONFLICT": ("ABORTED", []),
    "REQUEST_ID_REUSED": ("ALREADY_EXISTS", []),
    "SEQUENCE_EXPIRED": ("OUT_OF_RANGE", []),
    "RETRIEVAL_UNAVAILABLE": ("UNAVAILABLE", ["RetryInfo"]),
    "MODEL_UNAVAILABLE": ("UNAVAILABLE", ["RetryInfo"]),
    "OVERLOADED": ("UNAVAILABLE", ["RetryInfo"]),
    "DRAINING": ("UNAVAILABLE", ["RetryInfo"]),
    "MODEL_RATE_LIMITED": ("RESOURCE_EXHAUSTED", ["QuotaFailure", "RetryInfo"]),
    "MODEL_FAILED": ("INTERNAL", []),
    "INTERNAL": ("INTERNAL", []),
    "DEADLINE_EXCEEDED": ("DEADLINE_EXCEEDED", []),
    "UNAUTHENTICATED": ("UNAUTHENTICATED", []),
    "PERMISSION_DENIED": ("PERMISSION_DENIED", []),
}
"""ARCHITECTURE.md, "Errors": code, and details beside ErrorInfo, by reason."""


def example(kind: type[AgentServiceError]) -> AgentServiceError:
    """An error as the service raises it."""
    if issubclass(kind, errors.InvalidRequestError):
        return kind(FieldViolation("message", "must not be empty"), FieldViolation("grace", "must be 0 to 600 s"))
    if issubclass(kind, errors.CollectionNotReadyError):
        return kind("billing", "policy")
    if issubclass(kind, errors.RetryableError):
        return kind("not now", retry_after_s=2.5)
    return kind("x")


def kinds_of(error: AgentServiceError) -> list[str]:
    names = sorted(box.TypeName().removeprefix("google.rpc.") for box in to_status(error).details)
    names.remove("ErrorInfo")
    return names


# --- the tables ---


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_and_a_reason_on_the_wire(kind: type[AgentServiceError]) -> None:
    assert kind in CODES
    assert f"ERROR_REASON_{kind.reason}" in REASONS


def test_the_table_of_codes_has_no_row_without_an_error() -> None:
    assert set(CODES) == set(RAISED)


def test_no_two_errors_share_a_reason() -> None:
    assert len({kind.reason for kind in RAISED}) == len(RAISED)


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_error_carries_what_the_architecture_promises(kind: type[AgentServiceError]) -> None:
    assert (CODES[kind].name, kinds_of(example(kind))) == PROMISED[kind.reason]


def test_every_reason_of_the_registry_is_promised_a_code() -> None:
    registered = {name.removeprefix("ERROR_REASON_") for name in REASONS}

    assert registered - {"UNSPECIFIED"} == set(PROMISED)


def test_the_registry_documents_each_reason_with_its_code() -> None:
    documented = {
        name: comment
        for comment, name in re.findall(r"((?:\s*//[^\n]*\n)+)\s*ERROR_REASON_(\w+) = \d+;", REGISTRY.read_text())
    }

    assert set(documented) == {*PROMISED, "UNSPECIFIED"}
    for reason, (code, details) in PROMISED.items():
        assert code in documented[reason], reason
        for detail in details:
            if detail != "BadRequest" or reason == "INVALID_REQUEST":
                assert detail in documented[reason], reason


def test_a_startup_error_is_for_the_operator_and_never_on_the_wire() -> None:
    assert not issubclass(errors.StartupError, AgentServiceError)


def test_the_domain_errors_know_no_codes() -> None:
    words = Path(errors.__file__).read_text().split("class AgentServiceError", 1)[1]

    assert "grpc" not in words
    assert "StatusCode" not in words


# --- errors of other replicas ---


CODEC = ProtoTurnCodec()


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_an_error_of_another_replica_has_exactly_its_status(kind: type[AgentServiceError]) -> None:
    error = example(kind)

    replayed = CODEC.decode_failure(CODEC.encode_failure(error))

    assert to_status(replayed) == to_status(error)
    assert (replayed.reason, str(replayed)) == (error.reason, str(error))
    again = CODEC.decode_failure(CODEC.encode_failure(replayed))
    assert to_status(again) == to_status(error)


@pytest.mark.parametrize("payload", [b"", b"\xff\xff garbage", SECRET.encode()])
def test_what_is_no_status_of_another_replica_is_an_internal_error(payload: bytes) -> None:
    status = to_status(CODEC.decode_failure(payload))

    assert (status.code, status.message) == (internal().code, "internal error")
    assert kinds_of(CODEC.decode_failure(payload)) == []


def test_what_is_unforeseen_says_nothing_to_other_replicas() -> None:
    payload = CODEC.encode_failure(RuntimeError(SECRET))

    assert SECRET.encode() not in payload
    assert to_status(CODEC.decode_failure(payload)) == internal()


# --- the journey ---


@dataclass
class RaisingParts:
    """Everything that the two servicers take, failing with one error. `after`: a turn's events before it."""

    error: BaseException
    after: Sequence[TurnEvent] = field(default=())

    async def chat(self, request: TurnRequest, *, budget_s: float | None) -> AsyncGenerator[TurnEvent]:
        for event in self.after:
            yield event
        raise self.error

    async def watch(
        self, caller: Caller, turn_id: TurnId, after_sequence: int, *, observer: bool
    ) -> AsyncGenerator[TurnEvent]:
        for event in self.after:
            yield event
        raise self.error

    async def stop(self, caller: Caller, turn_id: TurnId) -> StoppedTurn:
        raise self.error

    def agents(self) -> Sequence[AgentInfo]:
        raise self.error

    def require(self, agent: AgentName) -> None:
        raise self.error

    async def search(self, question: Question, collections: Sequence[CollectionName], limit: int) -> Found:
        raise self.error

    async def ingest(self, document: SourceDocument) -> Ingested:
        raise self.error


class RaisingStore(InMemoryStore):
    """A store that fails with one error where documents are read."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    async def document(self, document_id: DocumentId, caller: Caller) -> StoredDocument | None:
        raise self._error

    async def delete(self, document_id: DocumentId, caller: Caller) -> int | None:
        raise self._error

    async def page(
        self,
        caller: Caller,
        *,
        collections: Sequence[CollectionName] = (),
        after: DocumentId | None = None,
        limit: int = 50,
    ) -> list[DocumentInfo]:
        raise self._error


STARTED = TurnEvent(TurnId("t"), 1, Started(RequestId("r")))
SOME_ID = "00000000-0000-0000-0000-000000000000"


async def chat(client: Client) -> None:
    await client.chat("why?")


async def chat_with_an_agent(client: Client) -> None:
    await client.chat("why?", agent="billing")


async def watch_turn(client: Client) -> None:
    async for _ in client.agent.WatchTurn(pb.WatchTurnRequest(turn_id="t"), timeout=WAIT_S):
        pass


async def stop_turn(client: Client) -> None:
    await client.agent.StopTurn(pb.StopTurnRequest(turn_id="t"), timeout=WAIT_S)


async def list_agents(client: Client) -> None:
    await client.agent.ListAgents(pb.ListAgentsRequest(), timeout=WAIT_S)


async def search(client: Client) -> None:
    await client.knowledge.Search(knowledge_pb.SearchRequest(query="why?"), timeout=WAIT_S)


async def ingest(client: Client) -> None:
    async def documents() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
        yield knowledge_pb.IngestDocumentsRequest(document=knowledge_pb.Document(uri="u", collection="c", text="x"))

    async for _ in client.knowledge.IngestDocuments(documents(), timeout=WAIT_S):
        pass


async def list_documents(client: Client) -> None:
    await client.knowledge.ListDocuments(knowledge_pb.ListDocumentsRequest(), timeout=WAIT_S)


async def get_document(client: Client) -> None:
    await client.knowledge.GetDocument(knowledge_pb.GetDocumentRequest(id=SOME_ID), timeout=WAIT_S)


async def delete_document(client: Client) -> None:
    await client.knowledge.DeleteDocument(knowledge_pb.DeleteDocumentRequest(id=SOME_ID), timeout=WAIT_S)


CALLS = [
    chat, chat_with_an_agent, watch_turn, stop_turn, list_agents, search, ingest, list_documents, get_document,
    delete_document,
]  # fmt: skip


async def journey(error: BaseException, call: object = chat, *, after: Sequence[TurnEvent] = ()) -> Failure:
    """What the client of a call sees of an error."""
    parts = RaisingParts(error, after)
    agent, knowledge = AgentServicer(parts, parts), KnowledgeServicer(parts, RaisingStore(error), parts)

    def add_agent(server: grpc.aio.Server) -> None:
        pb_grpc.add_AgentServiceServicer_to_server(agent, server)

    def add_knowledge(server: grpc.aio.Server) -> None:
        knowledge_grpc.add_KnowledgeServiceServicer_to_server(knowledge, server)

    async with servicers(add_agent, add_knowledge) as client:
        assert callable(call)
        return await failure_of(call(client))


@on_one_loop
@pytest.mark.parametrize("after", [(), (STARTED,)], ids=["before the first event", "after an event"])
@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
async def test_every_error_of_a_turn_arrives_whole(kind: type[AgentServiceError], after: Sequence[TurnEvent]) -> None:
    error = example(kind)

    failure = await journey(error, after=after)
    watched = await journey(error, watch_turn, after=after)
    replayed = await journey(CODEC.decode_failure(CODEC.encode_failure(error)), watch_turn, after=after)

    code, details = PROMISED[kind.reason]
    assert failure.code.name == code
    assert failure.message == str(error)
    assert failure.reason == kind.reason
    assert failure.kinds == sorted(["ErrorInfo", *details])
    assert failure.status == watched.status == replayed.status


@on_one_loop
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_an_error_arrives_whole_from_every_call(call: object) -> None:
    failure = await journey(errors.RetrievalUnavailableError("not now", retry_after_s=2.5), call)

    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.reason == "RETRIEVAL_UNAVAILABLE"
    assert failure.detail(details_pb.RetryInfo).retry_delay.ToMilliseconds() == 2_500


@on_one_loop
async def test_the_details_of_errors_arrive_with_their_content() -> None:
    invalid = await journey(example(errors.InvalidRequestError))
    unknown = await journey(errors.UnknownAgentError("biling"))
    not_ready = await journey(errors.CollectionNotReadyError("billing", "policy"))
    limited = await journey(errors.ModelRateLimitedError("slow down", retry_after_s=7))

    assert invalid.fields == ["message", "grace"]
    resource = unknown.detail(details_pb.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("agent", "biling")
    violations = not_ready.detail(details_pb.PreconditionFailure).violations
    assert [violation.subject for violation in violations] == ["billing", "policy"]
    assert limited.detail(details_pb.RetryInfo).retry_delay.seconds == 7
    assert len(limited.detail(details_pb.QuotaFailure).violations) == 1


def planted() -> list[BaseException]:
    chained = RuntimeError("outer")
    chained.__cause__ = ValueError(SECRET)
    return [
        RuntimeError(SECRET),
        KeyError(SECRET),
        OSError(2, "No such file", f"/srv/{SECRET}/key.pem"),
        chained,
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
        type(f"Error{SECRET.replace('-', '_')}", (Exception,), {})(SECRET),
        AssertionError(SECRET),
        NotImplementedError(SECRET),
        TimeoutError(SECRET),
    ]


@on_one_loop
@pytest.mark.parametrize("error", planted(), ids=lambda error: type(error).__mro__[1].__name__)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_what_is_unforeseen_says_nothing_outside(error: BaseException, call: object) -> None:
    failure = await journey(error, call)

    assert failure.code is grpc.StatusCode.INTERNAL
    assert failure.message == "internal error"
    assert failure.reason == "INTERNAL"
    assert failure.kinds == ["ErrorInfo"]
    assert SECRET not in failure.everything
    assert SECRET.replace("-", "_") not in failure.everything


@on_one_loop
async def test_what_is_unforeseen_in_the_middle_of_a_turn_says_nothing_outside() -> None:
    failure = await journey(RuntimeError(SECRET), after=(STARTED,))

    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in failure.everything


@on_one_loop
async def test_the_identity_of_an_error_has_the_services_domain() -> None:
    info = (await journey(errors.DeadlineError("late"))).detail(details_pb.ErrorInfo)

    assert (info.domain, info.reason) == (DOMAIN, "DEADLINE_EXCEEDED")


@on_one_loop
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "'", "\n"], ids=["x", "é", "grin", "quote", "newline"])
@pytest.mark.parametrize("length", [100, 400, 5_000, 100_000])
async def test_an_error_that_names_something_long_still_arrives_whole(length: int, character: str) -> None:
    # A client refuses trailers of more than 8 KiB (at random up to 16) and then sees neither code nor reason.
    for error in (errors.UnknownAgentError(character * length), errors.UnknownCollectionError(character * length)):
        failure = await journey(error)

        assert failure.code is grpc.StatusCode.NOT_FOUND
        assert failure.reason == error.reason
        assert failure.bytes_of_metadata < 8 * 1024


@on_one_loop
@pytest.mark.parametrize("number", [10, 400])
async def test_an_error_with_many_broken_rules_still_arrives_whole(number: int) -> None:
    violations = [FieldViolation(f"history[{n}].content", "must have 1 to 32000 characters") for n in range(number)]

    failure = await journey(errors.InvalidRequestError(*violations))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_REQUEST"
    assert failure.fields[0] == "history[0].content"
