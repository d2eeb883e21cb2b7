"""The sentence that scripts the upstream, and the bytes that it makes of it."""

import json

import pytest

from tests.bench.script import Script, token
from tests.bench.wire import chat_stream, responses_stream

SCRIPT = Script("q7", 12, 20, 200)


def test_a_script_is_read_from_the_question_that_carries_it() -> None:
    body = json.dumps({"input": [{"role": "user", "content": SCRIPT.question}], "stream": True})

    assert Script.of(body.encode()) == SCRIPT


def test_of_several_questions_the_last_one_counts() -> None:
    body = f"{SCRIPT.question} Documents in between. {Script('q8', 3, 0, 0).question}"

    assert Script.of(body.encode()) == Script("q8", 3, 0, 0)


@pytest.mark.parametrize("body", [b"", b"What does it cost?", b"In Case of doubt: 3 tokens"])
def test_a_question_without_a_script_has_none(body: bytes) -> None:
    assert Script.of(body) is None


def test_the_ideal_time_is_that_of_the_upstream() -> None:
    assert SCRIPT.ideal_ms == 200 + 12 * 50
    assert Script("q", 400, 0, 30).ideal_ms == 30


def dechunked(stream: bytes) -> bytes:
    body, rest = b"", stream
    while (size := int(rest[: rest.index(b"\r\n")], 16)) > 0:
        begin = rest.index(b"\r\n") + 2
        body, rest = body + rest[begin : begin + size], rest[begin + size + 2 :]
    assert rest == b"0\r\n\r\n"
    return body


def events_of(stream: bytes) -> list[str]:
    _, _, chunks = stream.partition(b"\r\n\r\n")
    blocks = dechunked(chunks).decode().split("\n\n")
    assert blocks.pop() == ""
    return [line.removeprefix("data: ") for block in blocks for line in block.split("\n") if line.startswith("data: ")]


def test_a_responses_stream_has_numbered_events_and_the_whole_text_at_the_end() -> None:
    text = responses_stream(SCRIPT, "some-model", "1")

    stream = text.opening + b"".join(text.token(number) for number in range(SCRIPT.tokens)) + text.closing

    events = [json.loads(event) for event in events_of(stream)]
    assert [event["sequence_number"] for event in events] == list(range(SCRIPT.tokens + 8))
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas == [token(number) for number in range(SCRIPT.tokens)]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == SCRIPT.answer
    assert events[-1]["response"]["usage"]["output_tokens"] == SCRIPT.tokens


def test_a_chat_stream_ends_with_a_finish_reason_the_usage_and_done() -> None:
    text = chat_stream(SCRIPT, "some-model", "1")

    stream = text.opening + b"".join(text.token(number) for number in range(SCRIPT.tokens)) + text.closing

    *lines, done = events_of(stream)
    _, *deltas, finish, usage = (json.loads(line) for line in lines)
    assert [each["choices"][0]["delta"]["content"] for each in deltas] == list(map(token, range(SCRIPT.tokens)))
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == SCRIPT.tokens
    assert done == "[DONE]"
