"""A client as the documentation describes one, and stricter: it checks the numbers of every event that it gets.

It hangs up where a test says so, comes back through whichever edge, and repeats what may be repeated.
"""

import asyncio
import itertools
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx

from tests.support.cluster_model import Script

JsonObject: TypeAlias = dict[str, Any]

PATIENCE_S = 20.0
"""How long a client repeats a request, or comes back to a stream that tells it nothing new."""

PAUSE_S = 0.5
"""Between two tries where the server has not said how long to wait."""

RETRIED = frozenset({502, 503, 504})


class NumberingError(AssertionError):
    """Events came twice, not at all, in another order, or after the end."""


class RefusedError(AssertionError):
    """The server answered with a status that no repetition heals, or not in time."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A server-sent event; `id` as it was sent, None without one."""

    id: str | None
    event: str
    data: JsonObject


class FrameParser:
    """Whole frames from bytes, however they were cut. Comments are passed over."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
        frames = (_frame(block.decode()) for block in blocks)
        return [frame for frame in frames if frame is not None]


def _frame(block: str) -> Frame | None:
    fields: dict[str, str] = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        if name in fields:
            raise NumberingError(f"a frame has two lines {name!r}: {block!r}")
        if name:
            fields[name] = value.removeprefix(" ")
    if not fields:
        return None
    return Frame(fields.get("id"), fields["event"], json.loads(fields["data"]))


@dataclass(slots=True)
class Log:
    """What has come of one turn: events 1 to `last`, each once, and how it ended."""

    last: int = 0
    start: JsonObject = field(default_factory=dict)
    complete: JsonObject | None = None
    error: JsonObject | None = None
    events: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.words)

    @property
    def ended(self) -> bool:
        """Whether the last stream told how the turn ended."""
        return self.complete is not None or self.error is not None

    def forgive(self) -> JsonObject | None:
        """Take back that the turn ended with an error. Returns the error."""
        error, self.error = self.error, None
        return error

    def take(self, frame: Frame) -> None:
        """Add an event.

        Raises:
            NumberingError: it is not the next one.
        """
        if self.ended:
            raise NumberingError(f"{frame.event} came after the end")
        if frame.event == "error":
            self._take_error(frame)
            return
        if frame.data.get("type") != frame.event:
            raise NumberingError(f"the event {frame.event} calls itself {frame.data.get('type')} in its data")
        if frame.id != str(self.last + 1) or frame.data.get("sequence") != self.last + 1:
            raise NumberingError(f"{frame.event} {frame.id} ({frame.data.get('sequence')}) came after {self.last}")
        if (frame.event == "start") is not (self.last == 0):
            raise NumberingError(f"{frame.event} is event {frame.id}")
        self.last += 1
        self.events.append(frame.event)
        if frame.event == "start":
            self.start = frame.data
        elif frame.event == "token":
            self.words.append(frame.data["content"])
        elif frame.event == "complete":
            self.complete = frame.data

    def _take_error(self, frame: Frame) -> None:
        if frame.id is not None or "sequence" in frame.data:
            raise NumberingError("an error has a number")
        # A problem document: its `type` is its own.
        if not {"status", "code", "retryable"} <= frame.data.keys():
            raise NumberingError(f"an error is no problem document: {frame.data}")
        self.error = frame.data


Until: TypeAlias = Callable[["NumberedReader"], bool]
"""When to hang up: asked after every piece of bytes that came."""


def words(count: int) -> Until:
    """Hang up once so many words, or parts of them, came."""
    return lambda reader: len(reader.log.words) >= count


class NumberedReader:
    """Asks one question and follows the turn to its end, through any edge.

    Attributes:
        log: what has come, checked.
        bytes: how much came, over all connections.
        met: what went wrong on the way: statuses, exceptions, cuts, errors.
        forgotten: whether the edge said that the events are no longer kept (410).
    """

    def __init__(
        self, http: httpx.AsyncClient, message: str, *, session_id: str | None = None, key: str | None = None
    ) -> None:
        """`session_id` None: a new session. `key`: the Idempotency-Key; by default one of its own."""
        self.http = http
        self.log = Log()
        self.bytes = 0
        self.met: Counter[str] = Counter()
        self.forgotten = False
        self.key = key or str(uuid.uuid4())
        self._body = body(message, session_id)

    @classmethod
    def of(cls, http: httpx.AsyncClient, known: "NumberedReader") -> "NumberedReader":
        """One that follows the turn of another reader from its first event."""
        reader = cls(http, "")
        reader.log.start = known.log.start
        return reader

    @property
    def session_id(self) -> str:
        """The session, once the turn has begun."""
        return str(self.log.start["session_id"])

    @property
    def turn_id(self) -> str:
        """The turn, once it has begun."""
        return str(self.log.start["turn_id"])

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.log.text

    @property
    def status(self) -> str | None:
        """How the turn ended; None: it has not, or with an error."""
        return None if self.log.complete is None else str(self.log.complete["status"])

    async def ask(self, edge: str, until: Until | None = None, *, cut_at: int | None = None) -> httpx.Response:
        """Post the question and read the answer, to the end of the stream or until `until` says so; then hang up.

        `cut_at`: hang up at this byte of the stream, wherever in a frame that is.
        """
        headers = {"Accept": "text/event-stream", "Idempotency-Key": self.key}
        return await self._read("POST", f"{edge}/api/chat", until, cut_at, headers=headers, json=self._body)

    async def regenerate(self, edge: str, session_id: str, message: str | None = None) -> httpx.Response:
        """Ask the last question of a session again, or an edited one, and read the answer."""
        headers = {"Accept": "text/event-stream", "Idempotency-Key": self.key}
        edited = {} if message is None else {"message": message}
        url = f"{edge}/api/chat/{session_id}/regenerate"
        return await self._read("POST", url, None, None, headers=headers, json=edited)

    async def resume(self, edge: str, until: Until | None = None, *, cut_at: int | None = None) -> httpx.Response:
        """Read on behind the last event that came; else as `ask`."""
        headers = {"Last-Event-ID": str(self.log.last)} if self.log.last else {}
        url = f"{edge}/api/chat/{self.session_id}/stream"
        return await self._read("GET", url, until, cut_at, headers=headers, params={"turn_id": self.turn_id})

    async def finish(self, edges: Iterable[str], *, patience_s: float = PATIENCE_S, until: Until | None = None) -> None:
        """Come back as documented until the turn has ended, through one edge after the other.

        A retryable error is taken for the end only when nothing better comes while patience lasts.

        Raises:
            RefusedError: the server gave an answer that does not lead on, or none for `patience_s`.
        """
        end_s = time.monotonic() + patience_s
        for edge in itertools.cycle(edges):
            before = self.log.last
            pause_s = await self._once(edge, until)
            if pause_s is None:
                return
            if self.log.last > before:
                end_s = time.monotonic() + patience_s
            elif time.monotonic() > end_s:
                if self.log.error is not None:
                    return
                raise RefusedError(f"nothing came for {patience_s} s: {dict(self.met)}")
            await asyncio.sleep(pause_s)

    async def _once(self, edge: str, until: Until | None) -> float | None:
        """Try once; what went wrong is counted. Returns how long to wait before another try; None: that was all."""
        earlier = self.log.forgive()
        try:
            response = await (self.resume(edge, until) if self.log.start else self.ask(edge, until))
        except httpx.TransportError as err:
            self.met[type(err).__name__] += 1
            self.log.error = earlier
            return PAUSE_S
        if response.status_code == httpx.codes.OK:
            return self._after_stream(until)
        self.met[str(response.status_code)] += 1
        self.log.error = earlier
        if response.status_code == httpx.codes.GONE:
            self.forgotten = True
            return None
        if response.status_code == httpx.codes.NO_CONTENT and earlier is not None:
            return None
        if response.status_code not in RETRIED:
            asked = f"{response.request.method} {response.request.url}"
            raise RefusedError(f"{asked}: {response.status_code} {response.text} after {self.log.last}")
        return retry_after_s(response)

    def _after_stream(self, until: Until | None) -> float | None:
        if self.log.complete is not None or (until is not None and until(self)):
            return None
        if self.log.error is None:
            self.met["cut"] += 1
            return 0.0
        self.met[f"error {self.log.error['code']}"] += 1
        return PAUSE_S if self.log.error["retryable"] else None

    async def _read(
        self, method: str, url: str, until: Until | None, cut_at: int | None, **request: Any
    ) -> httpx.Response:
        parser = FrameParser()
        room = math.inf if cut_at is None else cut_at
        async with self.http.stream(method, url, **request) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                return response
            assert response.headers["content-type"].startswith("text/event-stream"), response.headers
            async for chunk in response.aiter_raw():
                taken = chunk if len(chunk) <= room else chunk[: int(room)]
                room -= len(taken)
                self.bytes += len(taken)
                for frame in parser.feed(taken):
                    self.log.take(frame)
                if room <= 0 or (until is not None and until(self)):
                    break
        return response


def body(message: str, session_id: str | None = None) -> JsonObject:
    """A question for one specialist, so that it takes one call of the model."""
    return {"message": message, "agent": "billing"} | ({"session_id": session_id} if session_id else {})


def retry_after_s(response: httpx.Response) -> float:
    """What a refusal asks the client to wait. Seconds."""
    return float(response.headers.get("retry-after", PAUSE_S))


async def repeated(
    request: Callable[[str], Awaitable[httpx.Response]],
    edges: Iterable[str],
    met: Counter[str],
    *,
    patience_s: float = PATIENCE_S,
) -> httpx.Response:
    """Send a request as documented: again through one edge after the other, while there is hope.

    Args:
        request: sends it to an edge.
        edges: their addresses, in the order to try.
        met: counts what went wrong.
        patience_s: how long to go on.

    Raises:
        RefusedError: no answer came for `patience_s`.
    """
    end_s = time.monotonic() + patience_s
    for edge in itertools.cycle(edges):
        try:
            response = await request(edge)
        except httpx.TransportError as err:
            met[type(err).__name__] += 1
            pause_s = PAUSE_S
        else:
            if response.status_code not in RETRIED:
                return response
            met[str(response.status_code)] += 1
            pause_s = retry_after_s(response)
        if time.monotonic() + pause_s > end_s:
            break
        await asyncio.sleep(pause_s)
    raise RefusedError(f"no answer for {patience_s} s: {dict(met)}")


async def ask_whole(
    http: httpx.AsyncClient, edges: Iterable[str], script: Script, met: Counter[str], *, key: str | None = None
) -> JsonObject:
    """Ask for the answer as JSON, as documented."""
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    asked = body(script.question)
    response = await repeated(lambda edge: http.post(f"{edge}/api/chat", json=asked, headers=headers), edges, met)
    if response.status_code != httpx.codes.OK:
        raise RefusedError(f"{response.status_code} {response.text}")
    reply: JsonObject = response.json()
    return reply


async def messages(http: httpx.AsyncClient, edge: str, session_id: str) -> list[JsonObject]:
    """What a session holds now, oldest first."""
    response = await http.get(f"{edge}/api/session/{session_id}/messages", params={"limit": 200})
    assert response.status_code == httpx.codes.OK, response.text
    found: list[JsonObject] = response.json()["messages"]
    return found


async def answer(http: httpx.AsyncClient, edge: str, session_id: str, script: Script) -> JsonObject:
    """The answer of a session that holds this one question and one answer; anything else is an error."""
    found = await messages(http, edge, session_id)
    assert [each["role"] for each in found] == ["user", "assistant"], found
    assert found[0]["content"] == script.question
    return found[1]


async def answer_within(
    http: httpx.AsyncClient, edges: Sequence[str], session_id: str, script: Script, timeout_s: float
) -> JsonObject:
    """The same, as soon as it is stored."""
    end_s = time.monotonic() + timeout_s
    for edge in itertools.cycle(edges):
        found = await messages(http, edge, session_id)
        if len(found) > 1 or time.monotonic() > end_s:
            return await answer(http, edge, session_id, script)
        await asyncio.sleep(0.1)
    raise AssertionError("no edge was given")


async def becomes_true(check: Callable[[], bool], timeout_s: float) -> None:
    """Wait for what another thread or process brings about."""
    async with asyncio.timeout(timeout_s):
        while not check():  # noqa: ASYNC110 - nothing here is told
            await asyncio.sleep(0.01)
