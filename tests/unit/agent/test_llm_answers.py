"""Answers out of the bytes of both APIs: calls in pieces, endings, usage, every split, and streams gone wrong."""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem

from agent_service.errors import AgentServiceError, ModelFailedError, ModelRateLimitedError, ModelUnavailableError
from agent_service.llm.answer import Answer
from agent_service.llm.chat_completions import ChatDecoder
from agent_service.llm.failures import NoAnswerError
from agent_service.llm.reader import MAX_ANSWER_BYTES, AnswerReader, Decoder
from agent_service.llm.responses import ResponsesDecoder
from agent_service.types import Outcome
from tests.support.openai_server import Reply, stream_body

DECODERS: dict[str, Callable[[], Decoder]] = {"responses": ResponsesDecoder, "chat_completions": ChatDecoder}
PATHS = {"responses": "/v1/responses", "chat_completions": "/v1/chat/completions"}
REPLIES = {
    "text": Reply.text("It costs 40 EUR \U0001f642 [1].").with_usage(120, 7, cached=64, reasoning=3),
    "empty": Reply.text(""),
    "length": Reply.length("cut text"),
    "filtered": Reply.filtered("cut text"),
    "refusal": Reply.refusal("I will nöt."),
    "tools": Reply.tools(("search", {"query": "plans \u00fc all"}), ("search", '{"broken')),
    "text and tool": Reply.text_and_tool("Let me look.", "search", {"query": "plans"}),
    "uncounted": Reply.text("Forty.").without_usage(),
    "failure": Reply.failure("server_error", after_pieces=2),
    "truncated": Reply.truncated(after_pieces=2),
    "malformed": Reply.malformed(after_pieces=1),
}


@pytest.fixture(params=DECODERS)
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Heard:
    """An answer read from pieces, and the text as it was handed on."""

    def __init__(self, api: str, pieces: Sequence[bytes]) -> None:
        reader = AnswerReader(DECODERS[api]())
        self.answer: Answer = reader.answer
        self.text = ""
        self.failure: AgentServiceError | None = None
        self.items: list[Any] = []
        try:
            for piece in pieces:
                self.text += reader.feed(piece)
            self.text += reader.end()
            self.items = self.answer.output()
        except NoAnswerError as fault:
            self.text += reader.answer.take()
            self.failure = fault.error()

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [(item.name, item.arguments) for item in self.items if isinstance(item, ResponseFunctionToolCall)]

    @property
    def message(self) -> str:
        messages = [item for item in self.items if isinstance(item, ResponseOutputMessage)]
        return "".join(getattr(part, "text", "") for item in messages for part in item.content)

    @property
    def gist(self) -> object:
        return (type(self.failure), self.text, self.message, self.calls, self.answer.outcome, self.answer.count)


def hear(api: str, *pieces: bytes) -> Heard:
    return Heard(api, pieces)


def chunks(*deltas: dict[str, Any], finish: str | None = "tool_calls") -> bytes:
    """A stream of Chat Completions from its deltas."""
    ends: list[dict[str, Any]] = [{"delta": {}, "finish_reason": finish}]
    choices = [{"delta": delta} for delta in deltas] + ends
    return b"".join(b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode() for choice in choices)


def ended(response: dict[str, Any], kind: str = "response.completed") -> bytes:
    """A stream of the Responses API that has nothing but its last event."""
    return b"data: %s\n\n" % json.dumps({"type": kind, "response": response}).encode()


def call(name: str = "search", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


# --- splits ---


@pytest.mark.parametrize("name", REPLIES)
def test_no_split_in_two_or_into_bytes_changes_an_answer(api: str, name: str) -> None:
    body = stream_body(REPLIES[name], PATHS[api])
    whole = hear(api, body).gist

    assert hear(api, *(bytes([byte]) for byte in body)).gist == whole
    for cut in range(1, len(body), 7):
        assert hear(api, body[:cut], body[cut:]).gist == whole


@settings(max_examples=150)
@given(st.sampled_from(sorted(REPLIES)), st.sampled_from(sorted(DECODERS)), st.booleans(), st.data())
def test_no_splits_change_an_answer(name: str, api: str, crlf: bool, data: st.DataObject) -> None:
    body = stream_body(REPLIES[name], PATHS[api])
    if crlf:
        body = body.replace(b"\n", b"\r\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    heard = hear(api, *pieces)

    assert heard.gist == hear(api, body).gist
    assert heard.failure is not None or heard.message == heard.text


# --- what an answer holds ---


def test_text_and_calls_of_one_answer_are_both_kept(api: str) -> None:
    heard = hear(api, stream_body(REPLIES["text and tool"], PATHS[api]))

    assert heard.text == heard.message == "Let me look."
    assert heard.calls == [("search", '{"query": "plans"}')]
    assert [type(item) for item in heard.items] == [ResponseOutputMessage, ResponseFunctionToolCall]


def test_several_calls_keep_their_order_and_their_arguments_even_if_broken(api: str) -> None:
    heard = hear(api, stream_body(REPLIES["tools"], PATHS[api]))

    assert [arguments for _, arguments in heard.calls] == [json.dumps({"query": "plans \u00fc all"}), '{"broken']
    assert [item.call_id for item in heard.items] == ["call_1_0", "call_1_1"]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("text", None),
        ("length", Outcome.TRUNCATED),
        ("filtered", Outcome.REFUSED),
        ("refusal", Outcome.REFUSED),
        ("tools", None),
    ],
)
def test_the_ending_says_what_is_special(api: str, name: str, outcome: Outcome | None) -> None:
    heard = hear(api, stream_body(REPLIES[name], PATHS[api]))

    assert heard.answer.outcome is outcome
    assert heard.text == heard.message == REPLIES[name].content


