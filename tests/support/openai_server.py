"""A scripted OpenAI-compatible HTTP server: what a test queues is what the next model request gets.

It speaks `POST /v1/chat/completions` and `POST /v1/responses`, streamed (server-sent events) and not, and
`GET /v1/models`, on a real socket, so the SDK's own parsing and status handling are under test too.
Identifiers and token counts are deterministic; times that a caller gives are in seconds. When a request came, was
answered to its end or was hung up on is kept in `time.monotonic()`, which all processes of a machine share.
"""

import asyncio
import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Self, TypeAlias, get_args

from aiohttp import web

JsonObject: TypeAlias = dict[str, Any]
CutKind: TypeAlias = Literal["malformed", "truncated", "hang", "disconnect"]
Kind: TypeAlias = Literal["text", "length", "filtered", "refusal", "tool", "error", "failure"] | CutKind

MODEL = "scripted-model"
# Far above any test's need: a run that loops on an `answer_with` callable ends with errors instead of never.
MAX_REQUESTS = 1000
MAX_BODY_BYTES = 16 * 2**20
# A fixed time of creation (2025-01-01, in Unix seconds) keeps two runs' answers equal.
CREATED_S = 1_735_689_600
FINISH_REASONS = {"tool": "tool_calls", "length": "length", "filtered": "content_filter"}
INCOMPLETE_REASONS = {"length": "max_output_tokens", "filtered": "content_filter"}
# Streams of these kinds stop before the events that would end the answer.
CUT_KINDS = (*get_args(CutKind), "failure")
# An event that holds a piece of text.
PIECE = re.compile(rb'"delta": ("|\{"(content|refusal)":)')
BROKEN_EVENT = 'data: {"id": "broken\n\n'
# A model reads these parts of a request; the others (ids, roles, schemas) are not counted as its text.
TEXT_KEYS = ("instructions", "messages", "input", "content", "text", "output")


