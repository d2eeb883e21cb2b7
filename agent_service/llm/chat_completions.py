"""The Chat Completions API: the body of a request, and the chunks of an answer."""

import msgspec
from agents.models.chatcmpl_converter import Converter

from agent_service.llm.answer import Answer, Count, ToolCall
from agent_service.llm.counts import InputDetails, OutputDetails, Tokens
from agent_service.llm.failures import Kind, not_understood, reported
from agent_service.llm.reader import NONSENSE, code_and_type
from agent_service.llm.request import ModelRequest, encode

PATH = "chat/completions"


class UsageCount(msgspec.Struct):
    """`usage` of a chunk or a completion."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None


class FunctionPiece(msgspec.Struct):
    """A function, or a piece of its arguments."""

    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct):
    """A tool call, or a piece of one."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Message(msgspec.Struct):
    """A message, or a piece of one."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPiece] | None = None


class Choice(msgspec.Struct):
    """One of the answers; the first is the only one that was asked for."""

    index: int | None = None
    delta: Message | None = None
    message: Message | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole completion."""

    choices: list[Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_chunk = msgspec.json.Decoder(Chunk)
_usage = msgspec.json.Decoder(UsageCount)
_any = msgspec.json.Decoder()
_NULL = msgspec.Raw(b"null")


class ChatDecoder:
    """Reads one completion. See `reader.Decoder`."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._calls: dict[int, ToolCall] = {}
        self._last: ToolCall | None = None

    def event(self, data: bytes) -> None:
        """See `Decoder`."""
        if data == b"[DONE]":
            self.answer.over = True
            return
        self._take(_chunk.decode(data))

    def body(self, data: bytes) -> None:
        """See `Decoder`."""
        completion = _chunk.decode(data)
        if not completion.choices and completion.error == _NULL:
            raise not_understood()
        self._take(completion)
        # A server that does not stream has said all, whether it gives a reason for ending or not.
        self.answer.whole = self.answer.over = True

    def _take(self, chunk: Chunk) -> None:
        if chunk.error != _NULL:
            self._fail(chunk.error)
            return
        for choice in chunk.choices or ():
            if not choice.index:
                self._take_choice(choice)
        if chunk.usage != _NULL:
            self.answer.count = _counted(chunk.usage) or self.answer.count

    def _take_choice(self, choice: Choice) -> None:
        if (piece := choice.delta or choice.message) is not None:
            self.answer.say(piece.content or "")
            if piece.refusal:
                self.answer.refuses = True
                self.answer.say(piece.refusal)
            for call in piece.tool_calls or ():
                self._take_call(call)
        if choice.finish_reason:
            self.answer.whole = True
            self.answer.cut = choice.finish_reason == "length"
            self.answer.refuses = self.answer.refuses or choice.finish_reason == "content_filter"

    def _take_call(self, piece: CallPiece) -> None:
        """Append to the call that the piece is of, or begin one.

        Pieces are told apart by their index. Some servers leave it out, or give every call the same one: then a
        new id, or without one a name, begins a call.
        """
        function = piece.function or FunctionPiece()
        known = self._calls.get(piece.index) if piece.index is not None else self._last
        other_id = known is not None and bool(piece.id) and piece.id != known.id
        begins = known is None or (bool(function.name) and (other_id or (piece.index is None and not piece.id)))
        if known is None or begins:
            known = ToolCall()
            self.answer.parts.append(known)
        if piece.index is not None:
            self._calls[piece.index] = known
        self._last = known
        known.id = known.id or piece.id or ""
        known.name = known.name or function.name or ""
        if function.arguments:
            known.arguments.append(function.arguments)

    def _fail(self, error: msgspec.Raw) -> None:
        code, kind = code_and_type({"error": _any.decode(error)})
        fault = reported(code, kind)
        if fault.kind is not Kind.FILTERED:
            raise fault
        self.answer.refuses = self.answer.whole = self.answer.over = True


def _counted(usage: msgspec.Raw) -> Count | None:
    """Tokens, where they are counted in a way that makes sense: an answer is not given up for its bill."""
    try:
        counted = _usage.decode(usage)
    except NONSENSE:
        return None
    if not counted.prompt_tokens and not counted.completion_tokens:
        return None
    cached = counted.prompt_tokens_details.cached_tokens if counted.prompt_tokens_details else 0
    reasoning = counted.completion_tokens_details.reasoning_tokens if counted.completion_tokens_details else 0
    return Count(counted.prompt_tokens, counted.completion_tokens, cached or 0, reasoning or 0)


def body(request: ModelRequest, model: str, *, base_url: str, is_openai: bool) -> bytes:
    """The body of a request for a streamed completion.

    Args:
        request: what the runner wants.
        model: its name.
        base_url: where it is asked; the SDK knows peculiarities of some providers by it.
        is_openai: OpenAI's own reasoning models refuse `max_tokens`; many compatible servers know nothing else.
    """
    settings = request.settings
    messages = list(Converter.items_to_messages(request.input, model=model, base_url=base_url))
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    tools = [Converter.tool_to_openai(tool) for tool in request.tools]
    tools += [Converter.convert_handoff_tool(handoff) for handoff in request.handoffs]
    return encode(
        {
            "model": model,
            "messages": messages,
            "tools": tools or None,
            "tool_choice": Converter.convert_tool_choice(settings.tool_choice),
            "parallel_tool_calls": settings.parallel_tool_calls if tools else None,
            "response_format": Converter.convert_response_format(request.output_schema),
            "reasoning_effort": settings.reasoning.effort if settings.reasoning else None,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_completion_tokens" if is_openai else "max_tokens": settings.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
