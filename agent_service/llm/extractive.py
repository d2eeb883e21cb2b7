"""The offline model: no key, no network. Routes by evidence, answers in the documents' own sentences, or abstains.

It is an Agents SDK `Model` like any other and is run by the same runner. What it says it quotes; it cannot put two
facts together, and does not pretend to.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

from agents import ModelResponse, Usage
from agents.agent_output import AgentOutputSchemaBase
from agents.handoffs import Handoff
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.model_settings import ModelSettings
from agents.models.interface import Model, ModelTracing
from agents.tool import Tool
from openai.types.responses import ResponseOutputItem
from openai.types.responses.response_prompt_param import ResponsePromptParam

from agent_service.llm import events
from agent_service.ports import Briefing, EvidenceRouter, SentenceSelector
from agent_service.types import SupportedSentence

MODEL_NAME = "offline"

QUOTED_SENTENCES = 3
"""Most sentences of an answer. The gold answer is within the best sentence in 71 %, within the best three in 85 % of
questions (XQuAD-en, developer split)."""

ABSTENTION = "I could not find an answer to that in the documents available to me."
"""For people. The outcome is decided by the support check, never by this text."""

PIECES = re.compile(r"\s*\S+")


class ExtractiveModel(Model):
    """Answers one turn from the sources on its table."""

    def __init__(
        self, briefing: Briefing, router: EvidenceRouter, selector: SentenceSelector, *, delay_s: float
    ) -> None:
        """`delay_s`: seconds between two words, so that a stream looks like one; 0 for none."""
        self._briefing = briefing
        self._router = router
        self._selector = selector
        self._delay_s = delay_s

    async def stream_response(  # noqa: PLR0913, PLR0917 - the SDK's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],  # noqa: ARG002 - it calls none
        output_schema: AgentOutputSchemaBase | None,  # noqa: ARG002
        handoffs: list[Handoff],
        tracing: ModelTracing,  # noqa: ARG002
        *,
        previous_response_id: str | None,  # noqa: ARG002
        conversation_id: str | None,  # noqa: ARG002
        prompt: ResponsePromptParam | None,  # noqa: ARG002
    ) -> AsyncIterator[TResponseStreamEvent]:
        """A hand-off, or words and then the whole message."""
        read = _words(system_instructions or "") + _words(str(input))
        if (tool_name := await self._hand_off(handoffs)) is not None:
            yield events.completed(
                [events.function_call(tool_name)], model=MODEL_NAME, usage=(read, 1), sequence_number=0
            )
            return
        words = PIECES.findall(await self._answer())
        pieces = words[: model_settings.max_tokens]
        item = events.message("".join(pieces))
        for number, piece in enumerate(pieces):
            if number and self._delay_s:
                await asyncio.sleep(self._delay_s)
            yield events.text_delta(item.id, piece, number)
        ending = events.completed if len(pieces) == len(words) else events.incomplete
        yield ending([item], model=MODEL_NAME, usage=(read, len(pieces)), sequence_number=len(pieces))

    async def get_response(  # noqa: PLR0913, PLR0917 - the SDK's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> ModelResponse:
        """The same answer, whole."""
        stream = self.stream_response(
            system_instructions,
            input,
            model_settings,
            tools,
            output_schema,
            handoffs,
            tracing,
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        output: list[ResponseOutputItem] = []
        usage = Usage(requests=1)
        async for event in stream:
            if event.type in {"response.completed", "response.incomplete"} and event.response.usage is not None:
                output = event.response.output
                usage.input_tokens = event.response.usage.input_tokens
                usage.output_tokens = event.response.usage.output_tokens
                usage.total_tokens = event.response.usage.total_tokens
        return ModelResponse(output=output, usage=usage, response_id=None)

    async def _hand_off(self, handoffs: Sequence[Handoff]) -> str | None:
        """The hand-off to call, where another agent's documents bear on the question clearly better."""
        tools = {handoff.agent_name: handoff.tool_name for handoff in handoffs}
        if not tools:
            return None
        best = await self._router.route(self._briefing.question, self._briefing.agent)
        return tools.get(best) if best is not None and best != self._briefing.agent else None

    async def _answer(self) -> str:
        sentences = await self._selector.select(self._briefing.question, self._briefing.sources, limit=QUOTED_SENTENCES)
        return compose(sentences) if sentences else ABSTENTION


def compose(sentences: Sequence[SupportedSentence]) -> str:
    """Quoted sentences as an answer: each with its marker; code, which has lines of its own, in a fence."""
    answer = ""
    apart = False
    for quoted in sentences:
        text = quoted.sentence.text
        block = "\n" in text
        if answer:
            answer += "\n\n" if block or apart else " "
        answer += f"{_fenced(text)}\n[{quoted.source.marker}]" if block else f"{text} [{quoted.source.marker}]"
        apart = block
    return answer


def _fenced(code: str) -> str:
    return code if code.startswith("```") else f"```\n{code}\n```"


def _words(text: str) -> int:
    return len(text.split())
