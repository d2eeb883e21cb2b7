"""What a model would do that knows its tools: decided from the request alone, for both APIs and any number of turns."""

import json
import re
from collections.abc import Sequence
from typing import Any

from tests.support.openai_server import Reply, Request

SOURCE = re.compile(r'<source number="(\d+)"[^>]*>\s*(.*?)\s*</source>', re.DOTALL)
RESULT = re.compile(r"<tool_result[^>]*>\s*(.*?)\s*</tool_result>", re.DOTALL)


def tools_of(request: Request) -> list[str]:
    """The names of the functions that the model is offered, hand-offs among them."""
    offered = [tool.get("function", tool) for tool in request.body.get("tools") or ()]
    return [tool["name"] for tool in offered]


def items_of(request: Request) -> list[dict[str, Any]]:
    """The conversation as the model gets it, oldest first."""
    items: list[dict[str, Any]] = request.body.get("messages") or request.body["input"]
    return items


def read(request: Request) -> str:
    """All that the model reads, as one text."""
    instructions = request.body.get("instructions") or ""
    return "\n".join([instructions, *(text_of(item) for item in items_of(request))])


def text_of(item: dict[str, Any]) -> str:
    """The text of one item: what was said, or what a tool returned."""
    content = item.get("content") or item.get("output") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def results_of(request: Request) -> list[str]:
    """What tools have returned in this turn, without the fences; hand-offs return something, too, and have none."""
    return [found for item in items_of(request) if is_result(item) for found in RESULT.findall(text_of(item))]


def is_result(item: dict[str, Any]) -> bool:
    """Whether an item is what a tool returned."""
    return item.get("role") == "tool" or item.get("type") == "function_call_output"


def sources_of(request: Request) -> dict[int, str]:
    """The sources that the model reads, by number."""
    return {int(number): text for number, text in SOURCE.findall(read(request))}


def hand_over(request: Request, agent: str) -> Reply | None:
    """The hand-off to an agent, where it is offered."""
    name = f"transfer_to_{agent}"
    return Reply.handoff(name) if name in tools_of(request) else None


def first_sentence(text: str) -> str:
    """The first sentence of a source that is prose, without its headings."""
    prose = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "|", "-"))]
    return re.split(r"(?<=[.!?])\s", " ".join(prose))[0]


def call(name: str, **arguments: object) -> Reply:
    """A tool call."""
    return Reply.tool(name, json.dumps(arguments))


def pieces(text: str, size: int) -> Sequence[str]:
    """A text cut into pieces of so many characters."""
    return [text[at : at + size] for at in range(0, len(text), size)]
