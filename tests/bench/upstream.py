"""A scripted OpenAI-compatible server for load: `python -m tests.bench.upstream PORT`.

Streams Responses and Chat Completions as each question says (see `script`). A token costs it a few microseconds, so
that one core serves it and the clients. `GET /counts` tells what it has done since it was last asked.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import count
from typing import cast

import uvloop

from tests.bench.script import Script
from tests.bench.wire import StreamText, chat_stream, plain, responses_stream

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
STREAMS = {"/responses": responses_stream, "/chat/completions": chat_stream}

EARLY_S = 0.0005
"""Timers of uvloop count in milliseconds: one that is early by less is on time."""


@dataclass(slots=True)
class Counts:
    """What has happened. `late_ms`: the most by which a token came later than it should, while its reader took them."""

    answers: int = 0
    tokens: int = 0
    hung_up: int = 0
    refused: int = 0
    late_ms: float = 0.0


class Upstream:
    """What its connections share."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._numbers = count(1)

    @property
    def counts(self) -> Counts:
        """What has happened since `take`."""
        return self._counts

    def take(self) -> Counts:
        """What has happened since the last call."""
        taken, self._counts = self._counts, Counts()
        return taken

    def text(self, path: str, body: bytes) -> tuple[Script, StreamText] | None:
        """What to stream for a request; None: it is not understood."""
        make = next((make for end, make in STREAMS.items() if path.endswith(end)), None)
        script = Script.of(body)
        if make is None or script is None:
            return None
        request = json.loads(body)
        if not request.get("stream"):
            return None
        return script, make(script, str(request.get("model")), f"{next(self._numbers):024x}")


class Stream:
    """An answer under way: its tokens leave when they are due, or one in each round of the loop."""

    def __init__(self, script: Script, text: StreamText, connection: "Connection") -> None:
        self._script = script
        self._text = text
        self._connection = connection
        self._begun_s = time.monotonic() + script.first_ms / 1000
        self._step_s = 1 / script.rate_per_s if script.rate_per_s else 0.0
        self._sent = 0
        self._held = False
        self._late_counts = True
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        """Send what comes before the first token."""
        self._connection.write(self._text.opening)
        self._go_on()

    def hold(self) -> None:
        """The reader takes no more for now."""
        self._held = True
        self.cancel()

    def resume(self) -> None:
        """The reader takes tokens again; that they are late was the reader's doing."""
        self._held, self._late_counts = False, False
        self._go_on()

    def cancel(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        loop, wait_s = self._connection.loop, self._due_s() - time.monotonic()
        self._timer = loop.call_later(wait_s, self._step) if wait_s > EARLY_S else loop.call_soon(self._step)

    def _due_s(self) -> float:
        return self._begun_s + self._sent * self._step_s

    def _step(self) -> None:
        counts, now_s = self._connection.upstream.counts, time.monotonic()
        if self._step_s and self._late_counts:
            counts.late_ms = max(counts.late_ms, (now_s - self._due_s()) * 1000)
        while not self._held and self._due_s() <= now_s + EARLY_S:
            if self._sent == self._script.tokens:
                self._connection.end(self._text.closing)
                return
            number, self._sent = self._sent, self._sent + 1
            counts.tokens += 1
            self._connection.write(self._text.token(number))
            if not self._step_s:
                break
        if not self._held:
            self._go_on()


class Connection(asyncio.Protocol):
    """One client's connection: one request after the other."""

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self.upstream = upstream
        self.loop = loop
        self._received = b""
        self._stream: Stream | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
            self.upstream.counts.hung_up += 1

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.hold()

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.resume()

    def write(self, data: bytes) -> None:
        """Send."""
        if self._transport is not None:
            self._transport.write(data)

    def end(self, closing: bytes) -> None:
        """The answer is whole."""
        self._stream = None
        self.upstream.counts.answers += 1
        self.write(closing)
        self._serve()

    def _serve(self) -> None:
        """Answer what has arrived whole."""
        while self._stream is None and (request := self._next_request()) is not None:
            path, body = request
            if path == "/counts":
                self.write(plain("200 OK", asdict(self.upstream.take())))
            elif (known := self.upstream.text(path, body)) is None:
                self.upstream.counts.refused += 1
                self.write(plain("404 Not Found", {"error": {"message": f"{path}: no script for that"}}))
            else:
                self._stream = Stream(*known, self)
                self._stream.start()

    def _next_request(self) -> tuple[str, bytes] | None:
        head_end = self._received.find(HEAD_END)
        if head_end < 0:
            return None
        head = self._received[:head_end].lower()
        length_at = head.find(LENGTH)
        length = int(head[length_at + len(LENGTH) :].split(b"\r\n", 1)[0]) if length_at >= 0 else 0
        end = head_end + len(HEAD_END) + length
        if len(self._received) < end:
            return None
        body = self._received[head_end + len(HEAD_END) : end]
        path = self._received.split(b" ", 2)[1].decode()
        self._received = self._received[end:]
        return path, body


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    loop, upstream = asyncio.get_running_loop(), Upstream()
    server = await loop.create_server(lambda: Connection(upstream, loop), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
