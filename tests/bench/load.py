"""A load generator for streamed answers: standard library, one thread, a few microseconds for a read.

While it runs it only counts tokens by their mark and keeps what came; whether every answer is whole and in order is
checked afterwards, so that checking disturbs nothing.
"""

import gc
import heapq
import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.scenarios import Scenario
from tests.bench.script import MARK, Script

READ_BYTES = 262_144
POLL_S = 0.5
HEAD_END = b"\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked"


class BrokenRunError(RuntimeError):
    """An answer was not what the script says, or did not end in time: the figures would say nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """A service under load.

    Attributes:
        headers: one set for each person who asks; streams take them in turns.
        fields: of the JSON body, beside the message.
        ending: what the last event of a good answer contains.
        processes: process ids by the part that they are.
    """

    name: str
    address: tuple[str, int]
    path: str
    headers: Sequence[Mapping[str, str]]
    fields: Mapping[str, str]
    ending: bytes
    processes: Mapping[str, int]

    def request(self, script: Script, stream: int) -> bytes:
        """A whole request."""
        body = json.dumps({"message": script.question, **self.fields}).encode()
        person = self.headers[stream % len(self.headers)]
        head = {
            "host": f"{self.address[0]}:{self.address[1]}",
            "accept": "text/event-stream",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **person,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class ResponseReader:
    """Takes one HTTP/1.1 response apart, however it was cut."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._rest = b""
        self._in_head = True

    def feed(self, data: bytes) -> bytes:
        """What these bytes add to the body; of a response that is not chunked all of it."""
        self._rest += data
        if self._in_head and not self._read_head():
            return b""
        return self._read_chunks()

    def _read_head(self) -> bool:
        end = self._rest.find(HEAD_END)
        if end < 0:
            return False
        head = self._rest[:end].lower()
        self.status = int(head[9:12])
        self._in_head = False
        if CHUNKED in head:
            self._rest = self._rest[end + len(HEAD_END) :]
            return True
        # A refusal: nothing of it is wanted but its status and what has come of its text.
        self._rest = b"0" + HEAD_END
        return True

    def _read_chunks(self) -> bytes:
        rest, at, found = self._rest, 0, []
        while (line_end := rest.find(b"\r\n", at)) >= 0:
            size = int(rest[at:line_end], 16)
            begin = line_end + 2
            if len(rest) < begin + size + 2:
                break
            if not size:
                self.ended = True
                break
            found.append(rest[begin : begin + size])
            at = begin + size + 2
        self._rest = rest[at:]
        return b"".join(found)


@dataclass(slots=True)
class Answer:
    """One answer as its client saw it. Times are `time.monotonic()`; 0: has not happened."""

    script: Script
    asked_s: float
    first_s: float = 0.0
    ended_s: float = 0.0
    tokens: int = 0
    reads: int = 0
    problem: str = ""
    _body: list[bytes] = field(default_factory=list)
    _last: bytes = b""

    def take(self, body: bytes, now_s: float) -> None:
        """More of it has come."""
        self.reads += 1
        self._body.append(body)
        # A mark may have been cut in two.
        new = (self._last + body).count(MARK)
        self._last = body[-1:] if body[-1:] == MARK[:1] else b""
        if new:
            self.first_s = self.first_s or now_s
            self.tokens += new

    def check(self, ending: bytes) -> str:
        """What is wrong with it; empty: nothing."""
        if self.problem:
            return self.problem
        events = b"".join(self._body).split(b"\n\n")
        text = "".join(map(_text_of, events))
        if text != self.script.answer:
            return f"other text than the script's, {self.tokens} of {self.script.tokens} tokens: {text[-200:]!r}"
        # Behind the last event's end there is nothing.
        if len(events) < 2 or events[-1] or ending not in events[-2]:
            return f"ended with {events[-2:]!r}"
        return ""

    @property
    def first_ms(self) -> float:
        """From the question to the first token."""
        return (self.first_s - self.asked_s) * 1000

    @property
    def whole_ms(self) -> float:
        """From the question to the end of the stream."""
        return (self.ended_s - self.asked_s) * 1000


def _text_of(event: bytes) -> str:
    """What an event adds to the answer."""
    if MARK not in event:
        return ""
    data = next(line for line in event.split(b"\n") if line.startswith(b"data: "))
    document: Any = json.loads(data.removeprefix(b"data: "))
    return str(document["content"])


