"""What a question tells the scripted upstream to answer, and how fast: it travels as a sentence of the question."""

import re
from dataclasses import dataclass
from typing import Self

MARK = b"t~"
"""Every token has it once, and nothing else in a stream has it: so tokens are counted, however many share an event."""

START = b"Case "
SENTENCE = re.compile(rb"Case (\w+): (\d+) tokens at (\d+)/s after (\d+) ms")
QUESTION = "How long does the API wait before a request times out?"


@dataclass(frozen=True, slots=True)
class Script:
    """One answer.

    Attributes:
        tag: names it in the run.
        tokens: how many it has.
        rate_per_s: how many tokens come in a second; 0: as fast as they are taken.
        first_ms: what passes before the first.
    """

    tag: str
    tokens: int
    rate_per_s: int
    first_ms: int

    @classmethod
    def of(cls, body: bytes) -> Self | None:
        """What a request asks for: its last sentence counts, because earlier questions come first. None: nothing."""
        at = body.rfind(START)
        found = SENTENCE.match(body, at) if at >= 0 else None
        if found is None:
            return None
        tag, tokens, rate_per_s, first_ms = found.groups()
        return cls(tag.decode(), int(tokens), int(rate_per_s), int(first_ms))

    @property
    def question(self) -> str:
        """What a person asks: something that the sample documents answer, and the sentence for the upstream."""
        return f"{QUESTION} Case {self.tag}: {self.tokens} tokens at {self.rate_per_s}/s after {self.first_ms} ms."

    @property
    def answer(self) -> str:
        """The text of all tokens."""
        return "".join(map(token, range(self.tokens)))

    @property
    def ideal_ms(self) -> float:
        """How long the upstream itself takes."""
        return self.first_ms + (1000 * self.tokens / self.rate_per_s if self.rate_per_s else 0)


def token(number: int) -> str:
    """The token with this number, from 0: a plain word, so that nobody takes it for a marker or a link.

    The space is in front: behind the last word of an answer it would be taken off.
    """
    return f" t~{number}" if number else f"t~{number}"
