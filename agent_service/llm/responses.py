"""The Responses API: the body of a request, and the events of an answer."""

from collections.abc import Iterable
from typing import Any

import msgspec
from agents.items import ItemHelpers
from agents.models.openai_responses import Converter
from openai.types.responses import ResponseReasoningItem
from pydantic import ValidationError

from agent_service.llm.answer import Answer, Count, Part, TextPlace, ToolCall
from agent_service.llm.counts import InputDetails, OutputDetails, Tokens
from agent_service.llm.failures import Kind, not_understood, reported
from agent_service.llm.reader import NONSENSE, code_and_type
from agent_service.llm.request import ModelRequest, encode

PATH = "responses"


class UsageCount(msgspec.Struct):
    """`usage` of a response."""

    input_tokens: Tokens
    output_tokens: Tokens
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


class ContentPart(msgspec.Struct):
    """A piece of a message."""

    type: str
    text: str = ""
    refusal: str = ""


class Item(msgspec.Struct):
    """An item of the output: message, function call or reasoning."""

    type: str
    content: msgspec.Raw = msgspec.Raw(b"null")
    name: str = ""
    call_id: str | None = None
    arguments: str = ""
    encrypted_content: str | None = None


class IncompleteDetails(msgspec.Struct):
    """Why a response is not whole."""

    reason: str | None = None


class WholeResponse(msgspec.Struct):
    """A response at its end."""

    output: list[msgspec.Raw] | None = None
    status: str | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class StreamEvent(msgspec.Struct):
    """Any event. What lies below is decoded only where the type says what it is."""

    type: str = ""
    delta: msgspec.Raw = msgspec.Raw(b"")
    item: msgspec.Raw = msgspec.Raw(b"")
    response: msgspec.Raw = msgspec.Raw(b"")


_event = msgspec.json.Decoder(StreamEvent)
_text = msgspec.json.Decoder(str)
_item = msgspec.json.Decoder(Item)
_content = msgspec.json.Decoder(list[ContentPart] | None)
_response = msgspec.json.Decoder(WholeResponse)
_usage = msgspec.json.Decoder(UsageCount)
_any = msgspec.json.Decoder()


class ResponsesDecoder:
    """Reads one response. See `reader.Decoder`."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._items: list[msgspec.Raw] = []

    def event(self, data: bytes) -> None:
        """See `Decoder`."""
        if data == b"[DONE]":
            # Some servers end with it as Chat Completions do.
            return
        event = _event.decode(data)
        if event.type == "response.output_text.delta":
            self.answer.say(_text.decode(event.delta))
        elif event.type == "response.refusal.delta":
            self.answer.refuses = True
            self.answer.say(_text.decode(event.delta))
        elif event.type == "response.output_item.done":
            self._items.append(event.item.copy())
        elif event.type in {"response.completed", "response.incomplete"}:
            self._finish(_response.decode(event.response))
        elif event.type == "response.failed":
            self._fail(_any.decode(event.response))
        elif event.type == "error" or not event.type:
            self._fail(_any.decode(data))

    def body(self, data: bytes) -> None:
        """See `Decoder`."""
        envelope = _any.decode(data)
        if not isinstance(envelope, dict) or envelope.get("error") or "output" not in envelope:
            self._fail(envelope)
        else:
            self._finish(_response.decode(data))

    def _fail(self, envelope: Any) -> None:
        """Raise what an error says; an envelope without one is nonsense, and a filter's is an answer."""
        code, kind = code_and_type(envelope)
        if code is None and not (isinstance(envelope, dict) and envelope.get("error")):
            # A bare error event has `error` or nothing as its type.
            bare = isinstance(envelope, dict) and envelope.get("type") == "error"
            raise reported(None) if bare else not_understood()
        fault = reported(code, kind)
        if fault.kind is not Kind.FILTERED:
            raise fault
        self.answer.refuses = self.answer.whole = self.answer.over = True

    def _finish(self, response: WholeResponse) -> None:
        """The end: items as the response has them, but text as it was streamed, if it was."""
        if response.status == "failed":
            self._fail({"error": _any.decode(response.error)})
            return
        streamed = bool(self.answer.text)
        parts: list[Part] = []
        place = TextPlace()
        for raw in response.output or self._items:
            item = _item.decode(raw)
            if item.type == "function_call":
                parts.append(ToolCall(item.name, item.call_id or "", [item.arguments]))
            elif item.type == "reasoning" and item.encrypted_content:
                parts.append(_reasoning(raw))
            elif item.type == "message":
                if place not in parts:
                    parts.append(place)
                self._read_message(item, streamed=streamed)
        if self.answer.text and place not in parts:
            parts.insert(0, place)
        self.answer.parts = parts
        reason = response.incomplete_details.reason if response.incomplete_details else None
        if reason == "content_filter":
            self.answer.refuses = True
        elif reason is not None or response.status == "incomplete":
            self.answer.cut = True
        self.answer.count = _counted(response.usage)
        self.answer.whole = self.answer.over = True

    def _read_message(self, item: Item, *, streamed: bool) -> None:
        for part in _content.decode(item.content) or ():
            self.answer.refuses = self.answer.refuses or part.type == "refusal"
            if not streamed and part.type in {"refusal", "output_text"}:
                self.answer.say(part.refusal or part.text)


def _reasoning(raw: msgspec.Raw) -> ResponseReasoningItem:
    """A reasoning item as it came: the model wants it back as it was."""
    try:
        return ResponseReasoningItem.model_validate_json(bytes(raw))
    except ValidationError as err:
        raise not_understood() from err


def _counted(usage: msgspec.Raw) -> Count | None:
    """Tokens, where they are counted in a way that makes sense: an answer is not given up for its bill."""
    try:
        counted = _usage.decode(usage)
    except NONSENSE:
        return None
    if not counted.input_tokens and not counted.output_tokens:
        return None
    cached = counted.input_tokens_details.cached_tokens if counted.input_tokens_details else 0
    reasoning = counted.output_tokens_details.reasoning_tokens if counted.output_tokens_details else 0
    return Count(counted.input_tokens, counted.output_tokens, cached or 0, reasoning or 0)


def body(request: ModelRequest, model: str) -> bytes:
    """The body of a request for a streamed response that the provider does not keep."""
    settings = request.settings
    converted = Converter.convert_tools(request.tools, request.handoffs, model=model, tool_choice=settings.tool_choice)
    include = set(converted.includes)
    if settings.reasoning is not None and settings.reasoning.effort is not None:
        # Unkept reasoning can be handed back only in this form; servers that do not reason refuse the word.
        include.add("reasoning.encrypted_content")
    return encode(
        {
            "model": model,
            "instructions": request.instructions,
            "input": list(_replayed(ItemHelpers.input_to_new_input_list(request.input))),
            "tools": converted.tools or None,
            "tool_choice": Converter.convert_tool_choice(
                settings.tool_choice, tools=request.tools, handoffs=request.handoffs, model=model
            ),
            "parallel_tool_calls": settings.parallel_tool_calls if converted.tools else None,
            "text": Converter.get_response_format(request.output_schema),
            "include": sorted(include) or None,
            "reasoning": settings.reasoning,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_output_tokens": settings.max_tokens,
            "stream": True,
            "store": False,
        }
    )


def _replayed(items: Iterable[Any]) -> Iterable[Any]:
    """Items that can be sent back: the provider keeps none, so ids lead nowhere, and bare reasoning is refused."""
    for item in items:
        if not isinstance(item, dict):
            yield item
        elif item.get("type") != "reasoning" or item.get("encrypted_content"):
            yield {name: value for name, value in item.items() if name not in {"id", "provider_data"}}
