"""Hosted models over real HTTP: text on its way, hand-offs, usage, every way to fail, and a caller that leaves."""

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from agents import Agent, ModelResponse, ModelSettings, RunConfig, Runner, RunResult, set_tracing_disabled
from agents.models.interface import Model, ModelTracing

from agent_service.errors import (
    AgentServiceError,
    ModelFailedError,
    ModelRateLimitedError,
    ModelUnavailableError,
    RetryableError,
)
from agent_service.llm.patience import Patience
from agent_service.llm.providers import HostedModels
from agent_service.team.run import TeamAnswerer
from agent_service.team.spec import AgentSpec, Roster
from agent_service.types import Completed, Context, Outcome, Strategy, Token
from tests.support.answerers import REQUEST
from tests.support.briefings import FixedBriefing, ListEvents, ListSink, TrustingChecker, source, strategies
from tests.support.openai_server import Reply, ScriptedOpenAI
from tests.support.raw_provider import RawProvider, event_stream

# A guard against a hang; every wait ends at its event, far earlier.
GUARD_S = 10.0
# What a model's silence may cost in these tests.
SILENCE_S = 0.2
KEY = "sk-KEY-that-must-not-be-shown"
SECRET = "SECRET-of-the-provider"
APIS = ["responses", "chat_completions"]
PATHS = {"responses": "/v1/responses", "chat_completions": "/v1/chat/completions"}
# These tests are about single requests; test_hosted_model_retries.py has the others.
NOT_AGAIN = Patience(clock=lambda: math.inf)
NO_CONVERSATION: dict[str, Any] = {"previous_response_id": None, "conversation_id": None, "prompt": None}


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The SDK's tracing would send what it sees to api.openai.com.
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    set_tracing_disabled(True)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


@dataclass
class Hosted:
    """A model of one of the APIs, and the sink it writes to."""

    models: HostedModels
    sink: ListSink

    @property
    def model(self) -> Model:
        return self.models.for_turn(FixedBriefing(), self.sink).get_model(None)

    async def ask(self, *, max_tokens: int | None = None) -> ModelResponse:
        settings = ModelSettings(max_tokens=max_tokens, include_usage=True)
        question: list[Any] = [{"role": "user", "content": "What does it cost?"}]
        call = self.model.get_response(
            "You answer.", question, settings, [], None, [], ModelTracing.DISABLED, **NO_CONVERSATION
        )
        return await asyncio.wait_for(call, GUARD_S)

    async def fail(self) -> AgentServiceError:
        """What asking fails with; none of the errors may show what the provider or our configuration said."""
        with pytest.raises(AgentServiceError) as caught:
            await self.ask()
        assert SECRET not in str(caught.value)
        assert KEY not in str(caught.value)
        return caught.value

    async def run(self, agent: Agent[Any]) -> RunResult:
        config = RunConfig(model_provider=self.models.for_turn(FixedBriefing(), self.sink), tracing_disabled=True)
        return await asyncio.wait_for(Runner.run(agent, "What does it cost?", run_config=config), GUARD_S)


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Hosted]]:
    opened: list[HostedModels] = []

    def connect(base_url: str, api: str, *, timeout_s: float = GUARD_S) -> Hosted:
        models = HostedModels(
            api_key=KEY, base_url=base_url, api=api, default_model="small", timeout_s=timeout_s, patience=NOT_AGAIN
        )
        opened.append(models)
        return Hosted(models, ListSink())

    yield connect
    for models in opened:
        await models.close()


@pytest.fixture
def hosted(server: ScriptedOpenAI, api: str, connect: Callable[..., Hosted]) -> Hosted:
    return connect(server.base_url, api)


def text_of(response: ModelResponse) -> str:
    return "".join(part.text for item in response.output for part in getattr(item, "content", []))


# --- text ---


async def test_text_arrives_in_order_and_the_response_is_the_same(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.text("It costs 40 EUR [1].", pieces=["It ", "co", "sts 40", " EUR [1]", "."]))

    response = await hosted.ask()

    assert hosted.sink.text == "It costs 40 EUR [1]."
    assert text_of(response) == hosted.sink.text
    assert hosted.sink.answered == [("small", 0)]
    assert hosted.sink.outcomes == []


async def test_text_is_in_the_sink_while_the_model_is_still_writing(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.hang(after_pieces=2))
    call = asyncio.create_task(hosted.ask())

    await asyncio.wait_for(hosted.sink.written.wait(), GUARD_S)

    assert not call.done()
    assert hosted.sink.text.startswith("piece1 ")
    call.cancel()
    await asyncio.wait({call})