@dataclass(frozen=True, slots=True)
class Request:
    """A model request as it arrived; `arrived_s` is `time.monotonic()`, comparable only with its like."""

    number: int
    path: str
    body: JsonObject
    headers: Mapping[str, str]
    arrived_s: float
    peer: tuple[str, int] = ("", 0)

    @property
    def stream(self) -> bool:
        """Whether the client asked for server-sent events."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Reply:
    """What one model request gets. Made by the class methods; `calls` are (function name, JSON arguments)."""

    kind: Kind
    pieces: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    pace_s: float = 0.0
    status: int = 200
    retry_after_s: float | None = None
    usage: tuple[int, int] | None = None
    details: tuple[int, int] = (0, 0)
    counts: bool = True
    code: str | None = None
    stall: tuple[int, float] | None = None
    cuts: tuple[int, ...] = ()
    streams: bool = True

    @classmethod
    def text(cls, text: str, *, delay_s: float = 0.0, pieces: list[str] | None = None, pace_s: float = 0.0) -> Self:
        """A whole answer, sent word by word or in `pieces`.

        `delay_s` passes before the first byte, `pace_s` before each piece of a streamed answer.
        """
        return cls("text", _pieces(text, pieces), delay_s=delay_s, pace_s=pace_s)

    @classmethod
    def length(cls, text: str) -> Self:
        """An answer cut by the token limit; an empty text is a limit used up before any output."""
        return cls("length", _pieces(text))

    @classmethod
    def filtered(cls, text: str) -> Self:
        """An answer that a content filter ended; an empty text is one filtered before any output."""
        return cls("filtered", _pieces(text))

    @classmethod
    def text_and_tool(cls, text: str, name: str, arguments: Mapping[str, Any]) -> Self:
        """Text and then a function call, in one answer."""
        return cls("tool", _pieces(text), ((name, json.dumps(arguments)),))

    @classmethod
    def failure(cls, code: str | None, *, after_pieces: int = 0) -> Self:
        """A failure reported in the stream, under status 200: `response.failed`, or a chunk with an error."""
        return cls("failure", _filler(after_pieces), code=code)

    @classmethod
    def refusal(cls, text: str) -> Self:
        """The model declines: the text comes as a refusal, not as content."""
        return cls("refusal", _pieces(text))

    @classmethod
    def tool(cls, name: str, arguments: Mapping[str, Any] | str) -> Self:
        """One function call; a string goes out as it is, so that arguments can be broken JSON."""
        return cls.tools((name, arguments))

    @classmethod
    def tools(cls, *calls: tuple[str, Mapping[str, Any] | str]) -> Self:
        """Several function calls in one answer (parallel tool calls)."""
        as_sent = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in calls)
        return cls("tool", calls=tuple(as_sent))

    @classmethod
    def handoff(cls, name: str) -> Self:
        """A handoff is a function call without arguments, e.g. `transfer_to_billing`."""
        return cls.tool(name, {})

    @classmethod
    def error(cls, status: int, *, retry_after_s: float | None = None, code: str | None = None) -> Self:
        """An HTTP error with OpenAI's JSON body, and a Retry-After header if given.

        `code`: instead of the usual one, as Azure sends `content_filter` with status 400.
        """
        return cls("error", status=status, retry_after_s=retry_after_s, code=code)

    @classmethod
    def malformed(cls, *, after_pieces: int = 0) -> Self:
        """Status 200 and then JSON that breaks off: as an event after some pieces, or as the whole body."""
        return cls("malformed", _filler(after_pieces))

    @classmethod
    def truncated(cls, *, after_pieces: int = 0) -> Self:
        """A stream whose HTTP body ends properly without its last events, as a proxy cuts one."""
        return cls("truncated", _filler(after_pieces))

    @classmethod
    def hang(cls, *, after_pieces: int = 0) -> Self:
        """Silence until the client hangs up or the server closes: after some pieces, or before the status."""
        return cls("hang", _filler(after_pieces))

    @classmethod
    def disconnect(cls, *, after_pieces: int = 0) -> Self:
        """The server closes the connection: in the middle of a streamed answer, or before the status."""
        return cls("disconnect", _filler(after_pieces))

    def with_usage(self, input_tokens: int, output_tokens: int, *, cached: int = 0, reasoning: int = 0) -> Self:
        """The same reply with these token counts instead of counted words."""
        return replace(self, usage=(input_tokens, output_tokens), details=(cached, reasoning))

    def without_usage(self) -> Self:
        """The same reply from a server that counts nothing."""
        return replace(self, counts=False)

    def with_stall(self, after_pieces: int, seconds: float) -> Self:
        """The same reply, streamed with a silence of some seconds after some pieces."""
        return replace(self, stall=(after_pieces, seconds))

    def cut_at(self, *positions: int) -> Self:
        """The same stream, its body sent in parts that end at these bytes (ascending), each in a write of its own."""
        return replace(self, cuts=positions)

    def unstreamed(self) -> Self:
        """The same reply from a server that sends whole responses, whatever it is asked for."""
        return replace(self, streams=False)

    @property
    def content(self) -> str:
        """The whole text or refusal."""
        return "".join(self.pieces)

    def tokens(self, request: Request) -> tuple[int, int]:
        """Input and output tokens: words of the request's texts and of the reply, unless set."""
        said = " ".join([self.content, *(f"{name} {arguments}" for name, arguments in self.calls)])
        return self.usage or (sum(len(text.split()) for text in _texts(request.body)), len(said.split()))


