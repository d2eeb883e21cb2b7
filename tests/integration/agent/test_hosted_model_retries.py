"""Requests that fail, over real HTTP: asked again, asked elsewhere, left alone, and never repeated once text came."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from agents import ModelResponse, ModelSettings
from agents.models.interface import ModelTracing

from agent_service.errors import (
    AgentServiceError,
    ModelFailedError,
    ModelRateLimitedError,
    ModelUnavailableError,
    RetryableError,
)
from agent_service.llm.breaker import FAILURES_TO_OPEN, OPEN_S
from agent_service.llm.patience import Patience
from agent_service.llm.providers import HostedModels
from tests.support.briefings import FixedBriefing, ListSink, ListVitals
from tests.support.openai_server import Reply, ScriptedOpenAI

GUARD_S = 10.0
KEY = "sk-KEY-that-must-not-be-shown"
OTHER_KEY = "sk-OTHER-key"
NO_CONVERSATION: dict[str, Any] = {"previous_response_id": None, "conversation_id": None, "prompt": None}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


@pytest.fixture(params=["responses", "chat_completions"])
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass
class Setup:
    """Hosted models whose waits take no time: the clock jumps instead."""

    base_url: str
    api: str
    vitals: ListVitals = field(default_factory=ListVitals)
    waits: list[float] = field(default_factory=list)
    now: float = 100.0
    deadline: float = math.inf
    sink: ListSink = field(default_factory=ListSink)
    opened: list[HostedModels] = field(default_factory=list)

    def models(self, **more: Any) -> HostedModels:
        settings = {"patience": Patience(lambda: self.now, self._sleep, lambda: 0.0), "timeout_s": GUARD_S, **more}
        models = HostedModels(
            api_key=KEY, base_url=self.base_url, api=self.api, default_model="small", vitals=self.vitals, **settings
        )
        self.opened.append(models)
        return models

    async def ask(self, models: HostedModels) -> ModelResponse:
        self.sink = ListSink()
        briefing = FixedBriefing()
        briefing.deadline = self.deadline
        model = models.for_turn(briefing, self.sink).get_model(None)
        question: list[Any] = [{"role": "user", "content": "What does it cost?"}]
        call = model.get_response(
            "You answer.", question, ModelSettings(), [], None, [], ModelTracing.DISABLED, **NO_CONVERSATION
        )
        return await asyncio.wait_for(call, GUARD_S)

    async def fail(self, models: HostedModels) -> AgentServiceError:
        with pytest.raises(AgentServiceError) as caught:
            await self.ask(models)
        return caught.value

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
async def setup(server: ScriptedOpenAI, api: str) -> AsyncIterator[Setup]:
    setup = Setup(server.base_url, api)
    yield setup
    for models in setup.opened:
        await models.close()


# --- again ---


async def test_a_rate_limit_is_waited_for_as_long_as_told(server: ScriptedOpenAI, setup: Setup) -> None:
    server.script(Reply.error(429, retry_after_s=7), Reply.error(429), Reply.text("Forty."))

    await setup.ask(setup.models())

    assert len(server.requests) == 3
    assert setup.waits == [7.0, 2.0]
    assert (setup.sink.text, setup.sink.answered) == ("Forty.", [("small", 2)])


@pytest.mark.parametrize(
    "reply",
    [Reply.error(408), Reply.error(409), Reply.error(503), Reply.disconnect(), Reply.truncated()],
    ids=lambda reply: f"{reply.kind} {reply.status}",
)
async def test_what_passes_is_tried_again(server: ScriptedOpenAI, setup: Setup, reply: Reply) -> None:
    server.script(reply, Reply.text("Forty."))

    await setup.ask(setup.models())

    assert (setup.sink.text, setup.waits) == ("Forty.", [1.0])


async def test_a_failure_reported_in_the_stream_before_any_text_is_tried_again(
    server: ScriptedOpenAI, setup: Setup
) -> None:
    server.script(Reply.failure("server_error"), Reply.text("Forty."))

    await setup.ask(setup.models())

    assert (setup.sink.text, len(server.requests)) == ("Forty.", 2)


async def test_a_rate_limit_without_end_is_told_after_three_retries(server: ScriptedOpenAI, setup: Setup) -> None:
    server.answer_with(lambda _: Reply.error(429, retry_after_s=9))

    error = await setup.fail(setup.models())

    assert isinstance(error, ModelRateLimitedError)
    assert error.retry_after_s == 9
    assert (len(server.requests), setup.waits) == (4, [9.0, 9.0, 9.0])


async def test_no_wait_goes_past_the_deadline(server: ScriptedOpenAI, setup: Setup) -> None:
    server.answer_with(lambda _: Reply.error(429, retry_after_s=9))
    setup.deadline = setup.now + 15

    error = await setup.fail(setup.models())

    assert isinstance(error, ModelRateLimitedError)
    assert (len(server.requests), setup.waits) == (2, [9.0])


async def test_a_short_retry_after_is_waited_for_in_real_time(server: ScriptedOpenAI, setup: Setup) -> None:
    server.script(Reply.error(429, retry_after_s=0.05), Reply.text("Forty."))

    await setup.ask(setup.models(patience=Patience()))

    first, second = server.requests
    assert 0.05 <= second.arrived_s - first.arrived_s < 1.0


async def test_silence_before_any_text_is_tried_again(server: ScriptedOpenAI, setup: Setup) -> None:
    server.script(Reply.hang(), Reply.text("Forty."))

    await setup.ask(setup.models(timeout_s=0.2))

    assert (setup.sink.text, len(server.requests)) == ("Forty.", 2)


@pytest.mark.parametrize(
    "reply",
    [Reply.disconnect(after_pieces=1), Reply.truncated(after_pieces=1), Reply.failure("server_error", after_pieces=1)],
    ids=lambda reply: reply.kind,
)
async def test_after_the_first_text_nothing_is_asked_again(
    server: ScriptedOpenAI, other: ScriptedOpenAI, setup: Setup, reply: Reply
) -> None:
    server.script(reply)

    error = await setup.fail(setup.models(fallback_models=["large"], fallback_base_url=other.base_url))

    assert isinstance(error, ModelUnavailableError)
    assert setup.sink.text == "piece1 "
    assert (len(server.requests), len(other.requests), setup.waits) == (1, 0, [])


async def test_who_is_cancelled_while_waiting_asks_nobody(server: ScriptedOpenAI, setup: Setup) -> None:
    server.script(Reply.error(429))
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    call = asyncio.create_task(setup.ask(setup.models(patience=Patience(sleep=sleep))))
    await asyncio.wait_for(waiting.wait(), GUARD_S)
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(server.requests) == 1


# --- elsewhere ---


async def test_a_fallback_answers_for_a_model_that_is_down(
    server: ScriptedOpenAI, other: ScriptedOpenAI, setup: Setup
) -> None:
    server.answer_with(lambda _: Reply.error(503))
    other.script(Reply.text("Forty."))
    models = setup.models(fallback_models=["large"], fallback_base_url=other.base_url, fallback_api_key=OTHER_KEY)

    await setup.ask(models)

    assert (setup.sink.text, setup.sink.answered) == ("Forty.", [("large", 4)])
    assert other.requests[0].body["model"] == "large"
    assert other.requests[0].headers["Authorization"] == f"Bearer {OTHER_KEY}"


async def test_the_key_is_not_sent_to_another_address(
    server: ScriptedOpenAI, other: ScriptedOpenAI, setup: Setup
) -> None:
    server.script(Reply.error(404))
    other.script(Reply.text("Forty."))

    await setup.ask(setup.models(fallback_models=["large"], fallback_base_url=other.base_url))

    assert KEY not in str(dict(other.requests[0].headers))


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_model_that_is_not_to_be_had_is_not_asked_twice(
    server: ScriptedOpenAI, setup: Setup, status: int
) -> None:
    server.script(Reply.error(status), Reply.text("Forty."))

    await setup.ask(setup.models(fallback_models=["small", "large"]))

    assert [request.body["model"] for request in server.requests] == ["small", "large"]
    assert (setup.sink.answered, setup.waits) == ([("large", 1)], [])


@pytest.mark.parametrize("status", [400, 422])
async def test_a_wrong_request_is_wrong_for_every_model(server: ScriptedOpenAI, setup: Setup, status: int) -> None:
    server.script(Reply.error(status))

    assert isinstance(await setup.fail(setup.models(fallback_models=["large"])), ModelFailedError)
    assert len(server.requests) == 1


async def test_where_all_fail_the_error_says_what_passes(server: ScriptedOpenAI, setup: Setup) -> None:
    server.script(Reply.error(404), *[Reply.error(503, retry_after_s=20)] * 4)

    error = await setup.fail(setup.models(fallback_models=["large"]))

    assert isinstance(error, ModelUnavailableError)
    assert error.retry_after_s == 20


async def test_no_fallback_is_begun_after_the_deadline(server: ScriptedOpenAI, setup: Setup) -> None:
    setup.deadline = setup.now
    server.script(Reply.error(503))

    assert isinstance(await setup.fail(setup.models(fallback_models=["large"])), RetryableError)
    assert len(server.requests) == 1


# --- left alone ---


async def test_a_model_that_is_down_is_left_alone_then_asked_once_and_used_again(
    server: ScriptedOpenAI, setup: Setup
) -> None:
    models = setup.models()
    server.answer_with(lambda _: Reply.error(503))
    await setup.fail(models)
    await setup.fail(models)
    assert len(server.requests) == FAILURES_TO_OPEN
    assert setup.vitals.told == [("model", "small", False)]

    setup.now += 10
    error = await setup.fail(models)
    assert isinstance(error, ModelUnavailableError)
    # The second failing call waited for a second before it found the breaker open.
    assert error.retry_after_s == pytest.approx(OPEN_S - 11)
    assert len(server.requests) == FAILURES_TO_OPEN

    setup.now += OPEN_S
    server.script(Reply.text("Forty.", pieces=["For", "ty."]).with_stall(1, 5.0))
    probe = asyncio.create_task(setup.ask(models))
    await server.wait_for_request(FAILURES_TO_OPEN + 1, GUARD_S)
    assert isinstance(await setup.fail(models), ModelUnavailableError)
    assert len(server.requests) == FAILURES_TO_OPEN + 1

    probe.cancel()
    await asyncio.wait({probe})
    server.script(Reply.text("Forty."), Reply.text("Forty."))
    await setup.ask(models)
    await setup.ask(models)
    assert setup.vitals.told == [("model", "small", False), ("model", "small", True)]


async def test_while_a_model_is_left_alone_its_fallback_answers_at_once(
    server: ScriptedOpenAI, other: ScriptedOpenAI, setup: Setup
) -> None:
    models = setup.models(fallback_models=["large"], fallback_base_url=other.base_url)
    server.answer_with(lambda _: Reply.error(503))
    other.answer_with(lambda _: Reply.text("Forty."))
    await setup.ask(models)
    await setup.ask(models)
    setup.waits.clear()

    await setup.ask(models)

    assert (setup.waits, setup.sink.answered) == ([], [("large", 0)])
    assert len(server.requests) == FAILURES_TO_OPEN


async def test_breakers_are_of_one_model_only(server: ScriptedOpenAI, setup: Setup) -> None:
    def answer(request: Any) -> Reply:
        return Reply.error(503) if request.body["model"] == "small" else Reply.text("Forty.")

    server.answer_with(answer)
    models = setup.models(fallback_models=["large"])
    started = time.monotonic()
    for _ in range(3):
        await setup.ask(models)

    assert setup.vitals.told == [("model", "small", False)]
    assert time.monotonic() - started < GUARD_S