async def test_the_request_goes_to_the_chosen_api_and_streams(server: ScriptedOpenAI, hosted: Hosted, api: str) -> None:
    server.script(Reply.text("Forty."))

    await hosted.ask(max_tokens=50)

    (request,) = server.requests
    assert (request.path, request.stream, request.body["model"]) == (PATHS[api], True, "small")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert 50 in {request.body.get("max_output_tokens"), request.body.get("max_tokens")}


async def test_a_model_named_by_the_roster_is_asked_for(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.text("Forty."))

    await hosted.run(Agent(name="billing", model="large"))

    assert server.requests[0].body["model"] == "large"
    assert hosted.models.default_model == "small"


async def test_usage_is_what_the_provider_counted(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.text("Forty.").with_usage(120, 7))

    usage = (await hosted.ask()).usage

    assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.total_tokens) == (1, 120, 7, 127)


async def test_an_empty_answer_writes_nothing_and_is_no_error(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.text(""))

    assert text_of(await hosted.ask()) == ""
    assert hosted.sink.pieces == []


async def test_text_that_is_not_ascii_arrives_whole(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.text("Café 漢字 🙂 [1]."))

    await hosted.ask()

    assert hosted.sink.text == "Café 漢字 🙂 [1]."


# --- hand-offs ---


async def test_a_hand_off_call_comes_back_and_writes_nothing(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.handoff("transfer_to_billing"))

    response = await hosted.ask()

    assert [getattr(item, "name", "") for item in response.output] == ["transfer_to_billing"]
    assert hosted.sink.pieces == []


async def test_the_runner_follows_a_hand_off_with_one_request_per_model_call(
    server: ScriptedOpenAI, hosted: Hosted
) -> None:
    server.script(Reply.handoff("transfer_to_billing"), Reply.text("Forty."))
    billing = Agent[Any](name="billing")

    result = await hosted.run(Agent(name="orchestrator", handoffs=[billing]))

    assert result.last_agent is billing
    assert result.final_output == hosted.sink.text == "Forty."
    assert len(server.requests) == 2


