"""An answer as it is put together from a provider's events: text, calls, how it ended, what it cost."""

import uuid
from dataclasses import dataclass, field
from typing import TypeAlias

from agents import Usage
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseReasoningItem,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from agent_service.llm.events import message
from agent_service.llm.failures import not_understood
from agent_service.types import CHARACTERS_PER_TOKEN, Outcome


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens that a provider has counted. `reasoning` is a part of `output`, `cached` one of `input`."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class ToolCall:
    """A call of a tool or a hand-off; its arguments come in pieces, and may be no JSON in the end."""

    name: str = ""
    id: str = ""
    arguments: list[str] = field(default_factory=list)

    def item(self, taken: set[str]) -> ResponseFunctionToolCall:
        """The call as the SDK takes it, with an id of its own where the provider gave none, or one that is taken.

        Raises:
            NoAnswerError: it calls nothing.
        """
        if not self.name:
            raise not_understood()
        call_id = self.id if self.id and self.id not in taken else f"call_{uuid.uuid4().hex}"
        taken.add(call_id)
        arguments = "".join(self.arguments) or "{}"
        return ResponseFunctionToolCall(type="function_call", call_id=call_id, name=self.name, arguments=arguments)


class TextPlace:
    """Where among an answer's items its message stands."""


Part: TypeAlias = ToolCall | ResponseReasoningItem | TextPlace


@dataclass(slots=True)
class Answer:
    """What a model has said so far.

    Attributes:
        parts: the answer's items in their order; all text is one message.
        count: what the provider counted; None: nothing.
        whole: nothing is missing from the answer; its token counts may still come.
        over: nothing more is to be read.
        refuses: the model declines, or a filter does so in its place.
        cut: a limit on tokens ended it.
    """

    parts: list[Part] = field(default_factory=list)
    count: Count | None = None
    whole: bool = False
    over: bool = False
    refuses: bool = False
    cut: bool = False
    _said: list[str] = field(default_factory=list)
    _taken: int = 0

    def say(self, text: str) -> None:
        """Append text."""
        if text:
            if not self._said:
                self.parts.append(TextPlace())
            self._said.append(text)

    def take(self) -> str:
        """The text that came since this was called last."""
        if self._taken == len(self._said):
            return ""
        text = "".join(self._said[self._taken :])
        self._taken = len(self._said)
        return text

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self._said)

    @property
    def outcome(self) -> Outcome | None:
        """What is special about the answer; None: nothing. A limit that ended calls has cut no text of an answer."""
        if self.refuses:
            return Outcome.REFUSED
        return Outcome.TRUNCATED if self.cut and not self._calls else None

    @property
    def _calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    def output(self) -> list[ResponseOutputItem]:
        """The answer's items. A run needs something final, even where there is nothing to say.

        Raises:
            NoAnswerError: a call has no name.
        """
        taken: set[str] = set()
        items: list[ResponseOutputItem] = []
        for part in self.parts:
            if isinstance(part, ToolCall):
                items.append(part.item(taken))
            else:
                items.append(message(self.text) if isinstance(part, TextPlace) else part)
        if not any(isinstance(part, ToolCall | TextPlace) for part in self.parts):
            items.append(message(""))
        return items

    def usage(self, sent_characters: int) -> Usage:
        """Tokens as counted; estimated from what was sent and said where nobody counted."""
        count = self.count
        if count is None:
            said = len(self.text) + sum(len(part) for call in self._calls for part in (call.name, *call.arguments))
            count = Count(-(-sent_characters // CHARACTERS_PER_TOKEN), -(-said // CHARACTERS_PER_TOKEN))
        return Usage(
            requests=1,
            input_tokens=count.input,
            input_tokens_details=InputTokensDetails(cached_tokens=count.cached, cache_write_tokens=0),
            output_tokens=count.output,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=count.reasoning),
            total_tokens=count.input + count.output,
        )
