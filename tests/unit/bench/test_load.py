"""Reading streamed answers: however they were cut, however tokens share events."""

import json
from collections.abc import Sequence

import pytest

from tests.bench.load import Answer, ResponseReader, Target
from tests.bench.script import Script, token

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SCRIPT = Script("q1", 6, 0, 0)
ENDING = b"complete"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def event(content: str) -> bytes:
    return f"event: token\ndata: {json.dumps({'content': content})}\n\n".encode()


def answered(parts: Sequence[bytes]) -> Answer:
    answer = Answer(SCRIPT, asked_s=10.0)
    for number, part in enumerate(parts):
        answer.take(part, 11.0 + number)
    return answer


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_body_is_the_same_however_it_was_cut(size: int) -> None:
    stream = HEAD + chunk(b"one ") + chunk(b"two\r\n") + chunk(b"x" * 300) + b"0\r\n\r\n"
    reader = ResponseReader()

    body = b"".join(reader.feed(stream[at : at + size]) for at in range(0, len(stream), size))

    assert body == b"one two\r\n" + b"x" * 300
    assert (reader.status, reader.ended) == (200, True)


def test_a_refusal_ends_at_once_with_its_status() -> None:
    reader = ResponseReader()

    reader.feed(b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{"')

    assert (reader.status, reader.ended) == (503, True)


def test_tokens_are_counted_when_several_share_an_event() -> None:
    answer = answered(
        [event(token(0)), event(token(1) + token(2) + token(3)), event(token(4) + token(5)) + b"complete\n\n"]
    )

    assert answer.tokens == 6
    assert answer.first_ms == pytest.approx(1000)
    assert answer.check(ENDING) == ""


def test_a_mark_that_was_cut_in_two_counts_once() -> None:
    whole = event("".join(map(token, range(6)))) + b"complete\n\n"

    for cut in range(len(whole)):
        answer = answered([whole[:cut], whole[cut:]])

        assert answer.tokens == 6
        assert answer.check(ENDING) == ""


@pytest.mark.parametrize(
    "numbers",
    [(0, 1, 2, 3, 4), (0, 1, 2, 4, 3, 5), (0, 1, 2, 3, 4, 5, 5), ()],
    ids=["one missing", "out of order", "one twice", "none"],
)
def test_an_answer_with_other_tokens_than_the_scripts_is_wrong(numbers: Sequence[int]) -> None:
    answer = answered([*(event(token(number)) for number in numbers), b"complete\n\n"])

    assert "other text than the script's" in answer.check(ENDING)


@pytest.mark.parametrize("end", [b"", b"event: error\n\n", b"comple"], ids=["nothing", "error", "cut off"])
def test_an_answer_without_its_ending_is_wrong(end: bytes) -> None:
    answer = answered([event(SCRIPT.answer), end])

    assert "ended with" in answer.check(ENDING)


def test_a_request_is_whole_and_people_take_turns() -> None:
    people = [{"authorization": "Bearer a"}, {"authorization": "Bearer b"}]
    target = Target("pair", ("127.0.0.1", 80), "/api/chat", people, {"agent": "technical"}, ENDING, {})

    head, _, body = target.request(SCRIPT, 3).partition(b"\r\n\r\n")

    assert head.startswith(b"POST /api/chat HTTP/1.1\r\n")
    assert b"authorization: Bearer b" in head
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body) == {"message": SCRIPT.question, "agent": "technical"}