async def test_a_team_answers_over_http_with_citations_and_summed_usage(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(
        Reply.handoff("transfer_to_billing").with_usage(100, 3), Reply.text("It costs 40 EUR [1].").with_usage(200, 9)
    )

    end, events = await answered_by_a_team(hosted.models)

    assert (end.outcome, end.agent) == (Outcome.ANSWERED, "billing")
    assert [citation.marker for citation in end.citations] == [1]
    assert (end.usage.requests, end.usage.input_tokens, end.usage.output_tokens) == (2, 300, 12)
    assert "".join(e.content for e in events.events if isinstance(e, Token)) == "It costs 40 EUR [1]."


async def test_a_team_sends_a_compatible_server_nothing_that_only_openai_knows(
    server: ScriptedOpenAI, hosted: Hosted
) -> None:
    """Servers that only speak the protocol refuse parameters of OpenAI's reasoning models."""
    server.script(Reply.handoff("transfer_to_billing"), Reply.text("It costs 40 EUR [1]."))

    await answered_by_a_team(hosted.models)

    for request in server.requests:
        assert request.body.keys().isdisjoint({"reasoning", "reasoning_effort", "verbosity", "text", "include"})


async def test_a_team_ends_a_refusal_as_refused(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.handoff("transfer_to_billing").with_usage(100, 3), Reply.refusal("No.").with_usage(10, 1))

    end, events = await answered_by_a_team(hosted.models)

    assert end.outcome is Outcome.REFUSED
    assert Token("No.") in events.events
    assert (end.usage.requests, end.usage.total_tokens) == (2, 114)


async def test_a_team_ends_a_cut_answer_as_truncated(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.handoff("transfer_to_billing"), Reply.length("It costs 40 EUR [1] and").with_usage(10, 2048))

    end, _ = await answered_by_a_team(hosted.models)

    assert end.outcome is Outcome.TRUNCATED


async def answered_by_a_team(models: HostedModels) -> tuple[Completed, ListEvents]:
    specs = (
        AgentSpec(name="orchestrator", description="Routes.", instructions="o.md", hands_off_to=("billing",)),
        AgentSpec(name="billing", description="Money.", instructions="b.md", collections=("b",), strategy=Strategy.RAG),
    )
    roster = Roster(entry="orchestrator", agents=specs, prompts={"orchestrator": "Route.", "billing": "Answer."})
    context = Context(Strategy.RAG, (source(1),))
    events = ListEvents()
    team = TeamAnswerer(roster, models, strategies({"billing": context}), TrustingChecker())
    await asyncio.wait_for(team.answer(REQUEST, events), GUARD_S)
    end = events.events[-1]
    assert isinstance(end, Completed)
    return end, events


# --- answers that are not ordinary ---


async def test_a_refusal_is_written_and_told_as_refused(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.refusal("I will not."))

    await hosted.ask()

    assert hosted.sink.text == "I will not."
    assert hosted.sink.outcome is Outcome.REFUSED


async def test_an_answer_cut_by_the_limit_is_told_as_truncated(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.length("cut text").with_usage(10, 16))

    await hosted.ask(max_tokens=16)

    assert hosted.sink.text == "cut text"
    assert hosted.sink.outcome is Outcome.TRUNCATED


async def test_an_answer_cut_by_a_limit_of_the_providers_own_is_truncated(
    server: ScriptedOpenAI, hosted: Hosted
) -> None:
    """A full context window ends an answer before our limit; the finish reason says so."""
    server.script(Reply.length("cut text").with_usage(10, 5))

    await hosted.ask(max_tokens=1000)

    assert hosted.sink.outcome is Outcome.TRUNCATED


async def test_a_limit_used_up_before_any_text_is_truncated(server: ScriptedOpenAI, hosted: Hosted) -> None:
    """A reasoning model may think until nothing is left."""
    server.script(Reply.length("").with_usage(10, 16))

    await hosted.ask(max_tokens=16)

    assert hosted.sink.outcome is Outcome.TRUNCATED


async def test_an_answer_that_just_fits_the_limit_is_not_truncated(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.text("It costs 40 EUR [1].").with_usage(10, 16))

    await hosted.ask(max_tokens=16)

    assert hosted.sink.outcome is None


# --- failures: one request, a defined error, none of the provider's words ---


@pytest.mark.parametrize(
    ("given", "expected"), [(7.0, 7.0), (None, 1.0), (0.0, 1.0), (3600.0, 600.0)], ids=["7", "none", "0", "an hour"]
)
async def test_a_rate_limit_says_when_to_come_back(
    server: ScriptedOpenAI, hosted: Hosted, given: float | None, expected: float
) -> None:
    server.script(Reply.error(429, retry_after_s=given))

    error = await hosted.fail()

    assert isinstance(error, ModelRateLimitedError)
    assert error.retry_after_s == expected
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["Fri, 20 Nov 2020 10:00:00 GMT", "soon", "nan", "-5"])
async def test_a_retry_after_that_makes_no_sense_is_a_second(
    api: str, connect: Callable[..., Hosted], value: str
) -> None:
    async with RawProvider("{}", status=429, headers={"Retry-After": value}) as provider:
        error = await connect(provider.base_url, api).fail()

    assert isinstance(error, ModelRateLimitedError)
    assert error.retry_after_s == 1.0


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_a_server_error_is_unavailable_after_one_request(
    server: ScriptedOpenAI, hosted: Hosted, status: int
) -> None:
    server.script(Reply.error(status))

    error = await hosted.fail()

    assert isinstance(error, ModelUnavailableError)
    assert isinstance(error, RetryableError)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refused_request_has_failed_after_one_request(
    server: ScriptedOpenAI, hosted: Hosted, status: int
) -> None:
    server.script(Reply.error(status))

    assert isinstance(await hosted.fail(), ModelFailedError)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_what_the_provider_says_in_an_error_is_not_repeated(
    api: str, connect: Callable[..., Hosted], status: int
) -> None:
    body = json.dumps({"error": {"message": f"{SECRET} {KEY}", "type": SECRET, "code": SECRET, "param": SECRET}})
    async with RawProvider(body, status=status) as provider:
        await connect(provider.base_url, api).fail()

        assert provider.requests == 1


async def test_an_error_page_that_is_not_json_is_unavailable(api: str, connect: Callable[..., Hosted]) -> None:
    headers = {"Content-Type": "text/html"}
    async with RawProvider(f"<h1>{SECRET}</h1>", status=502, headers=headers) as provider:
        assert isinstance(await connect(provider.base_url, api).fail(), ModelUnavailableError)


