"""Server-sent events as a browser reads them (WHATWG HTML, 9.2.6), for tests: every line end it knows ends a line."""

import json
import re
from dataclasses import dataclass
from typing import Any

LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass
class Event:
    """A dispatched event."""

    type: str
    data: str
    id: str | None

    @property
    def json(self) -> dict[str, Any]:
        """Its data."""
        value: dict[str, Any] = json.loads(self.data)
        return value


def parse(stream: str) -> list[Event]:
    """All events of a whole stream; comments are skipped, an event without its blank line is lost."""
    found: list[Event] = []
    kind, data, number = "message", list[str](), None
    for line in LINE_END.split(stream):
        if not line:
            if data:
                found.append(Event(kind, "\n".join(data), number))
            kind, data, number = "message", list[str](), None
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            number = value
    return found
