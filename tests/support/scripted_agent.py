"""A scripted agent service: the real protocol on a real port; what a test queues is what the next `Chat` gets.

It stands in for the neighbour of the edge and is spoken to over a real channel. Knowledge calls answer from the
attributes of `ScriptedAgent`; `Chat` answers from its queue, and with a short answer when that is empty.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from answerdesk.v1 import conversation_pb2 as pb_conversation
from answerdesk.v1 import knowledge_service_pb2 as pb_knowledge
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_knowledge_grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_status import rpc_status

AGENT_SERVICE = "answerdesk.v1.AgentService"
KNOWLEDGE_SERVICE = "answerdesk.v1.KnowledgeService"
MODEL_PART = "answerdesk.model"
TOOLS_PART = "answerdesk.tools"

TURN_ID = "11111111-2222-4333-8444-555555555555"
PRICE = "Enterprise costs 400 EUR a month."

Context: TypeAlias = Any
Step: TypeAlias = pb.ChatResponse | BaseException | Callable[[Context], Awaitable[None]] | status_pb2.Status
"""What a scripted turn does next: send this, raise this, await this, or end with this status."""


def status(
    code: grpc.StatusCode,
    reason: str = "",
    message: str = "scripted",
    *,
    retry_s: float | None = None,
    violations: Sequence[tuple[str, str]] = (),
    domain: str = "answerdesk",
) -> status_pb2.Status:
    """A status as the real service makes it; no reason: none of its details either."""
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=text) for name, text in violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    number: int = code.value[0]
    return status_pb2.Status(code=number, message=message, details=packed)


def passage(marker: int = 1, text: str = PRICE) -> pb_conversation.Passage:
    """A passage of the one document that there is."""
    return pb_conversation.Passage(
        marker=marker,
        document_id="doc-plans",
        version="0123456789abcdef",
        title="Plans",
        uri="billing/plans.md",
        heading="Plans > Enterprise",
        span=pb_conversation.Span(start=10, end=10 + len(text)),
        text=text,
        score=3.5,
        collection="billing",
    )


def state(agent: str = "billing") -> pb_conversation.State:
    """What lasts to the next turn."""
    cached = pb_conversation.CachedPassage(document_id="doc-plans", version="0123456789abcdef", passage_id="p-1")
    return pb_conversation.State(agent=agent, cached=[cached])


def completed(answer: str, **changes: Any) -> pb.Completed:
    """The end of an answered turn of the billing agent."""
    citation = pb_conversation.Citation(
        marker=1,
        answer_span=pb_conversation.Span(start=0, end=len(answer)),
        document_id="doc-plans",
        version="0123456789abcdef",
        title="Plans",
        uri="billing/plans.md",
        heading="Plans > Enterprise",
        source_span=pb_conversation.Span(start=10, end=10 + len(PRICE)),
        quote=PRICE,
        collection="billing",
    )
    trace = pb_conversation.Trace(
        agent="billing",
        strategy=pb_conversation.STRATEGY_HYBRID,
        reason="The question is about a price.",
        considered=[passage(text="")],
        used=[1],
        stages=[pb_conversation.Stage(name="retrieval", agent="billing", duration_ms=1.5)],
        agents=["orchestrator", "billing"],
        support=0.75,
        model="offline",
        retries=1,
        removed_links=2,
    )
    values: dict[str, Any] = {
        "status": pb_conversation.TURN_STATUS_COMPLETED,
        "outcome": pb_conversation.OUTCOME_ANSWERED,
        "agent": "billing",
        "strategy": pb_conversation.STRATEGY_HYBRID,
        "citations": [citation],
        "usage": pb_conversation.Usage(requests=1, input_tokens=20, output_tokens=7, total_tokens=27),
        "trace": trace,
        "state": state(),
    }
    return pb.Completed(**(values | changes))


def events(*kinds: pb.ChatResponse, turn_id: str = TURN_ID) -> list[pb.ChatResponse]:
    """Numbered from 1, and of one turn."""
    for number, event in enumerate(kinds, start=1):
        event.turn_id, event.sequence = turn_id, number
    return list(kinds)


def started() -> pb.ChatResponse:
    """The first step."""
    return pb.ChatResponse(turn_id=TURN_ID, sequence=1, started=pb.Started(request_id="r"))


def token(content: str, sequence: int = 2) -> pb.ChatResponse:
    """A piece of the answer."""
    return pb.ChatResponse(turn_id=TURN_ID, sequence=sequence, token=pb.Token(content=content))


def answer(*pieces: str, **changes: Any) -> list[pb.ChatResponse]:
    """A whole turn whose answer is made of `pieces`; `changes` are fields of its `completed`."""
    text = "".join(pieces)
    return events(
        pb.ChatResponse(started=pb.Started(request_id="r")),
        pb.ChatResponse(agent=pb.AgentSelected(agent="billing", strategy=pb_conversation.STRATEGY_HYBRID)),
        pb.ChatResponse(sources=pb.Sources(passages=[passage()])),
        pb.ChatResponse(tool=pb.Tool(name="price_of", call_id="c1", phase=pb.Tool.PHASE_STARTED)),
        *(pb.ChatResponse(token=pb.Token(content=piece)) for piece in pieces),
        pb.ChatResponse(completed=completed(text, **changes)),
    )


@dataclass
class Seen:
    """A `Chat` call as it arrived."""

    request: pb.ChatRequest
    metadata: dict[str, str]
    time_remaining_s: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0


class ScriptedAgent(pb_grpc.AgentServiceServicer, pb_knowledge_grpc.KnowledgeServiceServicer):
    """Both services of the protocol, and health."""

    def __init__(self) -> None:
        self.health = health_aio.HealthServicer()
        self.port = 0
        self.credentials: grpc.ServerCredentials | None = None
        self._server: grpc.aio.Server | None = None
        self.forget()

    def forget(self) -> None:
        """Begin again, without a script and without memory."""
        self.turns: deque[Sequence[Step]] = deque()
        self.calls: list[Seen] = []
        self.called = asyncio.Event()
        self.searches: list[pb_knowledge.SearchRequest] = []
        self.requests: dict[str, ScriptedTurn] = {}
        self.watches: list[pb.WatchTurnRequest] = []
        self.stops: list[pb.StopTurnRequest] = []
        self.names_turns_by_request = False
        self.cut_chats_after = 0
        self.unary_failure: status_pb2.Status | None = None
        self.unary_metadata: list[dict[str, str]] = []

    @property
    def target(self) -> str:
        """Where it listens, as EDGE_AGENT_TARGET."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; after a stop on the same port again."""
        server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000)]
        )
        pb_grpc.add_AgentServiceServicer_to_server(self, server)
        pb_knowledge_grpc.add_KnowledgeServiceServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        address = f"127.0.0.1:{self.port}"
        self.port = (
            server.add_secure_port(address, self.credentials) if self.credentials else server.add_insecure_port(address)
        )
        await self.serving()
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Cut every call and close the port."""
        if self._server:
            await self._server.stop(None)
            self._server = None

    async def serving(self, *services: str, value: bool = True) -> None:
        """Set the health of these services and parts; of all where none is named."""
        kind = health_pb2.HealthCheckResponse.SERVING if value else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in services or (AGENT_SERVICE, KNOWLEDGE_SERVICE, MODEL_PART, TOOLS_PART):
            await self.health.set(service, kind)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:  # noqa: N802
        """Does what the queue says, one step after the other; sent again with its request id, it attaches."""
        seen = Seen(request, dict(context.invocation_metadata()), context.time_remaining())
        self.calls.append(seen)
        self.called.set()
        turn = self.requests.get(request.request_id)
        if turn is None:
            steps = self.turns.popleft() if self.turns else answer(PRICE, " [1]")
            turn = self.requests[request.request_id] = ScriptedTurn(self, request, context)
            turn.begin(steps)
        try:
            async with aclosing(turn.follow(0, observer=False)) as steps_of_turn:
                async for step in steps_of_turn:
                    yield step
                    seen.sent += 1
                    if seen.sent == self.cut_chats_after:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            await turn.fail(context)
        finally:
            seen.ended.set()

    async def WatchTurn(  # noqa: N802
        self, request: pb.WatchTurnRequest, context: Context
    ) -> AsyncIterator[pb.WatchTurnResponse]:
        """Follows what `Chat` has started."""
        self.watches.append(request)
        turn = await self._turn(request.turn_id, context)
        if not turn.over.is_set() and request.after_sequence > len(turn.log):
            await context.abort_with_status(
                rpc_status.to_status(status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"))
            )
        async with aclosing(turn.follow(request.after_sequence, observer=request.observer)) as steps:
            async for step in steps:
                yield pb.WatchTurnResponse.FromString(step.SerializeToString())
        await turn.fail(context)

    async def StopTurn(self, request: pb.StopTurnRequest, context: Context) -> pb.StopTurnResponse:  # noqa: N802
        """Ends what `Chat` has started."""
        self.stops.append(request)
        turn = await self._turn(request.turn_id, context)
        running = not turn.over.is_set()
        await turn.abort(pb_conversation.TURN_STATUS_STOPPED)
        last = turn.log[-1] if turn.log else pb.ChatResponse()
        return pb.StopTurnResponse(
            status=last.completed.status,
            usage=last.completed.usage,
            abort_ms=1.5 if running else 0.0,
            last_sequence=last.sequence,
        )

    async def _turn(self, turn_id: str, context: Context) -> "ScriptedTurn":
        found = [turn for turn in self.requests.values() if turn.turn_id == turn_id]
        if not found:
            await context.abort_with_status(
                rpc_status.to_status(status(grpc.StatusCode.NOT_FOUND, "UNKNOWN_TURN", f"no turn {turn_id!r}"))
            )
        return found[-1]

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:  # noqa: N802
        """Two agents."""
        await self._unary(context)
        return pb.ListAgentsResponse(
            agents=[
                pb.Agent(name="orchestrator", description="Routes.", model="offline", entry=True),
                pb.Agent(
                    name="billing",
                    description="Plans and invoices.",
                    strategy=pb_conversation.STRATEGY_HYBRID,
                    model="offline",
                    collections=["billing"],
                ),
            ]
        )

    async def Search(  # noqa: N802
        self, request: pb_knowledge.SearchRequest, context: Context
    ) -> pb_knowledge.SearchResponse:
        """One passage."""
        self.searches.append(request)
        await self._unary(context)
        return pb_knowledge.SearchResponse(passages=[passage(marker=0)], support=0.5, duration_ms=2.5)

    async def GetDocument(  # noqa: N802
        self, request: pb_knowledge.GetDocumentRequest, context: Context
    ) -> pb_knowledge.GetDocumentResponse:
        """The one document, in its one version."""
        await self._unary(context)
        if request.id != "doc-plans" or request.version not in {"", "0123456789abcdef"}:
            failure = status(grpc.StatusCode.NOT_FOUND, "UNKNOWN_DOCUMENT", f"there is no document {request.id}")
            await context.abort_with_status(rpc_status.to_status(failure))
        info = pb_knowledge.DocumentInfo(
            id="doc-plans",
            version="0123456789abcdef",
            title="Plans",
            uri="billing/plans.md",
            collection="billing",
            access=pb_conversation.Access(tenant="default", groups=["secret-group"]),
            characters=10 + len(PRICE),
            passages=1,
        )
        info.ingested_at.FromSeconds(1_750_000_000)
        return pb_knowledge.GetDocumentResponse(document=info, text=f"# Plans\n\n {PRICE}")

    async def ListDocuments(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Not in this script."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)

    async def DeleteDocument(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Not in this script."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)

    async def IngestDocuments(  # noqa: N802
        self, request_iterator: Any, context: Context
    ) -> AsyncIterator[pb_knowledge.IngestDocumentsResponse]:
        """Not in this script."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)
        yield pb_knowledge.IngestDocumentsResponse()

    async def _unary(self, context: Context) -> None:
        self.unary_metadata.append(dict(context.invocation_metadata()))
        if self.unary_failure:
            await context.abort_with_status(rpc_status.to_status(self.unary_failure))


