"""What hosted models send and how they read, over real HTTP: bodies, headers, endings, pieces of any size, pace."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import ModelResponse, ModelSettings, function_tool
from agents.items import TResponseInputItem
from agents.models.interface import ModelTracing
from agents.tool import Tool
from openai.types.responses import ResponseFunctionToolCall
from openai.types.shared import Reasoning

from agent_service.errors import AgentServiceError
from agent_service.llm import chat_completions
from agent_service.llm.hosted import HostedModel
from agent_service.llm.patience import Patience
from agent_service.llm.providers import HostedModels
from agent_service.llm.request import ModelRequest
from agent_service.llm.transport import READ_INTERVAL_S, Endpoint
from agent_service.types import Outcome
from tests.support.briefings import FixedBriefing, ListSink
from tests.support.openai_server import Reply, ScriptedOpenAI, stream_body
from tests.support.raw_provider import RawProvider

GUARD_S = 10.0
KEY = "sk-KEY"
PATHS = {"responses": "/v1/responses", "chat_completions": "/v1/chat/completions"}
NO_CONVERSATION: dict[str, Any] = {"previous_response_id": None, "conversation_id": None, "prompt": None}
QUESTION: list[Any] = [{"role": "user", "content": "What does it cost?"}]
# Requests are not repeated here.
NOT_AGAIN = Patience(clock=lambda: float("inf"))


@function_tool
def search(query: str) -> str:
    """Search the documents."""
    return query


@pytest.fixture(params=PATHS)
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


class Asker:
    """A model at an address, and what it wrote."""

    def __init__(self, models: HostedModels) -> None:
        self.models = models
        self.sink = ListSink()

    async def ask(
        self, settings: ModelSettings | None = None, given: list[Any] = QUESTION, tools: list[Tool] | None = None
    ) -> ModelResponse:
        self.sink = ListSink()
        model = self.models.for_turn(FixedBriefing(), self.sink).get_model(None)
        call = model.get_response(
            "You answer.",
            given,
            settings or ModelSettings(),
            tools or [],
            None,
            [],
            ModelTracing.DISABLED,
            **NO_CONVERSATION,
        )
        return await asyncio.wait_for(call, GUARD_S)


@pytest.fixture
async def connect(api: str) -> AsyncIterator[Callable[[str], Asker]]:
    opened: list[HostedModels] = []

    def connect(base_url: str) -> Asker:
        models = HostedModels(
            api_key=KEY, base_url=base_url, api=api, default_model="small", timeout_s=GUARD_S, patience=NOT_AGAIN
        )
        opened.append(models)
        return Asker(models)

    yield connect
    for models in opened:
        await models.close()


@pytest.fixture
def asker(server: ScriptedOpenAI, connect: Callable[[str], Asker]) -> Asker:
    return connect(server.base_url)


# --- what is sent ---


async def test_a_plain_request_holds_nothing_that_was_not_asked_for(
    server: ScriptedOpenAI, asker: Asker, api: str
) -> None:
    server.script(Reply.text("Forty."))

    await asker.ask()

    system, question = {"role": "system", "content": "You answer."}, {"role": "user", "content": "What does it cost?"}
    (request,) = server.requests
    if api == "responses":
        said = {"instructions": "You answer.", "input": [question], "store": False}
    else:
        said = {"messages": [system, question], "stream_options": {"include_usage": True}}
    assert request.body == {"model": "small", "stream": True, **said}


async def test_settings_and_tools_are_sent(server: ScriptedOpenAI, asker: Asker, api: str) -> None:
    server.script(Reply.text("Forty."))

    await asker.ask(
        ModelSettings(temperature=0.2, max_tokens=50, reasoning=Reasoning(effort="low"), tool_choice="auto"),
        tools=[search],
    )

    body = server.requests[0].body
    assert (body["temperature"], body["tool_choice"]) == (0.2, "auto")
    (tool,) = body["tools"]
    assert (tool if api == "responses" else tool["function"])["name"] == "search"
    if api == "responses":
        assert body["max_output_tokens"] == 50
        assert body["reasoning"] == {"effort": "low"}
        assert body["include"] == ["reasoning.encrypted_content"]
    else:
        assert body["max_tokens"] == 50
        assert body["reasoning_effort"] == "low"


async def test_what_a_model_said_can_be_sent_back(server: ScriptedOpenAI, asker: Asker, api: str) -> None:
    server.script(Reply.text_and_tool("Let me look.", "search", {"query": "plans"}), Reply.text("Forty."))

    first = await asker.ask(tools=[search])
    (call,) = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    reasoning: Any = {"type": "reasoning", "id": "rs_1", "summary": []}
    kept: Any = {**reasoning, "encrypted_content": "x"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "40 EUR"}
    given: list[TResponseInputItem] = [*QUESTION, reasoning, kept, *first.to_input_items(), result]
    await asker.ask(given=given, tools=[search])

    body = server.requests[1].body
    if api == "responses":
        assert "id" not in json.dumps([list(item) for item in body["input"]]).replace("call_id", "")
        types = [item.get("type") for item in body["input"]]
        assert types == [None, "reasoning", "message", "function_call", "function_call_output"]
    else:
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
        assistant = body["messages"][2]
        assert (assistant["content"], assistant["tool_calls"][0]["id"]) == ("Let me look.", call.call_id)


async def test_the_address_keeps_its_query_and_the_key_goes_into_the_header(
    server: ScriptedOpenAI, connect: Callable[[str], Asker], api: str
) -> None:
    async with RawProvider("{}", status=404) as provider:
        with pytest.raises(AgentServiceError):
            await connect(f"{provider.base_url}/?api-version=preview").ask()

    assert provider.targets == [f"{PATHS[api]}?api-version=preview"]
    assert provider.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "api-key" not in provider.headers[0]


@pytest.mark.parametrize(
    ("base_url", "is_openai", "has_key_header"),
    [
        (None, True, False),
        ("https://name.openai.azure.com/openai/v1/?api-version=preview", True, True),
        ("https://azure.com.example.org/v1", False, False),
        ("http://127.0.0.1:11434/v1", False, False),
    ],
)
async def test_an_address_says_how_its_server_wants_to_be_asked(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None, is_openai: bool, has_key_header: bool
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    endpoint = Endpoint(api_key=KEY, base_url=base_url, timeout_s=1.0)
    request = ModelRequest(None, "What?", ModelSettings(max_tokens=5), [], None, [])

    body = chat_completions.body(request, "m", base_url=endpoint.base_url, is_openai=endpoint.is_openai)

    assert ("max_completion_tokens" in json.loads(body)) is is_openai
    assert ("max_tokens" in json.loads(body)) is not is_openai
    assert (endpoint._headers().get("api-key") == KEY) is has_key_header
    await endpoint.close()


async def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    proxies = {}
    for base_url in ("https://api.openai.com/v1", "http://localhost:1/v1", "http://[::1]:1/v1"):
        endpoint = Endpoint(api_key=KEY, base_url=base_url, timeout_s=1.0)
        proxies[base_url] = endpoint._proxy
        await endpoint.close()

    assert list(proxies.values()) == ["http://proxy.example:3128", None, None]


async def test_a_redirect_is_not_followed(connect: Callable[[str], Asker], server: ScriptedOpenAI) -> None:
    async with RawProvider("", status=307, headers={"Location": f"{server.base_url}/responses"}) as provider:
        with pytest.raises(AgentServiceError):
            await connect(provider.base_url).ask()

    assert server.requests == []


# --- what comes back ---


async def test_a_filter_that_refuses_the_request_is_a_refusal(server: ScriptedOpenAI, asker: Asker) -> None:
    server.script(Reply.error(400, code="content_filter"))

    await asker.ask()

    assert (asker.sink.text, asker.sink.outcome) == ("", Outcome.REFUSED)
    assert asker.sink.answered == [("small", 0)]


@pytest.mark.parametrize("text", ["", "cut text"], ids=["before any text", "after text"])
async def test_a_filter_that_ends_an_answer_is_a_refusal(server: ScriptedOpenAI, asker: Asker, text: str) -> None:
    server.script(Reply.filtered(text))

    await asker.ask()

    assert (asker.sink.text, asker.sink.outcome) == (text, Outcome.REFUSED)


async def test_a_server_that_does_not_stream_is_understood(server: ScriptedOpenAI, asker: Asker) -> None:
    server.script(Reply.text_and_tool("Let me look.", "search", {"query": "plans"}).unstreamed())

    response = await asker.ask()

    assert asker.sink.text == "Let me look."
    assert [type(item).__name__ for item in response.output] == ["ResponseOutputMessage", "ResponseFunctionToolCall"]


async def test_usage_is_counted_or_estimated(server: ScriptedOpenAI, asker: Asker) -> None:
    server.script(
        Reply.text("Forty.").with_usage(120, 7, cached=64, reasoning=3), Reply.text("Forty-one").without_usage()
    )

    counted = (await asker.ask()).usage
    estimated = (await asker.ask()).usage

    assert (counted.input_tokens, counted.input_tokens_details.cached_tokens) == (120, 64)
    assert (counted.output_tokens, counted.output_tokens_details.reasoning_tokens) == (7, 3)
    body = json.dumps(server.requests[1].body, separators=(",", ":"))
    assert (estimated.input_tokens, estimated.output_tokens) == (-(-len(body) // 4), 3)


async def test_connections_are_used_again(server: ScriptedOpenAI, asker: Asker) -> None:
    server.script(*[Reply.text("Forty.")] * 3)
    for _ in range(3):
        await asker.ask()

    assert len({request.peer for request in server.requests}) == 1


# --- pieces ---


async def test_an_answer_cut_into_any_pieces_is_the_same(server: ScriptedOpenAI, asker: Asker, api: str) -> None:
    reply = Reply.text("It costs 40 € \U0001f642 [1].")
    size = len(stream_body(reply, PATHS[api]))
    chance = random.Random(7)
    server.script(*(reply.cut_at(*sorted(chance.sample(range(1, size), 20))) for _ in range(8)))
    for _ in range(8):
        response = await asker.ask()

        assert asker.sink.text == reply.content
        assert [part.text for item in response.output for part in getattr(item, "content", [])] == [reply.content]


async def test_a_fast_model_is_read_in_a_few_pieces_and_its_first_one_at_once(
    server: ScriptedOpenAI, asker: Asker
) -> None:
    """100 words, one each 2 ms: the sink gets them in about as many pieces as the interval fits in."""
    words = [f"word{number} " for number in range(100)]
    server.script(Reply.text("".join(words), pieces=words, pace_s=0.002))
    loop = asyncio.get_running_loop()
    started = loop.time()

    await asker.ask()

    assert asker.sink.text == "".join(words)
    assert asker.sink.pieces[0].count(" ") < 10
    assert len(asker.sink.pieces) <= (loop.time() - started) / READ_INTERVAL_S + 3


async def test_a_piece_after_a_silence_is_not_held_back(server: ScriptedOpenAI, asker: Asker) -> None:
    server.script(Reply.text("one two three", pieces=["one ", "two ", "three"]).with_stall(1, 0.2))

    await asker.ask()

    assert asker.sink.pieces[0] == "one "
    assert asker.sink.text == "one two three"


# --- streams gone wrong ---


@pytest.mark.parametrize("seed", range(25))
async def test_bytes_gone_wrong_end_in_an_answer_or_a_defined_error(
    connect: Callable[[str], Asker], api: str, seed: int
) -> None:
    chance = random.Random(seed)
    data = bytearray(stream_body(Reply.text_and_tool("It costs 40 EUR.", "search", {"query": "plans"}), PATHS[api]))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        data[at : at + chance.choice([0, 1, 30])] = chance.randbytes(chance.choice([0, 1, 5]))
    async with RawProvider(bytes(data), headers={"Content-Type": "text/event-stream"}) as provider:
        asker = connect(provider.base_url)
        try:
            response = await asker.ask()
        except AgentServiceError:
            return
        assert response.output


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-nonsense\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata:",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 429 Slow\r\nContent-Length: 99\r\n\r\n{",
    ],
)
async def test_an_answer_that_is_hardly_http_is_a_defined_error(connect: Callable[[str], Asker], answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(AgentServiceError):
            await connect(f"http://127.0.0.1:{port}/v1").ask()


async def test_the_streaming_runner_is_told_that_it_gets_nothing(asker: Asker) -> None:
    model = asker.models.for_turn(FixedBriefing(), asker.sink).get_model(None)

    assert isinstance(model, HostedModel)
    with pytest.raises(TypeError, match=r"Runner\.run"):
        model.stream_response()
