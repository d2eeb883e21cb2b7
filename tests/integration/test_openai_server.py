"""The scripted OpenAI server, driven by the real client and by the Agents SDK over both of its APIs."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from agents import (
    Agent,
    ModelBehaviorError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    RunResult,
    RunResultStreaming,
    function_tool,
    set_tracing_disabled,
)
from agents.exceptions import ModelRefusalError
from agents.models.interface import Model, ModelProvider
from openai import APIConnectionError, AsyncOpenAI, InternalServerError, RateLimitError
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support import openai_server
from tests.support.openai_server import Reply, Request, ScriptedOpenAI

# Long enough for a loaded machine; every wait ends at its event, far earlier.
WAIT_S = 10.0
CHAT, RESPONSES = "chat", "responses"
WHOLE_REPLIES = {
    "text": Reply.text("Hello [1]."),
    "empty": Reply.text(""),
    "length": Reply.length("cut text"),
    "exhausted": Reply.length(""),
    "refusal": Reply.refusal("I will not."),
    "tools": Reply.tools(("search", {"query": "rent"}), ("search", {"query": "heat"})),
    "handoff": Reply.handoff("transfer_to_billing"),
}
both_apis = pytest.mark.parametrize("api", [CHAT, RESPONSES])
both_ways = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The SDK's tracing would send what it sees to api.openai.com.
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    set_tracing_disabled(True)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
async def client(server: ScriptedOpenAI) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.base_url, api_key="test-key", max_retries=0) as client:
        yield client


class Provider(ModelProvider):
    """Every agent's model, on one of the two APIs."""

    def __init__(self, api: str, client: AsyncOpenAI) -> None:
        self._model_class = OpenAIChatCompletionsModel if api == CHAT else OpenAIResponsesModel
        self._client = client

    def get_model(self, model_name: str | None) -> Model:
        return self._model_class(model_name or "test-model", self._client)


async def run(
    api: str, client: AsyncOpenAI, *, stream: bool, agent: Agent[Any] | None = None, text: str = "Hi there"
) -> RunResult | RunResultStreaming:
    """One run to its end. `include_usage` is set, as the SDK asks only api.openai.com for it by itself."""
    agent = agent or Agent("assistant", instructions="Be brief.")
    settings = ModelSettings(include_usage=True)
    config = RunConfig(model_provider=Provider(api, client), model_settings=settings, tracing_disabled=True)
    if not stream:
        return await Runner.run(agent, text, run_config=config)
    result = Runner.run_streamed(agent, text, run_config=config)
    async for _ in result.stream_events():
        pass
    return result


async def ask(api: str, client: AsyncOpenAI, *, stream: bool) -> list[Any]:
    """The events of a streamed request, or the one object of another, as the client parses them."""
    answer: Any
    if api == CHAT:
        messages: Any = [{"role": "user", "content": "Hi there"}]
        answer = await client.chat.completions.create(model="m", messages=messages, stream=stream)
    else:
        answer = await client.responses.create(model="m", input="Hi there", stream=stream)
    return [event async for event in answer] if stream else [answer]


async def post(server: ScriptedOpenAI, api: str, body: dict[str, Any]) -> str:
    path = "/chat/completions" if api == CHAT else "/responses"
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.base_url + path, json={"model": "m", **body}) as response,
    ):
        return await response.text()