async def test_nobody_there_is_unavailable(api: str, connect: Callable[..., Hosted]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    assert isinstance(await connect(f"http://127.0.0.1:{port}/v1", api).fail(), ModelUnavailableError)


@pytest.mark.parametrize("pieces", [0, 2], ids=["at once", "after some text"])
async def test_silence_is_unavailable_after_the_time_out(
    server: ScriptedOpenAI, api: str, connect: Callable[..., Hosted], pieces: int
) -> None:
    server.script(Reply.hang(after_pieces=pieces))
    hosted = connect(server.base_url, api, timeout_s=SILENCE_S)

    assert isinstance(await hosted.fail(), ModelUnavailableError)
    assert hosted.sink.text == "piece1 piece2 "[: 7 * pieces]
    assert len(server.requests) == 1


@pytest.mark.parametrize("pieces", [0, 2], ids=["at once", "after some text"])
async def test_a_connection_that_breaks_is_unavailable_and_not_tried_again(
    server: ScriptedOpenAI, hosted: Hosted, pieces: int
) -> None:
    server.script(Reply.disconnect(after_pieces=pieces))

    assert isinstance(await hosted.fail(), ModelUnavailableError)
    assert hosted.sink.text == "piece1 piece2 "[: 7 * pieces]
    assert len(server.requests) == 1


@pytest.mark.parametrize("pieces", [0, 2], ids=["at once", "after some text"])
async def test_a_stream_that_ends_too_early_is_not_taken_for_a_whole_answer(
    server: ScriptedOpenAI, hosted: Hosted, pieces: int
) -> None:
    """A proxy that times out ends the body properly; the events that end an answer never came."""
    server.script(Reply.truncated(after_pieces=pieces))

    assert isinstance(await hosted.fail(), ModelUnavailableError)
    assert len(server.requests) == 1


@pytest.mark.parametrize("pieces", [0, 2], ids=["at once", "after some text"])
async def test_json_that_breaks_off_is_a_defined_error(server: ScriptedOpenAI, hosted: Hosted, pieces: int) -> None:
    server.script(Reply.malformed(after_pieces=pieces))

    assert isinstance(await hosted.fail(), (ModelFailedError, ModelUnavailableError))
    assert len(server.requests) == 1


NONSENSE = {
    "a number": event_stream("5"),
    "null": event_stream("null"),
    "a list": event_stream("[]"),
    "an end without a response": event_stream('{"type":"response.completed","sequence_number":0}'),
    "an end with nonsense": event_stream('{"type":"response.completed","sequence_number":0,"response":"x"}'),
    "choices that are null": event_stream('{"id":"c","object":"chat.completion.chunk","choices":null}'),
    "a choice without a delta": event_stream('{"id":"c","object":"chat.completion.chunk","choices":[{"index":0}]}'),
    "an error": event_stream(json.dumps({"error": {"message": SECRET, "code": SECRET}})),
    "a failure": event_stream(
        json.dumps({"type": "error", "code": SECRET, "message": SECRET, "param": None, "sequence_number": 0})
    ),
    "an empty object": event_stream("{}"),
    "no events": "",
    "a web page": f"<h1>{SECRET}</h1>",
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE.keys())
async def test_a_stream_of_nonsense_is_a_defined_error_and_no_empty_answer(
    api: str, connect: Callable[..., Hosted], body: str
) -> None:
    async with RawProvider(body, headers={"Content-Type": "text/event-stream"}) as provider:
        error = await connect(provider.base_url, api).fail()

    assert isinstance(error, (ModelFailedError, ModelUnavailableError))


# --- a caller that leaves ---


@pytest.mark.parametrize("pieces", [0, 2], ids=["before any text", "after some text"])
async def test_cancelling_the_task_closes_the_connection_to_the_model_within_a_second(
    server: ScriptedOpenAI, hosted: Hosted, pieces: int
) -> None:
    server.script(Reply.hang(after_pieces=pieces))
    call = asyncio.create_task(hosted.ask())
    await server.wait_for_request(1, GUARD_S)
    if pieces:
        await asyncio.wait_for(hosted.sink.written.wait(), GUARD_S)

    call.cancel()

    await server.wait_for_disconnect(1.0)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_cancelling_a_run_closes_the_connection_to_the_model_within_a_second(
    server: ScriptedOpenAI, hosted: Hosted
) -> None:
    server.script(Reply.handoff("transfer_to_billing"), Reply.hang(after_pieces=2))
    run = asyncio.create_task(hosted.run(Agent(name="orchestrator", handoffs=[Agent(name="billing")])))
    await asyncio.wait_for(hosted.sink.written.wait(), GUARD_S)

    run.cancel()

    await server.wait_for_disconnect(1.0)
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_a_sink_that_is_full_closes_the_connection_to_the_model(
    server: ScriptedOpenAI, api: str, connect: Callable[..., Hosted]
) -> None:
    class FullSink(ListSink):
        def write(self, text: str) -> None:
            raise ModelFailedError("the answer is longer than a turn may be")

    server.script(Reply.hang(after_pieces=2))
    hosted = connect(server.base_url, api)
    hosted.sink = FullSink()

    with pytest.raises(ModelFailedError, match="longer than a turn"):
        await hosted.ask()

    await server.wait_for_disconnect(1.0)


async def test_after_a_failure_the_next_call_works(server: ScriptedOpenAI, hosted: Hosted) -> None:
    server.script(Reply.disconnect(after_pieces=1), Reply.text("Forty."))
    await hosted.fail()
    hosted.sink = ListSink()

    await hosted.ask()

    assert hosted.sink.text == "Forty."