class ScriptedTurn:
    """A turn that outlives its calls, as those of the real service do."""

    def __init__(self, agent: ScriptedAgent, request: pb.ChatRequest, context: Context) -> None:
        self.turn_id = request.request_id if agent.names_turns_by_request else TURN_ID
        self.log: list[pb.ChatResponse] = []
        self.over = asyncio.Event()
        self.aborted = asyncio.Event()
        self.failure: BaseException | status_pb2.Status | None = None
        self._request = request
        self._context = context
        self._followers = 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None

    def begin(self, steps: Sequence[Step]) -> None:
        """Run the script."""
        self._task = asyncio.create_task(self._run(steps))

    async def follow(self, after: int, *, observer: bool) -> AsyncGenerator[pb.ChatResponse]:
        """The log from there on; the last follower who leaves it early may end it."""
        self._followers += not observer
        if self._grace is not None and not observer:
            self._grace.cancel()
        place = after
        try:
            while True:
                while place < len(self.log):
                    yield self.log[place]
                    place += 1
                if self.over.is_set():
                    return
                async with self._changed:
                    while place >= len(self.log) and not self.over.is_set():
                        await self._changed.wait()
        finally:
            self._followers -= not observer
            if not observer and not self._followers and not self.over.is_set():
                grace_s = self._request.grace.seconds if self._request.on_disconnect == pb.ON_DISCONNECT_DETACH else 0
                self._grace = asyncio.get_running_loop().call_later(grace_s, self._interrupt)

    async def fail(self, context: Context) -> None:
        """End a call as the script says."""
        if isinstance(self.failure, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(self.failure))
        elif self.failure is not None:
            raise self.failure

    async def abort(self, how: int) -> None:
        """End it with this status, unless it has ended."""
        if self._task is not None and not self.over.is_set():
            self._task.cancel()
            await asyncio.wait({self._task})
            if self.over.is_set():
                return
            self.aborted.set()
            end = completed("", outcome=None, citations=[], status=how)
            last = pb.ChatResponse(turn_id=self.turn_id, sequence=len(self.log) + 1, completed=end)
            await self._ended(last)

    def _interrupt(self) -> None:
        self._ending = asyncio.ensure_future(self.abort(pb_conversation.TURN_STATUS_INTERRUPTED))

    async def _run(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if isinstance(step, pb.ChatResponse):
                    named = pb.ChatResponse()
                    named.CopyFrom(step)
                    named.turn_id = self.turn_id
                    await self._append(named)
                elif isinstance(step, (BaseException, status_pb2.Status)):
                    self.failure = step
                    break
                else:
                    await step(self._context)
        except asyncio.CancelledError:
            raise
        except BaseException as err:  # noqa: BLE001 - what a step raised is how the call ends
            self.failure = err
        await self._ended()

    async def _append(self, step: pb.ChatResponse) -> None:
        async with self._changed:
            self.log.append(step)
            self._changed.notify_all()

    async def _ended(self, last: pb.ChatResponse | None = None) -> None:
        async with self._changed:
            if last is not None:
                self.log.append(last)
            self.over.set()
            self._changed.notify_all()


@asynccontextmanager
async def scripted_agent() -> AsyncIterator[ScriptedAgent]:
    """A scripted agent that listens."""
    agent = ScriptedAgent()
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()