def test_usage_is_counted_with_its_parts(api: str) -> None:
    usage = hear(api, stream_body(REPLIES["text"], PATHS[api])).answer.usage(0)

    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (120, 7, 127)
    assert usage.input_tokens_details.cached_tokens == 64
    assert usage.output_tokens_details.reasoning_tokens == 3


@pytest.mark.parametrize("usage", [None, "x", {"prompt_tokens": "many"}, {"input_tokens": -1}, [], {}])
def test_what_nobody_counted_is_estimated_at_four_characters_a_token(api: str, usage: object) -> None:
    if api == "responses":
        body = ended({"output": [{"type": "message", "content": [{"type": "output_text", "text": "Forty-one"}]}]})
        body = body.replace(b'{"output"', b'{"usage": %s, "output"' % json.dumps(usage).encode())
    else:
        body = chunks({"content": "Forty-one"}, finish="stop") + b'data: {"usage": %s}\n\n' % json.dumps(usage).encode()

    counted = hear(api, body).answer.usage(401)

    assert (counted.requests, counted.input_tokens, counted.output_tokens) == (1, 101, 3)


def test_a_body_that_is_no_stream_is_a_whole_answer() -> None:
    chat = {"choices": [{"message": {"content": "Forty.", "tool_calls": [call(id="a")]}, "finish_reason": "stop"}]}
    item = {"type": "message", "content": [{"type": "output_text", "text": "Forty."}]}
    response = {"status": "completed", "output": [item, {"type": "function_call", "name": "search", "call_id": "a"}]}

    for api, body in (("chat_completions", chat), ("responses", response)):
        heard = hear(api, *(bytes([byte]) for byte in b" \n" + json.dumps(body).encode()))
        assert (heard.text, heard.message, heard.calls) == ("Forty.", "Forty.", [("search", "{}")])


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"choices": []}', b'{"output": 5}', b'{"choices": [{"message": 1}]}'])
def test_a_body_that_is_neither_a_stream_nor_an_answer_has_failed(api: str, body: bytes) -> None:
    assert isinstance(hear(api, body).failure, ModelFailedError)


def test_text_that_only_comes_at_the_end_is_handed_on() -> None:
    body = ended({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]})

    heard = hear("responses", body)

    assert (heard.text, heard.message, heard.answer.outcome) == ("No.", "No.", Outcome.REFUSED)


def test_calls_are_kept_where_the_last_event_repeats_nothing() -> None:
    item = {"type": "function_call", "name": "search", "arguments": "{}", "call_id": "a"}
    done = b"data: %s\n\n" % json.dumps({"type": "response.output_item.done", "item": item}).encode()

    assert hear("responses", done + ended({"output": []})).calls == [("search", "{}")]


def test_reasoning_is_kept_where_it_can_be_handed_back() -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    item = {"type": "function_call", "name": "search", "arguments": "{}", "call_id": "a"}

    heard = hear("responses", ended({"output": [reasoning, {**reasoning, "encrypted_content": "x"}, item]}))

    assert [type(each) for each in heard.items] == [ResponseReasoningItem, ResponseFunctionToolCall]


# --- calls of Chat Completions in pieces ---


