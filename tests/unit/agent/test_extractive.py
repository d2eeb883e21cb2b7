"""The offline model: it routes by evidence, quotes with markers, abstains without support, and says nothing else."""

import asyncio
from typing import Any

import pytest
from agents import Agent, Handoff, ModelProvider, ModelSettings, RunConfig, Runner, handoff
from agents.models.interface import Model, ModelTracing
from agents.run_config import CallModelData, ModelInputData
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from agent_service.errors import RetrievalUnavailableError
from agent_service.llm.extractive import ABSTENTION, QUOTED_SENTENCES, ExtractiveModel, compose
from agent_service.llm.providers import OfflineModels
from agent_service.types import AgentName, Outcome, Question, Sentence, Span, SupportedSentence
from tests.support.briefings import QUESTION, FixedBriefing, FixedRouter, FixedSelector, ListSink, source

GUARD_S = 5.0


def quoted(text: str, marker: int = 1) -> SupportedSentence:
    return SupportedSentence(source(marker, text), Sentence(Span(0, len(text)), text), 1.0)


def model_of(
    *texts: str, routes_to: str | None = None, agent: str = "billing", delay_s: float = 0.0, sources: Any = None
) -> ExtractiveModel:
    briefing = FixedBriefing(agent, [source()] if sources is None else sources)
    return ExtractiveModel(briefing, FixedRouter(routes_to), FixedSelector(*texts), delay_s=delay_s)


def arguments(handoffs: list[Handoff[Any, Any]] | None = None, max_tokens: int | None = None) -> tuple[Any, ...]:
    question = [{"role": "user", "content": "What does it cost?"}]
    settings = ModelSettings(max_tokens=max_tokens)
    return ("You answer.", question, settings, [], None, handoffs or [], ModelTracing.DISABLED)


NO_CONVERSATION: dict[str, Any] = {"previous_response_id": None, "conversation_id": None, "prompt": None}


async def streamed(model: Model, *given: Any) -> list[Any]:
    return [event async for event in model.stream_response(*given, **NO_CONVERSATION)]


def text_of(event: Any) -> str:
    (item,) = event.response.output
    assert isinstance(item, ResponseOutputMessage)
    (part,) = item.content
    assert isinstance(part, ResponseOutputText)
    return part.text


def specialist(name: str) -> Handoff[Any, Any]:
    return handoff(Agent(name=name))


# --- composing ---


def test_a_quoted_sentence_carries_its_marker() -> None:
    assert compose([quoted("It costs 40 EUR.", 2)]) == "It costs 40 EUR. [2]"


def test_sentences_follow_each_other_in_one_paragraph() -> None:
    assert compose([quoted("One.", 1), quoted("Two.", 3)]) == "One. [1] Two. [3]"


def test_code_stands_in_a_paragraph_of_its_own_with_its_marker_on_a_line_after_it() -> None:
    code = "```\nGET /v1\n```"

    answer = compose([quoted("Call it.", 1), quoted(code, 2), quoted("Then wait.", 1)])

    assert answer == f"Call it. [1]\n\n{code}\n[2]\n\nThen wait. [1]"


def test_two_blocks_of_code_are_two_paragraphs() -> None:
    assert compose([quoted("a\nb", 1), quoted("c\nd", 2)]) == "```\na\nb\n```\n[1]\n\n```\nc\nd\n```\n[2]"


# --- the stream ---


async def test_the_words_stream_before_the_whole_message() -> None:
    *deltas, last = await streamed(model_of("It costs 40 EUR."), *arguments())

    assert [event.type for event in deltas] == ["response.output_text.delta"] * 5
    assert last.type == "response.completed"
    assert "".join(event.delta for event in deltas) == text_of(last) == "It costs 40 EUR. [1]"
    assert [event.sequence_number for event in (*deltas, last)] == list(range(6))


async def test_code_keeps_its_lines_on_the_way() -> None:
    code = "```\nif a:\n    b()\n```"

    *deltas, last = await streamed(model_of("Call it.", code), *arguments())

    assert "".join(event.delta for event in deltas) == text_of(last) == f"Call it. [1]\n\n{code}\n[1]"


async def test_without_support_it_abstains_without_a_marker() -> None:
    *_, last = await streamed(model_of("It costs 40 EUR.", sources=[]), *arguments())

    assert text_of(last) == ABSTENTION
    assert "[" not in ABSTENTION


async def test_it_quotes_no_more_sentences_than_stated() -> None:
    *_, last = await streamed(model_of(*(f"Sentence {n}." for n in range(9))), *arguments())

    assert text_of(last).count("[1]") == QUOTED_SENTENCES


@pytest.mark.parametrize(("most", "expected"), [(1, "It"), (3, "It costs 40"), (99, "It costs 40 EUR. [1]")])
async def test_no_more_tokens_come_than_allowed(most: int, expected: str) -> None:
    *deltas, last = await streamed(model_of("It costs 40 EUR."), *arguments(max_tokens=most))

    assert text_of(last) == "".join(event.delta for event in deltas) == expected
    assert last.response.usage.output_tokens == min(most, 5)


async def test_usage_counts_the_words_read_and_written() -> None:
    *_, last = await streamed(model_of("It costs 40 EUR."), *arguments())

    usage = last.response.usage
    assert usage.input_tokens >= 6
    assert usage.output_tokens == 5
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_with_a_delay_words_come_one_by_one() -> None:
    """The first at once; then the model sleeps, and its reader runs in between."""
    loop = asyncio.get_running_loop()
    stream = model_of("It costs 40 EUR.", delay_s=0.02).stream_response(*arguments(), **NO_CONVERSATION)
    began = loop.time()
    at = [loop.time() - began async for event in stream if event.type == "response.output_text.delta"]

    assert at[0] < 0.02
    assert at[-1] >= 0.06


