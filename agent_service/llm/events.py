"""The few Responses-API events that a text or function call is made of, built for models of our own."""

import uuid
from collections.abc import Iterable
from typing import Literal

from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseIncompleteEvent,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails


def message(text: str) -> ResponseOutputMessage:
    """A whole assistant message."""
    return ResponseOutputMessage(
        id=f"msg_{uuid.uuid4().hex}",
        type="message",
        role="assistant",
        status="completed",
        content=[ResponseOutputText(type="output_text", text=text, annotations=[], logprobs=[])],
    )


def function_call(name: str, arguments: str = "{}") -> ResponseFunctionToolCall:
    """A call of a tool or hand-off, with a call id of its own as the SDK requires."""
    return ResponseFunctionToolCall(
        type="function_call", call_id=f"call_{uuid.uuid4().hex}", name=name, arguments=arguments
    )


def text_delta(item_id: str, text: str, sequence_number: int) -> ResponseTextDeltaEvent:
    """A piece of a message."""
    return ResponseTextDeltaEvent(
        type="response.output_text.delta",
        item_id=item_id,
        output_index=0,
        content_index=0,
        delta=text,
        logprobs=[],
        sequence_number=sequence_number,
    )


def completed(
    output: Iterable[ResponseOutputItem], *, model: str, usage: tuple[int, int], sequence_number: int
) -> ResponseCompletedEvent:
    """The last event of a whole response. `usage`: input and output tokens."""
    whole = response(output, model=model, usage=usage)
    return ResponseCompletedEvent(type="response.completed", sequence_number=sequence_number, response=whole)


def incomplete(
    output: Iterable[ResponseOutputItem],
    *,
    model: str,
    usage: tuple[int, int],
    sequence_number: int,
    reason: Literal["max_output_tokens", "content_filter"] = "max_output_tokens",
) -> ResponseIncompleteEvent:
    """The last event of a response that was cut. `usage`: input and output tokens."""
    cut = response(output, model=model, usage=usage)
    cut.status = "incomplete"
    cut.incomplete_details = IncompleteDetails(reason=reason)
    return ResponseIncompleteEvent(type="response.incomplete", sequence_number=sequence_number, response=cut)


def response(output: Iterable[ResponseOutputItem], *, model: str, usage: tuple[int, int]) -> Response:
    """A whole response. `usage`: input and output tokens."""
    input_tokens, output_tokens = usage
    return Response(
        id=f"resp_{uuid.uuid4().hex}",
        object="response",
        created_at=0,
        model=model,
        output=list(output),
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
        status="completed",
        usage=ResponseUsage(
            input_tokens=input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
            output_tokens=output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=input_tokens + output_tokens,
        ),
    )