@pytest.mark.parametrize(
    "deltas",
    [
        [[call("one", "{", index=0, id="a")], [call("", "}", index=0)], [call("two", index=1, id="b")]],
        [[call("one", "{", id="a")], [call("", "}")], [call("two", id="b")]],
        [[call("one", index=0, id="a"), call("two", index=1, id="b")]],
        [[call("one", index=0, id="a")], [call("two", index=0, id="b")]],
        [[call("one")], [call("two")]],
        [[call("one", "{", index=0, id="a")], [call("one", "}", index=0, id="a")], [call("two", index=3)]],
        [[call("one", index=0, id="a")], [call("two", index=1, id="a")]],
    ],
    ids=["by index", "by id", "at once", "one index for all", "by name", "ids repeated", "one id for all"],
)
def test_calls_are_put_together(deltas: list[Any]) -> None:
    heard = hear("chat_completions", chunks(*({"tool_calls": each} for each in deltas)))

    assert heard.calls == [("one", "{}"), ("two", "{}")]
    ids = [item.call_id for item in heard.items]
    assert all(ids)
    assert len(set(ids)) == 2


def test_a_call_of_nothing_has_failed() -> None:
    assert isinstance(hear("chat_completions", chunks({"tool_calls": [{"index": 0}]})).failure, ModelFailedError)
    assert isinstance(hear("responses", ended({"output": [{"type": "function_call"}]})).failure, ModelFailedError)


def test_a_limit_that_ends_calls_cuts_no_answer() -> None:
    heard = hear("chat_completions", chunks({"tool_calls": [call(id="a")]}, finish="length"))

    assert heard.answer.outcome is None


# --- failures inside a stream ---


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("rate_limit_exceeded", ModelRateLimitedError),
        ("insufficient_quota", ModelRateLimitedError),
        ("429", ModelRateLimitedError),
        ("server_error", ModelUnavailableError),
        (503, ModelUnavailableError),
        (400, ModelFailedError),
        (7, ModelFailedError),
        ("invalid_prompt", ModelFailedError),
        (None, ModelFailedError),
    ],
)
def test_a_failure_in_the_stream_is_told_by_its_code(api: str, code: Any, error: type[Exception]) -> None:
    body = stream_body(Reply.failure(code, after_pieces=1), PATHS[api])

    assert type(hear(api, body).failure) is error
    assert type(hear(api, b'data: {"error": {"code": %s}}\n\n' % json.dumps(code).encode()).failure) is error


def test_a_bare_error_event_is_told_by_its_code() -> None:
    body = b'data: {"type": "error", "code": "server_error", "message": "SECRET", "param": null}\n\n'

    assert isinstance(hear("responses", body).failure, ModelUnavailableError)


def test_a_filter_that_reports_itself_as_a_failure_is_a_refusal(api: str) -> None:
    heard = hear(api, stream_body(Reply.failure("content_filter", after_pieces=1), PATHS[api]))

    assert heard.failure is None
    assert (heard.text, heard.answer.outcome) == ("piece1 ", Outcome.REFUSED)


@pytest.mark.parametrize("size", [MAX_ANSWER_BYTES, 2**20], ids=["a body without end", "a line without end"])
def test_what_never_ends_has_failed(api: str, size: int) -> None:
    piece = (b": " + b"x" * 2**18 + b"\n") if size == MAX_ANSWER_BYTES else b"x" * 2**18

    assert isinstance(hear(api, *([piece] * (size // len(piece) + 1))).failure, ModelFailedError)


# --- streams gone wrong ---


def mutated(body: bytes, chance: random.Random) -> bytes:
    """A stream with one to three faults."""
    data = bytearray(body)
    for _ in range(chance.randint(1, 3)):
        if not data:
            break
        at, size = chance.randrange(len(data)), chance.randint(1, 40)
        kind = chance.randrange(5)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size]
        elif kind == 3:
            del data[at:]
        else:
            # Another type in the place of a value.
            values = list(re.finditer(rb'(?<=: )("[^"]*"|\d+|null|true|\{|\[)', bytes(data)))
            if values:
                start, stop = chance.choice(values).span()
                data[start:stop] = chance.choice([b"null", b"1e400", b"-7", b'"x"', b"[]", b"{}", b"true", b"[{}]"])
    return bytes(data)


@pytest.mark.parametrize("name", sorted(REPLIES))
def test_streams_gone_wrong_end_in_an_answer_or_a_defined_error(api: str, name: str) -> None:
    """Sixty for each reply and API, more than a thousand in all."""
    body = stream_body(REPLIES[name], PATHS[api])
    chance = random.Random(f"{api} {name}")
    for _ in range(60):
        broken = mutated(body, chance)
        cut = chance.randrange(len(broken) + 1)

        heard = hear(api, broken[:cut], broken[cut:])

        assert heard.failure is not None or (heard.answer.whole and heard.items)
        if heard.failure is None:
            assert heard.message == heard.text
            assert heard.answer.usage(100).total_tokens > 0
