"""The Responses-API events of our own models, as the SDK's types and its runner take them; the sink behind a model."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import ModelBehaviorError, ModelSettings
from agents.items import TResponseStreamEvent
from agents.models.interface import Model, ModelTracing
from agents.testing import ModelStep, ScriptedModel, assistant_message
from agents.usage import Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputText, ResponseStreamEvent
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from pydantic import TypeAdapter

from agent_service.errors import AgentServiceError, ModelFailedError, ModelUnavailableError
from agent_service.llm import events
from agent_service.llm.streaming import StreamToSink
from agent_service.types import Outcome
from tests.support.briefings import ListSink

GUARD_S = 5.0
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
NO_CONVERSATION: dict[str, Any] = {"previous_response_id": None, "conversation_id": None, "prompt": None}


def whole(text: str = "Forty.", output_tokens: int = 2) -> Any:
    return events.completed([events.message(text)], model="m", usage=(3, output_tokens), sequence_number=9)


def typed(**fields: Any) -> Any:
    """A stream event as the SDK would parse it off the wire, without checking what the test leaves out."""
    return STREAM_EVENT.validate_python(fields)


def model_of(*stream: Any) -> ScriptedModel:
    return ScriptedModel([ModelStep.stream(list(stream))])


async def ask(model: Model, sink: ListSink | None = None, max_tokens: int | None = None) -> Any:
    settings = ModelSettings(max_tokens=max_tokens)
    wrapped = StreamToSink(model, sink or ListSink(), name="scripted")
    call = wrapped.get_response(
        "You answer.", "What?", settings, [], None, [], ModelTracing.DISABLED, **NO_CONVERSATION
    )
    return await asyncio.wait_for(call, GUARD_S)


# --- the events ---


def test_the_events_are_what_the_api_streams() -> None:
    item = events.message("Forty.")
    for event in (
        events.text_delta(item.id, "Forty.", 1),
        events.completed([item], model="m", usage=(3, 2), sequence_number=2),
        events.completed([events.function_call("transfer_to_billing")], model="m", usage=(3, 1), sequence_number=0),
    ):
        parsed = STREAM_EVENT.validate_python(event.model_dump())
        assert type(parsed) is type(event)
        assert parsed.model_dump() == event.model_dump()


def test_a_message_holds_its_text_and_is_complete() -> None:
    message = events.message("Forty.")

    (part,) = message.content
    assert isinstance(part, ResponseOutputText)
    assert (part.text, message.status, message.role) == ("Forty.", "completed", "assistant")


def test_each_message_and_call_has_an_id_of_its_own() -> None:
    assert events.message("a").id != events.message("a").id
    assert events.function_call("f").call_id != events.function_call("f").call_id


def test_a_function_call_has_no_arguments_unless_given() -> None:
    call = events.function_call("transfer_to_billing")

    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments) == ("transfer_to_billing", "{}")
    assert events.function_call("f", '{"a":1}').arguments == '{"a":1}'


def test_usage_is_summed_up() -> None:
    usage = whole().response.usage

    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 2, 5)


# --- the sink behind a model ---


async def test_every_piece_reaches_the_sink_in_order_and_the_response_comes_back_whole() -> None:
    sink = ListSink()

    response = await ask(
        model_of(events.text_delta("m", "For", 0), events.text_delta("m", "ty.", 1), whole("Forty.")), sink
    )

    assert sink.pieces == ["For", "ty."]
    assert sink.outcomes == []
    assert sink.answered == [("scripted", 0)]
    assert response.output[0].content[0].text == "Forty."


async def test_a_piece_is_in_the_sink_before_the_next_one_is_there() -> None:
    sink = ListSink()
    seen: list[list[str]] = []

    async def stream(_: Any) -> AsyncIterator[TResponseStreamEvent]:
        for number, piece in enumerate(("For", "ty.")):
            yield events.text_delta("m", piece, number)
            seen.append(list(sink.pieces))
        yield whole("Forty.")

    await ask(ScriptedModel([ModelStep.stream(stream)]), sink)

    assert seen == [["For"], ["For", "ty."]]


async def test_an_empty_piece_is_not_written() -> None:
    sink = ListSink()

    await ask(model_of(events.text_delta("m", "", 0), whole("")), sink)

    assert sink.pieces == []


async def test_events_that_are_not_text_are_passed_over() -> None:
    sink = ListSink()

    await ask(ScriptedModel([[assistant_message("Forty.")]]), sink)

    assert sink.text == "Forty."


async def test_usage_comes_back_with_its_cached_part() -> None:
    counted = Usage(
        requests=1,
        input_tokens=30,
        input_tokens_details=InputTokensDetails(cached_tokens=20, cache_write_tokens=0),
        output_tokens=4,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=1),
        total_tokens=34,
    )

    response = await ask(ScriptedModel([ModelStep(output=[assistant_message("Forty.")], usage=counted)]))

    assert response.usage.requests == 1
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (30, 4, 34)
    assert response.usage.input_tokens_details.cached_tokens == 20
    assert response.usage.output_tokens_details.reasoning_tokens == 1


async def test_a_server_that_counts_nothing_still_made_one_request() -> None:
    last = whole()
    last.response.usage = None

    response = await ask(model_of(last), max_tokens=1)

    assert (response.usage.requests, response.usage.total_tokens) == (1, 0)


async def test_a_refusal_is_written_and_told() -> None:
    sink = ListSink()
    delta = typed(
        type="response.refusal.delta", item_id="m", output_index=0, content_index=0, delta="No.", sequence_number=0
    )

    await ask(model_of(delta, whole("")), sink)

    assert sink.text == "No."
    assert sink.outcome is Outcome.REFUSED


async def test_an_empty_piece_of_a_refusal_is_told_and_not_written() -> None:
    sink = ListSink()
    delta = typed(
        type="response.refusal.delta", item_id="m", output_index=0, content_index=0, delta="", sequence_number=0
    )

    await ask(model_of(delta, whole("")), sink)

    assert sink.pieces == []
    assert sink.outcome is Outcome.REFUSED


def incomplete(reason: str) -> Any:
    response = whole("For").response.model_dump()
    response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return typed(type="response.incomplete", sequence_number=9, response=response)


@pytest.mark.parametrize(
    ("reason", "outcome"), [("max_output_tokens", Outcome.TRUNCATED), ("content_filter", Outcome.REFUSED)]
)
async def test_an_incomplete_response_says_why(reason: str, outcome: Outcome) -> None:
    """A content filter is a guardrail that declines, and no limit on length."""
    sink = ListSink()

    await ask(model_of(events.text_delta("m", "For", 0), incomplete(reason)), sink)

    assert sink.outcome is outcome


async def test_a_hand_off_that_used_up_the_limit_cuts_no_answer() -> None:
    """The call is whole, or it would not be one; the limit is on the answer."""
    sink = ListSink()
    call = events.completed([events.function_call("transfer_to_billing")], model="m", usage=(3, 16), sequence_number=0)

    await ask(model_of(call), sink, max_tokens=16)

    assert sink.outcomes == []


@pytest.mark.parametrize(
    "ending",
    [
        {"type": "error", "code": "server_error", "message": "SECRET", "param": None, "sequence_number": 1},
        {
            "type": "response.failed",
            "sequence_number": 1,
            "response": whole().response.model_dump()
            | {"status": "failed", "error": {"code": "server_error", "message": "SECRET"}},
        },
    ],
    ids=lambda ending: ending["type"],
)
async def test_a_failure_the_provider_reports_in_the_stream_fails_without_its_text(ending: dict[str, Any]) -> None:
    with pytest.raises(AgentServiceError) as caught:
        await ask(model_of(events.text_delta("m", "For", 0), typed(**ending)))

    assert isinstance(caught.value, (ModelFailedError, ModelUnavailableError))
    assert "SECRET" not in str(caught.value)


async def test_a_stream_without_an_end_broke_off() -> None:
    async def stream(_: Any) -> AsyncIterator[TResponseStreamEvent]:
        yield events.text_delta("m", "For", 0)

    with pytest.raises(ModelUnavailableError):
        await ask(_UnendingModel(stream))


class _UnendingModel(Model):
    """Streams what it is given; the SDK's scripted model would not go without an end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def get_response(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("StreamToSink streams")

    async def stream_response(self, *given: Any, **_: Any) -> AsyncIterator[TResponseStreamEvent]:
        async for event in self._stream(given):
            yield event


