"""The fault suite's own client: what it must notice it notices, and it repeats what is documented."""

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web

from tests.support.cluster_client import (
    Frame,
    FrameParser,
    Log,
    NumberedReader,
    NumberingError,
    RefusedError,
    ask_whole,
    becomes_true,
    words,
)
from tests.support.cluster_model import KEY, Script, ScriptedModel

pytestmark = pytest.mark.faults

IDS = {"session_id": "s", "turn_id": "t", "message_id": "m"}


def frame(number: int, event: str, **data: object) -> Frame:
    return Frame(str(number), event, {"type": event, "sequence": number, **data})


def token(number: int) -> Frame:
    return frame(number, "token", content=f"w{number} ")


START = frame(1, "start", **IDS)
COMPLETE = frame(3, "complete", status="completed")
PROBLEM = {"type": "urn:answerdesk:problem:agent_unavailable", "status": 503, "code": "agent_unavailable"}
ERROR = Frame(None, "error", PROBLEM | {"retryable": True})


def wire(*frames: Frame) -> bytes:
    parts = []
    for each in frames:
        named = "" if each.id is None else f"id: {each.id}\n"
        parts.append(f"{named}event: {each.event}\ndata: {json.dumps(each.data)}\n\n")
    return "".join(parts).encode()


def test_a_whole_turn_is_taken() -> None:
    log = Log()
    for each in (START, token(2), COMPLETE):
        log.take(each)

    assert (log.text, log.last, log.ended) == ("w2 ", 3, True)


@pytest.mark.parametrize(
    ("before", "wrong"),
    [
        ([START], token(3)),
        ([START], token(1)),
        ([START, token(2)], token(2)),
        ([], token(1)),
        ([START], frame(2, "start", **IDS)),
        ([START, token(2), COMPLETE], token(4)),
        ([START, ERROR], token(2)),
        ([START], Frame("2", "token", {"type": "token", "sequence": 3, "content": "w"})),
        ([START], Frame(None, "token", {"type": "token", "sequence": 2, "content": "w"})),
        ([START], Frame("2", "error", ERROR.data)),
        ([START], Frame(None, "error", {"type": "error"})),
        ([START], Frame("2", "token", {"type": "agent", "sequence": 2})),
    ],
    ids=[
        "a gap", "the first again", "a duplicate", "no start", "two starts", "after the end", "after an error",
        "two numbers", "no id", "an error with an id", "an error of no kind", "two types",
    ],
)  # fmt: skip
def test_what_is_not_the_next_event_is_noticed(before: list[Frame], wrong: Frame) -> None:
    log = Log()
    for each in before:
        log.take(each)

    with pytest.raises(NumberingError):
        log.take(wrong)


def test_frames_are_the_same_wherever_their_bytes_are_cut() -> None:
    sent = wire(START, token(2)) + b": keep-alive\n\n" + wire(COMPLETE)
    for cut in range(len(sent)):
        parser = FrameParser()
        assert [*parser.feed(sent[:cut]), *parser.feed(sent[cut:])] == [START, token(2), COMPLETE]


Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def edge(post: Handler, stream: Handler) -> AsyncIterator[str]:
    """An edge of these two endpoints."""
    app = web.Application()
    app.router.add_post("/api/chat", post)
    app.router.add_get("/api/chat/{session}/stream", stream)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def events(*frames: Frame) -> web.Response:
    return web.Response(body=wire(*frames), content_type="text/event-stream")


async def test_a_cut_stream_is_resumed_behind_its_last_event_and_refusals_are_repeated() -> None:
    asked: list[str] = []

    async def post(request: web.Request) -> web.Response:
        asked.append(request.headers["Idempotency-Key"])
        return web.Response(status=503, headers={"Retry-After": "0"}) if len(asked) == 1 else events(START)

    async def stream(request: web.Request) -> web.Response:
        asked.append(request.headers["Last-Event-ID"])
        answers = {"1": events(token(2), ERROR), "2": events(COMPLETE)}
        return answers[request.headers["Last-Event-ID"]]

    async with edge(post, stream) as url, httpx.AsyncClient() as http:
        reader = NumberedReader(http, "Why?", key="k")
        await reader.finish([url])

    assert asked == ["k", "k", "1", "2"]
    assert (reader.text, reader.status) == ("w2 ", "completed")
    assert reader.met == {"503": 1, "cut": 1, "error agent_unavailable": 1}


