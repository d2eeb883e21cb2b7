"""What holds for every call: who calls, the request id, the error boundary, the log line."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service.errors import OverloadedError, StartupError
from agent_service.rpc.agent_servicer import AgentServicer
from agent_service.rpc.interceptors import LOCAL, LOOPBACK, CallInterceptor, caller_var
from agent_service.rpc.tokens import TokenVerifier
from agent_service.telemetry import JsonFormatter
from agent_service.types import (
    AgentInfo,
    AgentName,
    Caller,
    RequestId,
    Started,
    StoppedTurn,
    TurnEvent,
    TurnId,
    TurnRequest,
)
from tests.support.served import WAIT_S, Client, failure_of, on_one_loop, servicers, serving
from tests.support.shelf import Shelf
from tests.support.tokens import internal_token, key_pair

SECRET = "hunter2-planted"


class Log:
    """The log of the service as lines of JSON, as `configure_logging` writes it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(JsonFormatter())

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message"] == "call"]

    def call(self, method: str) -> dict[str, Any]:
        (line,) = (line for line in self.calls if line["method"].endswith(f"/{method}"))
        return line


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    logger = logging.getLogger("agent_service")
    before = logger.level
    logger.addHandler(log.handler)
    logger.setLevel(logging.INFO)
    yield log
    logger.removeHandler(log.handler)
    logger.setLevel(before)