@pytest.mark.parametrize(
    "failure", [ModelBehaviorError("SECRET"), ValueError("SECRET")], ids=lambda e: type(e).__name__
)
async def test_nonsense_from_the_model_is_told_without_its_text(failure: Exception) -> None:
    with pytest.raises(ModelFailedError) as caught:
        await ask(ScriptedModel([failure]))

    assert "SECRET" not in str(caught.value)


async def test_an_error_of_our_own_passes_unchanged() -> None:
    failure = ModelFailedError("the answer is longer than a turn may be")

    class FullSink(ListSink):
        def write(self, text: str) -> None:
            raise failure

    with pytest.raises(ModelFailedError) as caught:
        await ask(model_of(events.text_delta("m", "For", 0), whole()), FullSink())

    assert caught.value is failure


async def test_a_bug_in_a_sink_is_not_blamed_on_the_model() -> None:
    class BrokenSink(ListSink):
        def write(self, text: str) -> None:
            raise ValueError("a bug of ours")

    with pytest.raises(ValueError, match="a bug of ours"):
        await ask(model_of(events.text_delta("m", "For", 0), whole()), BrokenSink())


async def test_cancelling_closes_the_models_stream() -> None:
    closed = asyncio.Event()
    sink = ListSink()

    async def stream(_: Any) -> AsyncIterator[TResponseStreamEvent]:
        try:
            yield events.text_delta("m", "For", 0)
            await asyncio.Event().wait()
        finally:
            closed.set()

    call = asyncio.create_task(ask(ScriptedModel([ModelStep.stream(stream)]), sink))
    await asyncio.wait_for(sink.written.wait(), GUARD_S)

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert closed.is_set()


def test_the_streaming_runner_is_told_that_it_gets_nothing() -> None:
    with pytest.raises(TypeError, match=r"Runner\.run"):
        StreamToSink(ScriptedModel(), ListSink(), name="scripted").stream_response()