class ScriptedOpenAI:
    """The server, an async context manager: scripted replies first, then `answer_with`, then status 500.

    Attributes:
        requests: all that came, in order.
        ended: when a request was answered to its end, by its number.
        hung_up: when a client went away in the middle of an answer, by the request's number.
    """

    def __init__(self, *, max_requests: int | None = None) -> None:
        self.requests: list[Request] = []
        self.ended: dict[int, float] = {}
        self.hung_up: dict[int, float] = {}
        self.base_url = ""
        self._max_requests = max_requests
        self._replies: deque[Reply] = deque()
        self._answer: Callable[[Request], Reply] | None = None
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._serve)
        app.router.add_post("/v1/responses", self._serve)
        app.router.add_get("/v1/models", _models)
        # Cancellation is how a handler that writes nothing (hang, delay) notices that its client hung up.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        await self._runner.cleanup()

    def script(self, *replies: Reply) -> None:
        """Queue replies; each model request takes the next one."""
        self._replies.extend(replies)

    def answer_with(self, answer: Callable[[Request], Reply]) -> None:
        """Ask `answer` for every request that finds the queue empty."""
        self._answer = answer

    @property
    def disconnects(self) -> int:
        """How many clients have hung up in the middle of an answer."""
        return len(self.hung_up)

    @property
    def unused(self) -> int:
        """Replies still queued: above 0 at a test's end, fewer requests were made than it expects."""
        return len(self._replies)

    async def wait_for_request(self, n: int, timeout_s: float) -> Request:
        """The n-th model request (from 1), as soon as it is there; TimeoutError after `timeout_s`."""
        await self._wait(lambda: len(self.requests), n, "requests", timeout_s)
        return self.requests[n - 1]

    async def wait_for_disconnect(self, timeout_s: float, n: int = 1) -> None:
        """Return once n clients have hung up in the middle of an answer; TimeoutError after `timeout_s`."""
        await self._wait(lambda: self.disconnects, n, "disconnects", timeout_s)

    async def _wait(self, count: Callable[[], int], n: int, what: str, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while count() < n:
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"{count()} of {n} {what} after {timeout_s} s") from None

    def _notify(self) -> None:
        # Every waiter looks again, and later ones wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        try:
            body = await http.json()
        except ValueError:
            return _error(400, "the request's body is not JSON")
        bound = MAX_REQUESTS if self._max_requests is None else self._max_requests
        if len(self.requests) >= bound:
            return _error(500, f"more than {bound} model requests: the run under test loops")
        request = Request(len(self.requests) + 1, http.path, body, http.headers, time.monotonic(), _peer(http))
        self.requests.append(request)
        self._notify()
        if self._replies:
            reply = self._replies.popleft()
        elif self._answer is not None:
            reply = self._answer(request)
        else:
            return _error(500, f"no reply is scripted for model request {request.number}")
        return await self._reply(http, request, reply)

    async def _reply(self, http: web.Request, request: Request, reply: Reply) -> web.StreamResponse:
        """Send one reply; when its last byte left, or its client went away before that, is noted."""
        try:
            if reply.delay_s:
                await self._pause(reply.delay_s)
            if reply.kind == "error":
                return _error(reply.status, f"scripted error {reply.status}", reply.retry_after_s, reply.code)
            if reply.kind in ("hang", "disconnect") and not (request.stream and reply.pieces):
                return await self._end_without_answer(http, reply, web.Response(status=503))
            if request.stream and reply.streams:
                return await self._stream(http, request, reply)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up[request.number] = time.monotonic()
            self._notify()
            raise
        self.ended[request.number] = time.monotonic()
        whole = json.dumps((_chat_whole if _is_chat(request) else _response)(request, reply))
        if reply.kind in ("malformed", "truncated"):
            whole = whole[: len(whole) // 2]
        return web.Response(text=whole, content_type="application/json", headers=_headers(request))

    async def _stream(self, http: web.Request, request: Request, reply: Reply) -> web.StreamResponse:
        stream = web.StreamResponse(headers={**_headers(request), "Cache-Control": "no-cache"})
        stream.content_type = "text/event-stream"
        await stream.prepare(http)
        frames = [frame.encode() for frame in (_chat_frames if _is_chat(request) else _response_frames)(request, reply)]
        *frames, last = _cut(b"".join(frames), reply.cuts) if reply.cuts else frames
        said = 0
        for frame in frames:
            # Text always comes in the member of this name; in a text itself its quotes would be escaped.
            if reply.pace_s and b'"delta": ' in frame:
                await self._pause(reply.pace_s)
            if reply.stall is not None and PIECE.search(frame):
                said += 1
                await self._pause(reply.stall[1] if said == reply.stall[0] + 1 else 0.0)
            await stream.write(frame)
        if reply.kind in ("hang", "disconnect"):
            await stream.write(last)
            return await self._end_without_answer(http, reply, stream)
        # One write for the last event and the end of the body: a client that stops reading at the last event
        # and closes the connection has not hung up in the middle.
        await stream.write_eof(last)
        self.ended[request.number] = time.monotonic()
        return stream

    async def _end_without_answer(
        self, http: web.Request, reply: Reply, response: web.StreamResponse
    ) -> web.StreamResponse:
        if reply.kind == "hang":
            await self._closing.wait()
        if http.transport is not None:
            http.transport.close()
        return response

    async def _pause(self, seconds: float) -> None:
        # Ends early when the server closes, so that a long delay never holds up the end of a test.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


def stream_body(reply: Reply, path: str) -> bytes:
    """The body that a request for a stream gets, for tests that need no server."""
    request = Request(1, path, {"stream_options": {"include_usage": True}}, {}, 0.0)
    return "".join((_chat_frames if _is_chat(request) else _response_frames)(request, reply)).encode()


def _peer(http: web.Request) -> tuple[str, int]:
    """The client's end of the connection."""
    host, port, *_ = (http.transport and http.transport.get_extra_info("peername")) or ("", 0)
    return host, port


async def _models(_: web.Request) -> web.Response:
    model = {"id": MODEL, "object": "model", "created": CREATED_S, "owned_by": "tests"}
    return web.json_response({"object": "list", "data": [model]})


def _error(status: int, message: str, retry_after_s: float | None = None, code: str | None = None) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = code or ("rate_limit_exceeded" if status == 429 else kind)
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def _headers(request: Request) -> dict[str, str]:
    return {"x-request-id": f"req_{request.number}"}


def _is_chat(request: Request) -> bool:
    return request.path.endswith("/chat/completions")


def _pieces(text: str, pieces: list[str] | None = None) -> tuple[str, ...]:
    """The text in words with the whitespace after them, or the given pieces if they are the text's."""
    parts = re.findall(r"\S+\s*|\s+", text) if pieces is None else pieces
    if "".join(parts) != text:
        raise ValueError(f"the pieces {pieces!r} do not make up the text {text!r}")
    return tuple(parts)


def _filler(count: int) -> tuple[str, ...]:
    return tuple(f"piece{i} " for i in range(1, count + 1))


def _texts(part: object) -> Iterator[str]:
    """Every text in a request that a model would read."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        for element in part:
            yield from _texts(element)
    elif isinstance(part, dict):
        for key in TEXT_KEYS:
            yield from _texts(part.get(key))


def _event(data: JsonObject, name: str = "") -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"


def _chat_base(request: Request, kind: str) -> JsonObject:
    model = request.body.get("model", MODEL)
    return {"id": f"chatcmpl-{request.number}", "object": kind, "created": CREATED_S, "model": model}


def _chat_usage(request: Request, reply: Reply) -> JsonObject:
    read, written = reply.tokens(request)
    cached, reasoning = reply.details
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _chat_calls(request: Request, reply: Reply) -> list[JsonObject]:
    functions = [{"name": name, "arguments": arguments} for name, arguments in reply.calls]
    ids = (f"call_{request.number}_{i}" for i in range(len(functions)))
    return [{"id": id_, "type": "function", "function": f} for id_, f in zip(ids, functions, strict=True)]


def _chat_whole(request: Request, reply: Reply) -> JsonObject:
    """A `chat.completion` object."""
    refused = reply.kind == "refusal"
    message: JsonObject = {
        "role": "assistant",
        "content": None if refused or not (reply.content or reply.kind == "text") else reply.content,
        "refusal": reply.content if refused else None,
    }
    if reply.calls:
        message["tool_calls"] = _chat_calls(request, reply)
    finish_reason = FINISH_REASONS.get(reply.kind, "stop")
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    usage = _chat_usage(request, reply)
    counted = {"usage": usage} if reply.counts else {}
    return {**_chat_base(request, "chat.completion"), "choices": [choice], **counted}


def _chat_frames(request: Request, reply: Reply) -> Iterator[str]:
    """The server-sent events of a streamed chat completion."""
    base = _chat_base(request, "chat.completion.chunk")
    include_usage = reply.counts and bool((request.body.get("stream_options") or {}).get("include_usage"))
    if include_usage:
        base["usage"] = None  # as OpenAI sends it: null in every chunk but the last

    def frame(delta: JsonObject, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**base, "choices": [choice]})

    yield frame({"role": "assistant", "content": None if reply.calls else "", "refusal": None})
    for piece in reply.pieces:
        yield frame({"refusal" if reply.kind == "refusal" else "content": piece})
    for index, call in enumerate(_chat_calls(request, reply)):
        arguments = call["function"]["arguments"]
        opening = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield frame({"tool_calls": [opening]})
        for part in _halves(arguments):
            yield frame({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    if reply.kind == "malformed":
        yield BROKEN_EVENT
    if reply.kind == "failure":
        yield _event({"error": {"message": "scripted failure", "type": None, "param": None, "code": reply.code}})
    if reply.kind in CUT_KINDS:
        return
    yield frame({}, FINISH_REASONS.get(reply.kind, "stop"))
    if include_usage:
        yield _event({**base, "choices": [], "usage": _chat_usage(request, reply)})
    yield "data: [DONE]\n\n"


def _halves(text: str) -> tuple[str, str]:
    # Arguments come in more than one piece from OpenAI, so a client has to put them together here too.
    return text[: len(text) // 2], text[len(text) // 2 :]


def _response(request: Request, reply: Reply) -> JsonObject:
    """A finished `response` object, with the fields that `openai.types.responses.Response` requires."""
    read, written = reply.tokens(request)
    incomplete = INCOMPLETE_REASONS.get(reply.kind)
    cached, reasoning = reply.details
    usage = {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": read + written,
    }
    return {
        "id": f"resp_{request.number}",
        "object": "response",
        "created_at": CREATED_S,
        "status": "incomplete" if incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "model": request.body.get("model", MODEL),
        "output": list(_response_items(request, reply)),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if reply.counts else None,
    }


def _response_items(request: Request, reply: Reply) -> Iterator[JsonObject]:
    # A limit used up before any output leaves no message at all, unlike an empty text.
    if reply.pieces or reply.kind in ("text", "refusal"):
        part: JsonObject = {"type": "output_text", "text": reply.content, "annotations": [], "logprobs": []}
        if reply.kind == "refusal":
            part = {"type": "refusal", "refusal": reply.content}
        status = "incomplete" if reply.kind in INCOMPLETE_REASONS else "completed"
        head = {"type": "message", "id": f"msg_{request.number}", "role": "assistant"}
        yield {**head, "status": status, "content": [part]}
    for call in _chat_calls(request, reply):
        ids = {"id": call["id"].replace("call", "fc"), "call_id": call["id"]}
        yield {"type": "function_call", **ids, "status": "completed", **call["function"]}


def _response_frames(request: Request, reply: Reply) -> Iterator[str]:
    """The server-sent events of a streamed response, numbered."""
    for number, event in enumerate(_response_events(request, reply)):
        if reply.kind in CUT_KINDS and event["type"].endswith((".done", ".completed")):
            break
        yield _event({**event, "sequence_number": number}, event["type"])
    if reply.kind == "malformed":
        yield BROKEN_EVENT
    if reply.kind == "failure":
        error = {"code": reply.code, "message": "scripted failure"}
        failed = {**_response(request, reply), "status": "failed", "error": error, "output": []}
        yield _event({"type": "response.failed", "response": failed}, "response.failed")


def _cut(body: bytes, positions: tuple[int, ...]) -> list[bytes]:
    ends = (0, *positions, len(body))
    return [body[start:end] for start, end in pairwise(ends)]


def _response_events(request: Request, reply: Reply) -> Iterator[JsonObject]:
    response = _response(request, reply)
    begun = {**response, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        events = _message_events if item["type"] == "message" else _call_events
        empty: JsonObject = {"content": []} if item["type"] == "message" else {"arguments": ""}
        added = {**item, **empty, "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": added}
        for event in events(item, reply):
            yield {**event, "item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def _message_events(item: JsonObject, reply: Reply) -> Iterator[JsonObject]:
    (part,) = item["content"]
    key = "refusal" if part["type"] == "refusal" else "text"
    at: JsonObject = {"content_index": 0}
    logprobs: JsonObject = {} if key == "refusal" else {"logprobs": []}
    yield {"type": "response.content_part.added", **at, "part": {**part, key: ""}}
    for piece in reply.pieces:
        yield {"type": f"response.{part['type']}.delta", **at, **logprobs, "delta": piece}
    yield {"type": f"response.{part['type']}.done", **at, **logprobs, key: reply.content}
    yield {"type": "response.content_part.done", **at, "part": part}


def _call_events(item: JsonObject, _: Reply) -> Iterator[JsonObject]:
    for part in _halves(item["arguments"]):
        yield {"type": "response.function_call_arguments.delta", "delta": part}
    done = {"name": item["name"], "arguments": item["arguments"]}
    yield {"type": "response.function_call_arguments.done", **done}