async def test_a_turn_that_goes_on_failing_ends_with_its_error() -> None:
    async def post(_: web.Request) -> web.Response:
        return events(START, ERROR)

    async def stream(_: web.Request) -> web.Response:
        return web.Response(status=204)

    async with edge(post, stream) as url, httpx.AsyncClient() as http:
        reader = NumberedReader(http, "Why?")
        await reader.finish([url])

    assert (reader.status, reader.log.error) == (None, ERROR.data)


@pytest.mark.parametrize("status", [204, 404, 422, 500])
async def test_a_status_that_no_repetition_heals_is_an_error(status: int) -> None:
    async def post(_: web.Request) -> web.Response:
        return events(START)

    async def stream(_: web.Request) -> web.Response:
        return web.Response(status=status)

    async with edge(post, stream) as url, httpx.AsyncClient() as http:
        with pytest.raises(RefusedError, match=str(status)):
            await NumberedReader(http, "Why?").finish([url])


async def test_an_edge_that_is_away_is_passed_over_until_patience_ends() -> None:
    async def post(_: web.Request) -> web.Response:
        return web.json_response({"answer": "yes"})

    gone = "http://127.0.0.1:9"
    script = Script.of(1, 0)
    met: Counter[str] = Counter()
    async with edge(post, post) as url, httpx.AsyncClient() as http:
        assert await ask_whole(http, [gone, url], script, met) == {"answer": "yes"}
        reader = NumberedReader(http, script.question)
        with pytest.raises(RefusedError, match="nothing came"):
            await reader.finish([gone], patience_s=0.1)

    assert met == {"ConnectError": 1}


async def test_a_reader_hangs_up_where_it_is_told_to() -> None:
    async def post(_: web.Request) -> web.Response:
        return events(START, token(2), token(3), frame(4, "complete", status="completed"))

    async with edge(post, post) as url, httpx.AsyncClient() as http:
        reader = NumberedReader(http, "Why?")
        await reader.ask(url, until=words(1))
        cut = NumberedReader(http, "Why?")
        await cut.ask(url, cut_at=len(wire(START, token(2))) + 1)

    assert reader.log.words
    assert cut.bytes == len(wire(START, token(2))) + 1
    assert cut.log.last == 2


async def test_the_scripted_model_keeps_its_pace_and_notes_who_hung_up_and_when() -> None:
    model = ScriptedModel()
    model.start()
    whole, cut = Script.of(5, 40), Script.of(100, 40)
    try:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}1"}, trust_env=False) as http:
            answered = await http.post(
                f"{model.base_url}/responses", json={"input": f"{cut.question} {whole.question}", "stream": True}
            )
            asked = {"input": [{"role": "user", "content": cut.question}], "stream": True}
            async with http.stream("POST", f"{model.base_url}/responses", json=asked) as response:
                async for chunk in response.aiter_raw():
                    if f"{cut.tag}-3" in chunk.decode():
                        break
            left_s = time.monotonic()
        await becomes_true(lambda: not model.call(cut).runs, 5)
    finally:
        model.stop()

    assert whole.answer in answered.text
    of_whole, of_cut = model.call(whole), model.call(cut)
    assert of_whole.agent == of_cut.agent == 1
    assert of_whole.ended_s is not None
    assert of_whole.ended_s - of_whole.arrived_s >= whole.duration_s
    assert (of_whole.hung_up_s, of_cut.ended_s) == (None, None)
    assert of_cut.hung_up_s is not None
    assert -0.1 <= of_cut.hung_up_s - left_s <= 1
    assert model.requests == 2
