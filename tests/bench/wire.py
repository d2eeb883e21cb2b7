"""What the scripted upstream writes: the events of a Responses or a Chat Completions stream, as OpenAI sends them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from tests.bench.script import Script, token

JsonObject: TypeAlias = dict[str, Any]

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class StreamText:
    """The bytes of one answer.

    Attributes:
        opening: head and the events before the first token.
        prefix: what every token's event begins with.
        suffixes: what it ends with, one for each token.
        closing: the events after the last token.
    """

    opening: bytes
    prefix: bytes
    suffixes: Sequence[bytes]
    closing: bytes

    def token(self, number: int) -> bytes:
        """The chunk of one token."""
        suffix = self.suffixes[number]
        return b"%x\r\n%b%b\r\n" % (len(self.prefix) + len(suffix), self.prefix, suffix)


def plain(status: str, body: Mapping[str, Any]) -> bytes:
    """A whole response that is no stream."""
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def responses_stream(script: Script, model: str, ident: str) -> StreamText:
    """An answer of the Responses API."""
    item_id, place = f"msg_{ident}", {"output_index": 0, "content_index": 0}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
    item = {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    text = script.answer
    whole_part = part | {"text": text}
    whole_item = item | {"status": "completed", "content": [whole_part]}
    begun = _response(ident, model, "in_progress", [], None)
    usage = {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": script.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1000 + script.tokens,
    }
    opening = (
        _event("response.created", 0, response=begun)
        + _event("response.in_progress", 1, response=begun)
        + _event("response.output_item.added", 2, output_index=0, item=item)
        + _event("response.content_part.added", 3, item_id=item_id, part=part, **place)
    )
    last = 4 + script.tokens
    closing = (
        _event("response.output_text.done", last, item_id=item_id, text=text, logprobs=[], **place)
        + _event("response.content_part.done", last + 1, item_id=item_id, part=whole_part, **place)
        + _event("response.output_item.done", last + 2, output_index=0, item=whole_item)
        + _event("response.completed", last + 3, response=_response(ident, model, "completed", [whole_item], usage))
    )
    name = "response.output_text.delta"
    prefix = f'event: {name}\ndata: {{"type":"{name}","item_id":"{item_id}","output_index":0,"content_index":0,"delta":'
    return StreamText(HEAD + opening, prefix.encode(), _responses_suffixes(script.tokens), closing + LAST_CHUNK)


def chat_stream(script: Script, model: str, ident: str) -> StreamText:
    """An answer of the Chat Completions API."""
    base = {"id": f"chatcmpl-{ident}", "object": "chat.completion.chunk", "created": 0, "model": model}
    usage = {"prompt_tokens": 1000, "completion_tokens": script.tokens, "total_tokens": 1000 + script.tokens}
    opening = _data(base | _choice({"role": "assistant", "content": "", "refusal": None}, None))
    closing = _data(base | _choice({}, "stop")) + _data(base | {"choices": [], "usage": usage})
    prefix = f'data: {_compact(base)[:-1]},"choices":[{{"index":0,"delta":{{"content":'
    return StreamText(
        HEAD + opening,
        prefix.encode(),
        _chat_suffixes(script.tokens),
        closing + _chunk(b"data: [DONE]\n\n") + LAST_CHUNK,
    )


def _choice(delta: JsonObject, finish_reason: str | None) -> JsonObject:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}


def _response(ident: str, model: str, status: str, output: list[JsonObject], usage: JsonObject | None) -> JsonObject:
    """A response object with all that OpenAI's own have: reading it is a part of the cost."""
    return {
        "id": f"resp_{ident}",
        "object": "response",
        "created_at": 0,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
        "metadata": {},
    }


@cache
def _responses_suffixes(tokens: int) -> Sequence[bytes]:
    tails = (f'"{token(number)}","logprobs":[],"sequence_number":{4 + number}}}\n\n' for number in range(tokens))
    return [tail.encode() for tail in tails]


@cache
def _chat_suffixes(tokens: int) -> Sequence[bytes]:
    return [f'"{token(number)}"}},"logprobs":null,"finish_reason":null}}]}}\n\n'.encode() for number in range(tokens)]


def _event(name: str, sequence_number: int, **fields: Any) -> bytes:
    body = _compact({"type": name, "sequence_number": sequence_number, **fields})
    return _chunk(f"event: {name}\ndata: {body}\n\n".encode())


def _data(body: JsonObject) -> bytes:
    return _chunk(f"data: {_compact(body)}\n\n".encode())


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def _compact(body: JsonObject) -> str:
    return json.dumps(body, separators=(",", ":"))