async def test_a_model_that_waits_between_words_can_be_cancelled() -> None:
    sink = ListSink()
    models = OfflineModels(FixedRouter(None), FixedSelector("It costs 40 EUR."), delay_s=GUARD_S * 2)
    model = models.for_turn(FixedBriefing(sources=[source()]), sink).get_model(None)
    call = asyncio.create_task(model.get_response(*arguments(), **NO_CONVERSATION))
    await asyncio.wait_for(sink.written.wait(), GUARD_S)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, GUARD_S)
    assert sink.text == "It"


async def test_a_failing_store_fails_the_call() -> None:
    class BrokenSelector:
        async def select(self, question: Question, sources: Any, *, limit: int) -> list[SupportedSentence]:
            raise RetrievalUnavailableError("away")

    model = ExtractiveModel(FixedBriefing(), FixedRouter(None), BrokenSelector(), delay_s=0)

    with pytest.raises(RetrievalUnavailableError):
        await streamed(model, *arguments())


# --- the whole response ---


async def test_the_whole_response_is_what_the_stream_says() -> None:
    response = await model_of("It costs 40 EUR.").get_response(*arguments(), **NO_CONVERSATION)

    (item,) = response.output
    assert isinstance(item, ResponseOutputMessage)
    assert isinstance(item.content[0], ResponseOutputText)
    assert item.content[0].text == "It costs 40 EUR. [1]"
    assert (response.usage.requests, response.usage.output_tokens) == (1, 5)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


# --- hand-offs ---


async def test_where_another_agents_documents_bear_better_it_calls_that_hand_off_and_writes_nothing() -> None:
    model = model_of("It costs 40 EUR.", routes_to="policy")

    (event,) = await streamed(model, *arguments([specialist("technical"), specialist("policy")]))

    (call,) = event.response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments) == ("transfer_to_policy", "{}")
    assert call.call_id


@pytest.mark.parametrize("best", [None, "billing", "stranger"], ids=["nobody", "itself", "no hand-off of its own"])
async def test_it_answers_itself_where_nobody_it_may_call_is_better(best: str | None) -> None:
    *_, last = await streamed(model_of("It costs 40 EUR.", routes_to=best), *arguments([specialist("policy")]))

    assert text_of(last) == "It costs 40 EUR. [1]"


async def test_the_router_hears_the_question_and_who_holds_the_turn() -> None:
    router = FixedRouter(None)
    model = ExtractiveModel(FixedBriefing("technical"), router, FixedSelector(), delay_s=0)

    await streamed(model, *arguments([specialist("policy")]))

    assert router.asked == [(QUESTION, AgentName("technical"))]


async def test_without_hand_offs_nobody_is_asked_for_a_route() -> None:
    router = FixedRouter("policy")

    await streamed(ExtractiveModel(FixedBriefing(), router, FixedSelector(), delay_s=0), *arguments())

    assert router.asked == []


# --- through the real runner ---


async def run(provider: ModelProvider, agent: Agent[Any], **settings: Any) -> Any:
    config = RunConfig(model_provider=provider, tracing_disabled=True, **settings)
    return await asyncio.wait_for(Runner.run(agent, "What does it cost?", run_config=config), GUARD_S)


async def test_the_runner_follows_its_hand_off_and_the_specialist_answers_into_the_sink() -> None:
    briefing = FixedBriefing("orchestrator")
    sink = ListSink()
    models = OfflineModels(FixedRouter("billing"), FixedSelector("It costs 40 EUR."), delay_s=0)
    billing = Agent[Any](name="billing")
    orchestrator = Agent[Any](name="orchestrator", handoffs=[billing])

    def seat(call: CallModelData[Any]) -> ModelInputData:
        """Keep the table current, as the team does."""
        briefing.agent = AgentName(call.agent.name)
        briefing.sources = (source(),) if call.agent is billing else ()
        return call.model_data

    result = await run(models.for_turn(briefing, sink), orchestrator, call_model_input_filter=seat)

    assert result.last_agent is billing
    assert result.final_output == sink.text == "It costs 40 EUR. [1]"
    assert result.context_wrapper.usage.requests == 2
    assert sink.outcomes == []


async def test_the_roster_may_name_any_model_and_gets_the_offline_one() -> None:
    models = OfflineModels(FixedRouter(None), FixedSelector("Forty."), delay_s=0)
    provider = models.for_turn(FixedBriefing(sources=[source()]), ListSink())

    assert provider.get_model("gpt-5") is provider.get_model(None)
    assert models.default_model == "offline"
    await models.close()


async def test_an_answer_cut_by_the_limit_is_told_as_truncated() -> None:
    sink = ListSink()
    models = OfflineModels(FixedRouter(None), FixedSelector("It costs 40 EUR."), delay_s=0)
    provider = models.for_turn(FixedBriefing(sources=[source()]), sink)

    await run(provider, Agent(name="billing"), model_settings=ModelSettings(max_tokens=2))

    assert sink.text == "It costs"
    assert sink.outcome is Outcome.TRUNCATED


async def test_an_answer_that_just_fits_the_limit_is_whole() -> None:
    sink = ListSink()
    models = OfflineModels(FixedRouter(None), FixedSelector("It costs 40 EUR."), delay_s=0)
    provider = models.for_turn(FixedBriefing(sources=[source()]), sink)

    await run(provider, Agent(name="billing"), model_settings=ModelSettings(max_tokens=5))

    assert sink.text == "It costs 40 EUR. [1]"
    assert sink.outcome is None