def sse_data(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def conversation(request: Request) -> list[str]:
    """What the model was told so far: message roles on chat, item types on responses."""
    if "messages" in request.body:
        return [message["role"] for message in request.body["messages"]]
    return [item.get("type", "message") for item in request.body["input"]]


async def collect_text(result: RunResultStreaming, pieces: list[str]) -> None:
    """Append each piece of text as it arrives, so that a failing stream leaves what came before."""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces += [event.data.delta]


# The SDK builds its objects without validation: a field that is missing would first be noticed far away.
@pytest.mark.parametrize("reply", WHOLE_REPLIES.values(), ids=WHOLE_REPLIES.keys())
async def test_chat_bodies_and_chunks_have_every_required_field(server: ScriptedOpenAI, reply: Reply) -> None:
    server.script(reply, reply)
    ChatCompletion.model_validate_json(await post(server, CHAT, {}))

    *chunks, end = sse_data(await post(server, CHAT, {"stream": True}))

    assert end == "[DONE]"
    parsed = [ChatCompletionChunk.model_validate_json(chunk) for chunk in chunks]
    assert parsed[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason is None for c in parsed] == [True] * (len(parsed) - 1) + [False]


@pytest.mark.parametrize("reply", WHOLE_REPLIES.values(), ids=WHOLE_REPLIES.keys())
async def test_responses_and_events_have_every_required_field(server: ScriptedOpenAI, reply: Reply) -> None:
    server.script(reply, reply)
    whole = Response.model_validate_json(await post(server, RESPONSES, {}))

    text = await post(server, RESPONSES, {"stream": True})

    adapter: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
    events = [adapter.validate_json(data) for data in sse_data(text)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names == [event.type for event in events]
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.status == whole.status
    assert len(last.response.output) == len(whole.output)


@both_apis
@both_ways
async def test_a_run_gets_the_scripted_text_and_the_counted_usage(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.text("Hello [1], dear reader."))

    result = await run(api, client, stream=stream)

    assert result.final_output == "Hello [1], dear reader."
    usage = result.context_wrapper.usage
    # "Be brief." and "Hi there" were read.
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (1, 4, 4)
    assert server.disconnects == 0
    assert server.unused == 0


@both_apis
@both_ways
async def test_usage_can_be_set(server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool) -> None:
    server.script(Reply.text("Hello").with_usage(1200, 34))

    usage = (await run(api, client, stream=stream)).context_wrapper.usage

    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (1200, 34, 1234)


@pytest.mark.parametrize("asked", [True, False])
async def test_chat_usage_is_streamed_only_when_asked_for(
    server: ScriptedOpenAI, client: AsyncOpenAI, asked: bool
) -> None:
    server.script(Reply.text("one two three"))

    stream = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Hi there"}],
        stream=True,
        stream_options={"include_usage": asked},
    )
    totals = [chunk.usage.total_tokens async for chunk in stream if chunk.usage is not None]

    assert totals == ([5] if asked else [])


@both_apis
async def test_pieces_are_streamed_as_given(server: ScriptedOpenAI, client: AsyncOpenAI, api: str) -> None:
    pieces = ["Hel", "lo [", "1", "]."]
    server.script(Reply.text("Hello [1].", pieces=pieces))

    events = await ask(api, client, stream=True)

    if api == CHAT:
        assert [e.choices[0].delta.content for e in events if e.choices[0].delta.content] == pieces
    else:
        assert [e.delta for e in events if e.type == "response.output_text.delta"] == pieces


def test_pieces_that_are_not_the_text_are_a_mistake_of_the_test() -> None:
    with pytest.raises(ValueError, match="do not make up"):
        Reply.text("Hello", pieces=["Good", "bye"])


@both_apis
@both_ways
async def test_tool_calls_run_and_their_results_come_back(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    seen: list[str] = []

    @function_tool
    def search(query: str) -> str:
        """Search."""
        seen.append(query)
        return f"found {query}"

    server.script(Reply.tools(("search", {"query": "rent"}), ("search", {"query": "heat"})))
    server.script(Reply.text("Both."))

    result = await run(api, client, stream=stream, agent=Agent("assistant", tools=[search]))

    assert sorted(seen) == ["heat", "rent"]
    assert result.final_output == "Both."
    expected = (
        ["user", "assistant", "tool", "tool"]
        if api == CHAT
        else ["message", "function_call", "function_call", "function_call_output", "function_call_output"]
    )
    assert conversation(server.requests[1]) == expected
    assert result.context_wrapper.usage.requests == 2


@both_apis
@both_ways
async def test_tool_arguments_can_be_broken_json(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    @function_tool(failure_error_function=None)
    def search(query: str) -> str:
        """Search."""
        raise AssertionError(query)

    server.script(Reply.tool("search", '{"query": '))

    with pytest.raises(ModelBehaviorError, match="Invalid JSON"):
        await run(api, client, stream=stream, agent=Agent("assistant", tools=[search]))


@both_apis
@both_ways
async def test_a_handoff_passes_the_conversation_on(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    billing: Agent[Any] = Agent("billing", instructions="You do billing.")
    triage: Agent[Any] = Agent("triage", instructions="You triage.", handoffs=[billing])
    server.script(Reply.handoff("transfer_to_billing"), Reply.text("It is paid."))

    result = await run(api, client, stream=stream, agent=triage)

    assert result.last_agent is billing
    assert result.final_output == "It is paid."
    assert "You do billing." in json.dumps(server.requests[1].body)
    assert "You do billing." not in json.dumps(server.requests[0].body)


@both_apis
@both_ways
async def test_a_rate_limit_carries_retry_after(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.error(429, retry_after_s=2))

    with pytest.raises(RateLimitError) as caught:
        await run(api, client, stream=stream)

    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.code == "rate_limit_exceeded"
    assert len(server.requests) == 1


@both_apis
@both_ways
async def test_a_server_error_has_no_retry_after(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.error(500))

    with pytest.raises(InternalServerError) as caught:
        await run(api, client, stream=stream)

    assert caught.value.type == "server_error"
    assert "retry-after" not in caught.value.response.headers


@both_apis
async def test_an_empty_queue_says_so(server: ScriptedOpenAI, client: AsyncOpenAI, api: str) -> None:
    with pytest.raises(InternalServerError, match="no reply is scripted for model request 1"):
        await ask(api, client, stream=True)


async def test_a_looping_run_is_bounded(
    server: ScriptedOpenAI, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_server, "MAX_REQUESTS", 1)
    server.answer_with(lambda _: Reply.text("again"))
    await ask(CHAT, client, stream=False)

    with pytest.raises(InternalServerError, match="more than 1 model requests"):
        await ask(CHAT, client, stream=False)


async def test_a_body_that_is_not_json_is_refused(server: ScriptedOpenAI) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.base_url}/responses", data=b"{") as response,
    ):
        assert response.status == 400
    assert server.requests == []


# The two APIs differ here: only responses tell the caller of a Model that the limit cut the answer.
@both_ways
async def test_length_on_chat_is_the_finish_reason_and_the_sdk_hides_it(
    server: ScriptedOpenAI, client: AsyncOpenAI, stream: bool
) -> None:
    server.script(Reply.length("cut text"), Reply.length("cut text"))

    answer = await ask(CHAT, client, stream=stream)

    assert answer[-1].choices[0].finish_reason == "length"
    assert (await run(CHAT, client, stream=stream)).final_output == "cut text"


@both_ways
async def test_length_on_responses_is_an_incomplete_status(
    server: ScriptedOpenAI, client: AsyncOpenAI, stream: bool
) -> None:
    server.script(Reply.length("cut text"), Reply.length("cut text"))

    last = (await ask(RESPONSES, client, stream=stream))[-1]

    response = last.response if stream else last
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text == "cut text"
    with pytest.raises(ModelBehaviorError, match="max_output_tokens"):
        await run(RESPONSES, client, stream=stream)


@both_apis
@both_ways
async def test_length_before_any_output_is_an_error_on_both(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.length(""))

    with pytest.raises(ModelBehaviorError, match="'length'" if api == CHAT else "max_output_tokens"):
        await run(api, client, stream=stream)


@both_apis
@both_ways
async def test_a_refusal_ends_the_run_with_its_text(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.refusal("I will not help with that."))

    with pytest.raises(ModelRefusalError) as caught:
        await run(api, client, stream=stream)

    assert caught.value.refusal == "I will not help with that."


@both_apis
@both_ways
@pytest.mark.parametrize("after_pieces", [0, 2])
async def test_malformed_json_reaches_the_caller(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool, after_pieces: int
) -> None:
    server.script(Reply.malformed(after_pieces=after_pieces))

    with pytest.raises(json.JSONDecodeError):
        await run(api, client, stream=stream)


async def test_a_stream_without_its_end_passes_as_an_answer_on_chat_only(
    server: ScriptedOpenAI, client: AsyncOpenAI
) -> None:
    server.script(Reply.truncated(after_pieces=2), Reply.truncated(after_pieces=2))

    assert (await run(CHAT, client, stream=True)).final_output == "piece1 piece2 "
    with pytest.raises(ModelBehaviorError, match="did not produce a final response"):
        await run(RESPONSES, client, stream=True)


@both_apis
async def test_a_dropped_stream_keeps_the_pieces_before_it(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str
) -> None:
    server.script(Reply.disconnect(after_pieces=2))
    config = RunConfig(model_provider=Provider(api, client), tracing_disabled=True)
    result = Runner.run_streamed(Agent("assistant"), "Hi", run_config=config)
    pieces: list[str] = []

    with pytest.raises(APIConnectionError):
        await collect_text(result, pieces)

    assert pieces == ["piece1 ", "piece2 "]
    # The server closed the connection itself, so no client hung up.
    assert server.disconnects == 0


@both_apis
@both_ways
async def test_a_connection_dropped_before_the_status(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.disconnect())

    with pytest.raises(APIConnectionError):
        await ask(api, client, stream=stream)

    assert server.disconnects == 0


@both_apis
@both_ways
async def test_a_client_that_gives_up_on_a_silent_server_is_noticed(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str, stream: bool
) -> None:
    server.script(Reply.hang())
    asking = asyncio.create_task(ask(api, client, stream=stream))
    request = await server.wait_for_request(1, WAIT_S)
    assert request.stream is stream
    assert server.disconnects == 0

    asking.cancel()

    await server.wait_for_disconnect(WAIT_S)
    assert server.disconnects == 1
    with pytest.raises(asyncio.CancelledError):
        await asking


@both_apis
async def test_a_run_cancelled_in_the_middle_of_an_answer_is_noticed(
    server: ScriptedOpenAI, client: AsyncOpenAI, api: str
) -> None:
    server.script(Reply.hang(after_pieces=2))
    config = RunConfig(model_provider=Provider(api, client), tracing_disabled=True)
    result = Runner.run_streamed(Agent("assistant"), "Hi", run_config=config)
    pieces: list[str] = []

    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces.append(event.data.delta)
            if len(pieces) == 2:
                result.cancel()

    await server.wait_for_disconnect(WAIT_S)
    assert server.disconnects == 1
    assert pieces == ["piece1 ", "piece2 "]


@pytest.mark.parametrize("reply", [Reply.hang(), Reply.hang(after_pieces=1), Reply.text("Hi", delay_s=3600)])
async def test_closing_ends_what_is_pending_and_leaves_no_task(reply: Reply) -> None:
    tasks = asyncio.all_tasks()
    began_s = time.monotonic()
    async with ScriptedOpenAI() as server:
        server.script(reply)
        posting = asyncio.create_task(post(server, CHAT, {"stream": True}))
        await server.wait_for_request(1, WAIT_S)

    # A late answer is complete; a hanging one ends without its end.
    (outcome,) = await asyncio.gather(posting, return_exceptions=True)
    assert isinstance(outcome, str if reply.kind == "text" else aiohttp.ClientError)
    assert asyncio.all_tasks() == tasks
    assert server.disconnects == 0
    assert time.monotonic() - began_s < WAIT_S


@both_ways
async def test_a_delay_comes_first(server: ScriptedOpenAI, client: AsyncOpenAI, stream: bool) -> None:
    server.script(Reply.text("late", delay_s=0.05))

    await ask(CHAT, client, stream=stream)

    assert time.monotonic() - server.requests[0].arrived_s >= 0.05


async def test_a_callable_answers_after_the_script(server: ScriptedOpenAI, client: AsyncOpenAI) -> None:
    def echo(request: Request) -> Reply:
        return Reply.text(f"{request.number} {request.body['messages'][-1]['content']}")

    server.answer_with(echo)
    server.script(Reply.text("scripted"))

    answers = [(await ask(CHAT, client, stream=False))[0].choices[0].message.content for _ in range(2)]

    assert answers == ["scripted", "2 Hi there"]


async def test_requests_are_recorded_as_sent(server: ScriptedOpenAI, client: AsyncOpenAI) -> None:
    server.script(Reply.text("a"), Reply.text("b"))
    before_s = time.monotonic()

    await ask(CHAT, client, stream=True)
    await ask(RESPONSES, client, stream=False)

    first, second = server.requests
    assert (first.path, second.path) == ("/v1/chat/completions", "/v1/responses")
    assert (first.stream, second.stream) == (True, False)
    assert second.body["input"] == "Hi there"
    assert first.headers["authorization"] == "Bearer test-key"
    assert before_s <= first.arrived_s <= second.arrived_s <= time.monotonic()


async def test_waiting_in_vain_says_what_was_missing(server: ScriptedOpenAI) -> None:
    with pytest.raises(TimeoutError, match=r"0 of 1 requests after 0\.01 s"):
        await server.wait_for_request(1, 0.01)
    with pytest.raises(TimeoutError, match="0 of 2 disconnects"):
        await server.wait_for_disconnect(0.01, n=2)


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [openai_server.MODEL]
