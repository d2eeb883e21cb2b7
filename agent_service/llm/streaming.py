"""Streams a model's text to a sink while the runner waits for its whole response.

`Runner.run` over a model that streams by itself costs a quarter of `Runner.run_streamed` per run and has no queue
between the model and the reader, so cancelling the turn's task is all it takes to abort the model call. Source: the
measurements behind docs/adr/0003-one-runner.md.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from agents import ModelResponse, Usage
from agents.agent_output import AgentOutputSchemaBase
from agents.handoffs import Handoff
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.model_settings import ModelSettings
from agents.models.interface import Model, ModelTracing
from agents.tool import Tool
from openai.types.responses import Response
from openai.types.responses.response_prompt_param import ResponsePromptParam
from pydantic import BaseModel

from agent_service.errors import AgentServiceError, ModelFailedError, ModelUnavailableError
from agent_service.llm.events import message
from agent_service.llm.limits import limited
from agent_service.ports import Briefing, TokenSink
from agent_service.types import Outcome


class StreamToSink(Model):
    """Any SDK model, its text handed to a sink piece by piece. Hosted models do so themselves."""

    def __init__(self, inner: Model, sink: TokenSink, briefing: Briefing | None = None, *, name: str) -> None:
        """`briefing`: whose caller may limit the answer; None: nobody does. `name`: the model's, for the sink."""
        self._inner = inner
        self._sink = sink
        self._briefing = briefing
        self._name = name

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
        """The whole response; its text has gone to the sink by then.

        Raises:
            ModelUnavailableError: the answer broke off.
            ModelFailedError: the model reported a failure, or its answer made no sense.
        """
        events = self._inner.stream_response(
            system_instructions,
            input,
            limited(model_settings, self._briefing),
            tools,
            output_schema,
            handoffs,
            tracing,
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        async with aclosing(_translated(events)) as understood:
            response = await self._drain(understood)
        self._sink.asked(self._name, retries=0)
        # A run needs something final, even where a limit left nothing to say.
        output = response.output or [message("")]
        return ModelResponse(output=output, usage=_usage(response), response_id=response.id)

    async def _drain(self, events: AsyncIterator[TResponseStreamEvent]) -> Response:
        async for event in events:
            if event.type == "response.output_text.delta":
                if event.delta:
                    self._sink.write(event.delta)
            elif event.type == "response.refusal.delta":
                self._sink.ended(Outcome.REFUSED)
                if event.delta:
                    self._sink.write(event.delta)
            elif event.type == "response.completed":
                return event.response
            elif event.type == "response.incomplete":
                details = event.response.incomplete_details
                refused = details is not None and details.reason == "content_filter"
                self._sink.ended(Outcome.REFUSED if refused else Outcome.TRUNCATED)
                return event.response
            elif event.type in {"response.failed", "error"}:
                raise ModelFailedError("the model's provider reported a failure")
        raise ModelUnavailableError("the model's answer broke off")

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Not offered: the runner asks for whole responses, and the sink has the stream."""
        raise TypeError("StreamToSink answers Runner.run, not Runner.run_streamed")


async def _translated(events: AsyncIterator[TResponseStreamEvent]) -> AsyncGenerator[TResponseStreamEvent]:
    """A model's events; whatever goes wrong in reading them is one of the service's own errors.

    Closing this closes the model's stream.
    """
    try:
        # Every SDK model streams from an async generator.
        async with aclosing(cast("AsyncGenerator[TResponseStreamEvent]", events)):
            async for event in events:
                if not isinstance(event, BaseModel):
                    raise ModelFailedError("the model's provider sent something that is no event")
                yield event
    except AgentServiceError:
        raise
    except Exception as err:
        # A model can fail as anything at all; what it says stays inside.
        raise ModelFailedError("the model's answer could not be understood") from err


def _usage(response: Response) -> Usage:
    counted = response.usage
    if counted is None:
        return Usage(requests=1)
    return Usage(
        requests=1,
        input_tokens=counted.input_tokens,
        input_tokens_details=counted.input_tokens_details,
        output_tokens=counted.output_tokens,
        output_tokens_details=counted.output_tokens_details,
        total_tokens=counted.total_tokens,
    )