class _Stream:
    """One connection; it asks a question when the answer to the last one has ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection: socket.socket | None = None
        self.reader = ResponseReader()
        self.answer: Answer | None = None

    def ask(self, target: Target, script: Script, poll: select.epoll) -> None:
        if self.connection is None:
            self.connection = socket.create_connection(target.address, timeout=10)
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connection.settimeout(0)
            poll.register(self.connection.fileno(), select.EPOLLIN)
        self.reader = ResponseReader()
        self.answer = Answer(script, time.monotonic())
        self.connection.send(target.request(script, self.number))

    def read(self) -> Answer | None:
        """Take what has come. Returns the answer when it has ended."""
        answer, connection = self.answer, self.connection
        assert connection is not None
        try:
            data = connection.recv(READ_BYTES)
        except OSError as err:
            data, problem = b"", f"connection lost: {err}"
        else:
            problem = "" if data else "connection closed"
        now_s = time.monotonic()
        if answer is None:
            if data:
                raise BrokenRunError(f"bytes without a question: {data[:200]!r}")
            # Servers close connections on which nothing has been asked for some seconds.
            self.close()
            return None
        if problem:
            answer.problem = problem
        elif body := self.reader.feed(data):
            answer.take(body, now_s)
        if self.reader.ended and self.reader.status != 200:
            answer.problem = f"status {self.reader.status}: {data[-300:]!r}"
        if not problem and not self.reader.ended:
            return None
        answer.ended_s, self.answer = now_s, None
        return answer

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a load. `wall_s`: until the last answer had ended."""

    answers: Sequence[Answer]
    wall_s: float

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(answer.tokens for answer in self.answers)


def run(target: Target, scenario: Scenario) -> Outcome:
    """Put a load on a service, and check every answer.

    Raises:
        BrokenRunError: an answer failed, was short or out of order, or took too long.
    """
    gc.collect()
    gc.disable()
    try:
        outcome = _Run(target, scenario).run()
    finally:
        gc.enable()
    for answer in outcome.answers:
        if problem := answer.check(target.ending):
            raise BrokenRunError(f"{target.name}, {scenario.name}, {answer.script.tag}: {problem}")
    return outcome


class _Run:
    def __init__(self, target: Target, scenario: Scenario) -> None:
        self._target = target
        self._scenario = scenario
        self._streams = [_Stream(number) for number in range(scenario.streams)]
        self._by_descriptor: dict[int, _Stream] = {}
        self._answers: list[Answer] = []
        self._asked = 0
        self._begun_s = 0.0

    def run(self) -> Outcome:
        scenario, self._begun_s = self._scenario, time.monotonic()
        starts = [(self._begun_s + scenario.ramp_s * n / scenario.streams, n) for n in range(scenario.streams)]
        heapq.heapify(starts)
        try:
            with select.epoll() as poll:
                while starts or len(self._answers) < self._asked:
                    self._start(starts, poll)
                    self._read(starts, poll)
        finally:
            for stream in self._streams:
                stream.close()
        return Outcome(self._answers, time.monotonic() - self._begun_s)

    def _start(self, starts: list[tuple[float, int]], poll: select.epoll) -> None:
        """Let the streams ask whose time has come."""
        now_s = time.monotonic()
        if now_s - self._begun_s > self._scenario.most_s:
            raise BrokenRunError(
                f"{self._target.name}, {self._scenario.name}: {self._asked - len(self._answers)} answers have not "
                f"ended after {self._scenario.most_s:.0f} s"
            )
        while starts and starts[0][0] <= now_s:
            _, number = heapq.heappop(starts)
            if self._may_ask(now_s):
                stream = self._streams[number]
                self._asked += 1
                stream.ask(self._target, self._scenario.script(), poll)
                assert stream.connection is not None
                self._by_descriptor[stream.connection.fileno()] = stream

    def _may_ask(self, now_s: float) -> bool:
        if self._scenario.answers:
            return self._asked < self._scenario.answers
        return now_s - self._begun_s < self._scenario.asking_s

    def _read(self, starts: list[tuple[float, int]], poll: select.epoll) -> None:
        wait_s = min(POLL_S, max(0.0, starts[0][0] - time.monotonic())) if starts else POLL_S
        for descriptor, _ in poll.poll(wait_s):
            stream = self._by_descriptor[descriptor]
            if (answer := stream.read()) is not None:
                self._answers.append(answer)
                if answer.problem:
                    raise BrokenRunError(f"{self._target.name}, {self._scenario.name}: {answer.problem}")
                heapq.heappush(starts, (answer.ended_s, stream.number))