class OpenTurns:
    """Turns that end as they are told: with an error, or never."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.cancelled = asyncio.Event()
        self.budgets: list[float | None] = []

    async def chat(self, request: TurnRequest, *, budget_s: float | None) -> AsyncGenerator[TurnEvent]:
        self.budgets.append(budget_s)
        try:
            yield TurnEvent(TurnId("t"), 1, Started(RequestId("r")))
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    def watch(
        self, caller: Caller, turn_id: TurnId, after_sequence: int, *, observer: bool
    ) -> AsyncGenerator[TurnEvent]:
        raise NotImplementedError

    async def stop(self, caller: Caller, turn_id: TurnId) -> StoppedTurn:
        raise NotImplementedError

    def agents(self) -> Sequence[AgentInfo]:
        if self.error is not None:
            raise self.error
        return ()

    def require(self, agent: AgentName) -> None:
        """Everybody is there."""


def adds(turns: OpenTurns) -> Any:
    return lambda server: pb_grpc.add_AgentServiceServicer_to_server(AgentServicer(turns, turns), server)


async def list_agents(client: Client, **metadata: str) -> pb.ListAgentsResponse:
    pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
    return await client.agent.ListAgents(pb.ListAgentsRequest(), metadata=pairs, timeout=WAIT_S)


async def chat(client: Client, metadata: tuple[tuple[str, str], ...], message: str = "why?") -> list[pb.ChatResponse]:
    request = pb.ChatRequest(message=message)
    return [event async for event in client.agent.Chat(request, metadata=metadata, timeout=WAIT_S)]


# --- the log line ---


@on_one_loop
async def test_a_call_has_one_line_with_method_code_time_and_request_id(log: Log) -> None:
    async with servicers(adds(OpenTurns())) as client:
        await list_agents(client, x_request_id="req-1")

    (line,) = log.calls
    assert line["method"] == "/answerdesk.v1.AgentService/ListAgents"
    assert line["code"] == "OK"
    assert line["duration_ms"] >= 0
    assert line["request_id"] == "req-1"
    assert line["level"] == "info"


@on_one_loop
async def test_a_streamed_call_has_one_line_with_the_same(log: Log) -> None:
    shelf = Shelf()
    await shelf.put("a.md", "# Plans\n\nThe Enterprise plan costs EUR 1,200.\n")
    async with serving(shelf) as served:
        events = await chat(served.client, (("x-request-id", "req-2"),), "What does the Enterprise plan cost?")

    assert events[-1].WhichOneof("event") == "completed"
    line = log.call("Chat")
    assert (line["code"], line["request_id"]) == ("OK", "req-2")


@on_one_loop
@pytest.mark.parametrize("given", ["", "not allowed", "x" * 129, "a/b", "a,b"])
async def test_a_request_id_that_is_none_is_replaced(log: Log, given: str) -> None:
    async with servicers(adds(OpenTurns())) as client:
        await list_agents(client, x_request_id=given)
        await list_agents(client)

    first, second = (line["request_id"] for line in log.calls)
    assert given != first != second
    assert len(first) >= 16


@on_one_loop
@pytest.mark.parametrize("given", ["a", "A-z_0.9", "x" * 128])
async def test_a_request_id_that_is_one_is_kept(log: Log, given: str) -> None:
    async with servicers(adds(OpenTurns())) as client:
        await list_agents(client, x_request_id=given)

    assert log.calls[0]["request_id"] == given


@on_one_loop
async def test_calls_at_the_same_time_keep_their_own_request_ids(log: Log) -> None:
    async with servicers(adds(OpenTurns())) as client:
        await asyncio.gather(*(list_agents(client, x_request_id=f"req-{n}") for n in range(20)))

    assert sorted(line["request_id"] for line in log.calls) == sorted(f"req-{n}" for n in range(20))


@on_one_loop
async def test_no_log_line_holds_a_question_an_answer_or_a_document(log: Log) -> None:
    shelf = Shelf()
    async with serving(shelf) as served:
        document = knowledge_pb.Document(uri="a.md", collection="billing", text=f"# T\n\nZeppelins of {SECRET} fly.\n")

        async def requests() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
            yield knowledge_pb.IngestDocumentsRequest(document=document)

        assert [answer async for answer in served.client.knowledge.IngestDocuments(requests(), timeout=WAIT_S)]
        assert await served.client.chat(f"Do zeppelins of {SECRET} fly?")
        search = knowledge_pb.SearchRequest(query=SECRET)
        assert (await served.client.knowledge.Search(search, timeout=WAIT_S)).passages
        await failure_of(served.client.chat(SECRET * 2_000))
        await failure_of(served.client.chat(SECRET, agent="nobody"))

    assert [line["code"] for line in log.calls] == ["OK", "OK", "OK", "INVALID_ARGUMENT", "NOT_FOUND"]
    assert SECRET not in log.stream.getvalue()


@on_one_loop
async def test_a_call_that_fails_is_logged_with_its_code(log: Log) -> None:
    async with servicers(adds(OpenTurns(OverloadedError("full")))) as client:
        await failure_of(list_agents(client, x_request_id="req-3"))
        await failure_of(chat(client, (("x-request-id", "req-4"),)))

    assert [(line["code"], line["request_id"]) for line in log.calls] == [
        ("UNAVAILABLE", "req-3"),
        ("UNAVAILABLE", "req-4"),
    ]


@on_one_loop
async def test_what_is_unforeseen_is_logged_by_kind_and_place_under_the_request_id(log: Log) -> None:
    async with servicers(adds(OpenTurns(RuntimeError(SECRET)))) as client:
        for failure in (
            await failure_of(list_agents(client, x_request_id="req-5")),
            await failure_of(chat(client, (("x-request-id", "req-6"),))),
        ):
            assert failure.message == "internal error"
            assert SECRET not in failure.everything

    errors = [line for line in log.lines if line["level"] == "error"]
    assert [line["request_id"] for line in errors] == ["req-5", "req-6"]
    assert all(line["exception"].endswith("builtins.RuntimeError") and ".py:" in line["exception"] for line in errors)
    assert SECRET not in str(log.lines)
    assert [line["code"] for line in log.calls] == ["INTERNAL", "INTERNAL"]


@on_one_loop
async def test_a_call_that_is_cancelled_reaches_the_turn_and_is_logged(log: Log) -> None:
    turns = OpenTurns()
    async with servicers(adds(turns)) as client:
        call = client.agent.Chat(pb.ChatRequest(message="why?"), metadata=(("x-request-id", "req-7"),), timeout=WAIT_S)
        await anext(aiter(call))

        call.cancel()

        await asyncio.wait_for(turns.cancelled.wait(), WAIT_S)
    line = log.call("Chat")
    assert (line["code"], line["request_id"]) == ("CANCELLED", "req-7")


@on_one_loop
async def test_a_deadline_that_passes_ends_the_turn_of_the_call(log: Log) -> None:
    turns = OpenTurns()
    async with servicers(adds(turns)) as client:
        failure = await failure_of(client.chat("why?", timeout_s=0.5))

        await asyncio.wait_for(turns.cancelled.wait(), WAIT_S)
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    (budget_s,) = turns.budgets
    assert budget_s is not None
    assert 0 < budget_s < 0.5, "what is left of the deadline, less a margin for the error's details"


@on_one_loop
async def test_a_call_without_a_deadline_has_no_budget(log: Log) -> None:
    turns = OpenTurns()
    async with servicers(adds(turns)) as client:
        call = client.agent.Chat(pb.ChatRequest(message="why?"))
        await anext(aiter(call))
        call.cancel()
        await asyncio.wait_for(turns.cancelled.wait(), WAIT_S)

    assert turns.budgets == [None]


# --- who calls ---


@on_one_loop
@pytest.mark.parametrize("token", ["Bearer x.y.z", "", "Basic dTpw"])
async def test_a_token_is_refused_where_none_can_be_verified(log: Log, token: str) -> None:
    async with servicers(adds(OpenTurns())) as client:
        failures = [
            await failure_of(list_agents(client, authorization=token)),
            await failure_of(chat(client, (("authorization", token),))),
        ]

    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert not token or token not in failure.everything
    assert not token or token not in log.stream.getvalue()
    assert [line["code"] for line in log.calls] == ["UNAUTHENTICATED", "UNAUTHENTICATED"]


@on_one_loop
async def test_a_token_is_refused_before_an_ingestion_reads_anything(log: Log) -> None:
    async with serving(Shelf()) as served:

        async def requests() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
            document = knowledge_pb.Document(uri="a.md", collection="billing", text="Zeppelins fly.\n")
            yield knowledge_pb.IngestDocumentsRequest(document=document)

        call = served.client.knowledge.IngestDocuments(
            requests(), metadata=(("authorization", "Bearer x"),), timeout=WAIT_S
        )
        failure = await failure_of(anext(aiter(call)))
        assert failure.reason == "UNAUTHENTICATED"
        assert await served.store.collections() == {}


PRIVATE, PUBLIC = key_pair()
VERIFIER = TokenVerifier(PUBLIC)


def given(authorization: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", authorization),)


def bearer(token: str = "", **changes: Any) -> tuple[tuple[str, str], ...]:
    return given(f"Bearer {token or internal_token(PRIVATE, **({'subject': 'ada'} | changes))}")


@on_one_loop
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_token_that_is_valid_is_taken(log: Log, scheme: str) -> None:
    async with servicers(adds(OpenTurns()), verifier=VERIFIER) as client:
        await list_agents(client, authorization=f"{scheme} {internal_token(PRIVATE, subject='ada')}")

    assert log.call("ListAgents")["code"] == "OK"


REFUSED: dict[str, tuple[Callable[[], tuple[tuple[str, str], ...]], str]] = {
    "expired": (lambda: bearer(exp=1), "the token has expired"),
    "another audience": (lambda: bearer(aud="x"), "the token is not valid"),
    "another key": (lambda: bearer(internal_token(key_pair()[0], subject="ada")), "the token is not valid"),
    "garbage": (lambda: bearer("x.y.z"), "the token is not valid"),
    "another scheme": (lambda: given("Basic dTpw"), "authorization must be given once"),
    "no scheme": (lambda: given(internal_token(PRIVATE, subject="ada")), "authorization must be given once"),
    "no token": (lambda: given("Bearer "), "authorization must be given once"),
    "nothing": (lambda: given(""), "authorization must be given once"),
    "twice the same": (lambda: bearer() * 2, "authorization must be given once"),
    "two callers": (lambda: (*bearer(), *bearer(subject="bob")), "authorization must be given once"),
}


@on_one_loop
@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_that_is_there_and_not_valid_is_refused_on_loopback_too(log: Log, case: str) -> None:
    make, says = REFUSED[case]
    metadata = make()
    turns = OpenTurns()
    async with servicers(adds(turns), verifier=VERIFIER) as client:
        failures = [
            await failure_of(client.agent.ListAgents(pb.ListAgentsRequest(), metadata=metadata, timeout=WAIT_S)),
            await failure_of(chat(client, metadata)),
        ]

    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert says in failure.message
    assert turns.budgets == []
    said = log.stream.getvalue() + "".join(failure.everything for failure in failures)
    assert not any(token in said for _, value in metadata if (token := value.rpartition(" ")[2]))
    assert [line["code"] for line in log.calls] == ["UNAUTHENTICATED", "UNAUTHENTICATED"]


@on_one_loop
async def test_the_log_says_what_is_wrong_with_a_token(log: Log) -> None:
    async with servicers(adds(OpenTurns()), verifier=VERIFIER) as client:
        await failure_of(chat(client, bearer(aud="x")))

    assert log.call("Chat")["cause"] == "InvalidAudienceError"


@on_one_loop
async def test_without_a_token_a_caller_of_this_machine_is_local_where_tokens_are_verified_too(log: Log) -> None:
    async with servicers(adds(OpenTurns()), verifier=VERIFIER) as client:
        await list_agents(client)

    assert log.call("ListAgents")["code"] == "OK"


@on_one_loop
async def test_callers_at_the_same_time_are_told_apart() -> None:
    callers: list[Caller] = []

    class Asked(OpenTurns):
        def agents(self) -> Sequence[AgentInfo]:
            callers.append(caller_var.get())
            return ()

    async with servicers(adds(Asked()), verifier=VERIFIER) as client:
        tokens = [internal_token(PRIVATE, subject=f"u{n}", tenant=f"t{n}", groups=[f"g{n}"]) for n in range(20)]
        await asyncio.gather(*(list_agents(client, authorization=f"Bearer {token}") for token in tokens))
        await list_agents(client)

    assert callers.pop() is LOCAL
    assert set(callers) == {Caller(f"u{n}", f"t{n}", (f"g{n}",)) for n in range(20)}


@on_one_loop
async def test_a_verify_key_that_is_none_keeps_the_service_from_starting() -> None:
    with pytest.raises(StartupError, match="AGENT_VERIFY_KEY"):
        async with serving(Shelf(), verify_key=PRIVATE):
            pass


@on_one_loop
@pytest.mark.parametrize(
    ("listen", "given", "warned"),
    [
        ("127.0.0.1:0", {}, False),
        ("localhost:0", {}, False),
        ("0.0.0.0:0", {}, True),
        ("0.0.0.0:0", {"verify_key": PUBLIC}, False),
    ],
)
async def test_a_service_that_listens_for_others_and_can_know_nobody_warns_once(
    log: Log, listen: str, given: dict[str, Any], warned: bool
) -> None:
    async with serving(Shelf(), listen=listen, **given):
        warnings = [line for line in log.lines if line["level"] == "warning"]

    assert ["AGENT_VERIFY_KEY" in line["message"] for line in warnings] == [True] * warned


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:127.0.0.1:5000",
        "ipv4:127.8.8.8:1",
        "ipv6:[::1]:5000",
        "ipv6:%5B::1%5D:5000",
        "ipv6:[::ffff:127.0.0.1]:5000",
        "ipv6:%5B::ffff:127.0.0.1%5D:5000",
        "unix:/run/agent.sock",
        "unix:",
    ],
)
def test_callers_of_this_machine_need_no_token(peer: str) -> None:
    assert LOOPBACK.match(peer)


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "ipv4:10.0.0.1:5000",
        "ipv4:192.168.127.1:1",
        "ipv4:12.7.0.1:1",
        "ipv6:[2001:db8::1]:5000",
        "ipv6:%5B2001:db8::1%5D:5000",
        "ipv6:[fe80::1]:1",
        "ipv6:[::ffff:10.0.0.1]:1",
        "ipv6:[::10.0.0.1]:1",
        "ipv6:[::12]:1",
        "ipv6:[::1234]:1",
        "ipv6:[::1:0]:1",
        "ipv6:%5B::1:2%5D:5000",
    ],
)
def test_callers_of_other_machines_do(peer: str) -> None:
    assert not LOOPBACK.match(peer)


class RemoteContext:
    """The context of a call from another machine, as far as the interceptor reads it."""

    def __init__(self, peer: str, *metadata: tuple[str, str]) -> None:
        self._peer = peer
        self._metadata = metadata
        self.aborted: Any = None

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def abort_with_status(self, status: Any) -> NoReturn:
        self.aborted = status
        raise grpc.aio.AbortError


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.1:5000", "ipv6:%5B2001:db8::1%5D:5000", ""])
async def test_a_call_from_another_machine_is_refused_before_its_handler_runs(log: Log, peer: str) -> None:
    ran = []

    async def handler(request: object, context: object) -> None:
        ran.append(request)

    async def continuation(details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(handler)

    details: Any = SimpleNamespace(method="/answerdesk.v1.AgentService/ListAgents", invocation_metadata=())
    context = RemoteContext(peer)
    wrapped: Any = await CallInterceptor().intercept_service(continuation, details)

    with pytest.raises(grpc.aio.AbortError):
        await wrapped.unary_unary(b"", context)

    assert context.aborted.code is grpc.StatusCode.UNAUTHENTICATED
    assert ran == []
    assert log.call("ListAgents")["code"] == "UNAUTHENTICATED"


async def test_a_call_from_another_machine_with_a_token_is_its_callers() -> None:
    callers = []

    async def handler(request: object, context: object) -> None:
        callers.append(caller_var.get())

    async def continuation(details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(handler)

    details: Any = SimpleNamespace(method="/answerdesk.v1.AgentService/ListAgents", invocation_metadata=())
    wrapped: Any = await CallInterceptor(VERIFIER).intercept_service(continuation, details)

    await wrapped.unary_unary(b"", RemoteContext("ipv4:10.0.0.1:5000", *bearer(tenant="acme")))
    with pytest.raises(grpc.aio.AbortError):
        await wrapped.unary_unary(b"", RemoteContext("ipv4:10.0.0.1:5000"))

    assert callers == [Caller("ada", "acme")]


# --- what passes through ---


@on_one_loop
async def test_health_checks_have_no_line_and_need_no_token(log: Log) -> None:
    async with serving(Shelf()) as served:
        stub: Any = health_pb2_grpc.HealthStub(served.client.channel)
        reply = await stub.Check(
            health_pb2.HealthCheckRequest(), metadata=(("authorization", "Bearer x"),), timeout=WAIT_S
        )

    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert log.calls == []


@on_one_loop
async def test_a_method_that_is_none_is_unimplemented(log: Log) -> None:
    async with servicers(adds(OpenTurns())) as client:
        call: Any = client.channel.unary_unary("/answerdesk.v1.AgentService/Sing")

        assert (await failure_of(call(b"", timeout=WAIT_S))).code is grpc.StatusCode.UNIMPLEMENTED


class AbortingServicer(pb_grpc.AgentServiceServicer):
    """A servicer that answers with a status of its own."""

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:  # noqa: N802
        yield pb.ChatResponse(sequence=1)
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "not kept")

    async def WatchTurn(self, request: pb.WatchTurnRequest, context: Any) -> AsyncIterator[pb.WatchTurnResponse]:  # noqa: N802
        yield pb.WatchTurnResponse(sequence=1)

    async def StopTurn(self, request: pb.StopTurnRequest, context: Any) -> pb.StopTurnResponse:  # noqa: N802
        return pb.StopTurnResponse()

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Any) -> pb.ListAgentsResponse:  # noqa: N802
        await context.abort(grpc.StatusCode.ABORTED, "busy")
        return pb.ListAgentsResponse()


@on_one_loop
async def test_a_status_that_a_handler_gave_is_kept(log: Log) -> None:
    async with servicers(
        lambda server: pb_grpc.add_AgentServiceServicer_to_server(AbortingServicer(), server)
    ) as client:
        unary = await failure_of(list_agents(client))
        stream = await failure_of(client.chat("why?"))

    assert (unary.code, unary.message) == (grpc.StatusCode.ABORTED, "busy")
    assert (stream.code, stream.message) == (grpc.StatusCode.OUT_OF_RANGE, "not kept")
    assert len(log.calls) == 2
    assert [line for line in log.lines if line["level"] == "error"] == []
