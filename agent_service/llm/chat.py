"""The SDK's Chat Completions model, with the finish reason that it drops on the way.

The SDK turns a chunked completion into Responses events, but an answer cut by a length limit, and a stream that broke
off before any finish reason, come out as ordinary answers. This model says so in the same vocabulary.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal

from agents import ModelBehaviorError, OpenAIChatCompletionsModel
from agents.items import TResponseStreamEvent
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseIncompleteEvent

from agent_service.errors import ModelUnavailableError
from agent_service.llm import events

INCOMPLETE: Final[Mapping[str, Literal["max_output_tokens", "content_filter"]]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
"""Finish reasons that do not end an answer, and what the Responses API calls them."""


class ChatModel(OpenAIChatCompletionsModel):
    """For one call at a time: it remembers the finish reason of the stream it reads."""

    finish_reason: str = ""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """As the SDK's; an answer that is not whole ends with `response.incomplete`.

        Raises:
            ModelUnavailableError: the stream ended without a finish reason.
        """
        self.finish_reason = ""
        try:
            async for event in super().stream_response(*args, **kwargs):
                if event.type == "response.completed" and self.finish_reason in INCOMPLETE:
                    yield self._incomplete(event.response.output, event.response.usage)
                elif event.type == "response.completed" and not self.finish_reason:
                    raise ModelUnavailableError("the model's answer broke off")
                else:
                    yield event
        except ModelBehaviorError:
            # What the SDK says of an answer whose limit was used up before its first word.
            if self.finish_reason != "length":
                raise
            yield self._incomplete([], None)

    async def _fetch_response(self, *args: Any, **kwargs: Any) -> Any:
        fetched = await super()._fetch_response(*args, **kwargs)
        if isinstance(fetched, tuple):
            response, stream = fetched
            return response, _Watched(stream, self)
        return fetched

    def _incomplete(self, output: list[Any], usage: Any) -> ResponseIncompleteEvent:
        reason = INCOMPLETE[self.finish_reason]
        event = events.incomplete(output, model=str(self.model), usage=(0, 0), sequence_number=0, reason=reason)
        event.response.usage = usage
        return event


class _Watched:
    """A stream of chunks that notes the finish reason as they pass; in all else the stream itself."""

    def __init__(self, stream: Any, model: ChatModel) -> None:
        self._stream = stream
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        async for chunk in self._stream:
            for choice in chunk.choices or ():
                self._model.finish_reason = choice.finish_reason or self._model.finish_reason
            yield chunk
