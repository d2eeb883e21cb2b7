"""The model of a cluster: a scripted OpenAI-compatible server. The question itself tells it what to answer, how slowly.

So nothing has to be queued, and any number of turns can run at once: each has a tag of its own, every word of its
answer carries that tag and a number, and the model's calls are found by it.
"""

import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Self

from tests.support.model_thread import in_a_thread
from tests.support.openai_server import Reply, Request, ScriptedOpenAI

MAX_REQUESTS = 100_000
KEY = "sk-planted-"
"""Begins the key of each agent; its number follows, so that the model knows who calls."""

INSTRUCTION = re.compile(r"Case (\w+): (\d+) words of (\d+) characters, (\d+) ms each")
_tags = count(1)


@dataclass(frozen=True, slots=True)
class Script:
    """A question, and the answer that the model gives to it.

    Attributes:
        tag: names it, in the whole run.
        words: how many the answer has.
        pace_ms: what passes before each word. Milliseconds.
        size: characters of each word, as far as its tag and number leave them open.
    """

    tag: str
    words: int
    pace_ms: int
    size: int = 0

    @classmethod
    def of(cls, words: int, pace_ms: int, size: int = 0) -> Self:
        """One with a tag of its own."""
        return cls(f"q{next(_tags)}", words, pace_ms, size)

    @property
    def question(self) -> str:
        """What a person asks."""
        order = f"{self.words} words of {self.size} characters, {self.pace_ms} ms each"
        return f"What does the Enterprise plan cost? Case {self.tag}: {order}."

    @property
    def answer(self) -> str:
        """What the model says: no two words are equal, nor those of two answers."""
        return " ".join(f"{self.tag}-{number}".ljust(self.size, "x") for number in range(1, self.words + 1))

    @property
    def duration_s(self) -> float:
        """How long the model takes at least."""
        return self.words * self.pace_ms / 1000


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What became of one request to the model. Times are `time.monotonic()`; None: not yet, or never.

    Attributes:
        agent: which agent called, by its number.
    """

    agent: int
    arrived_s: float
    ended_s: float | None
    hung_up_s: float | None

    @property
    def runs(self) -> bool:
        """Whether it is still being answered."""
        return self.ended_s is None and self.hung_up_s is None


class ScriptedModel:
    """The server in a thread of its own, so that tests and clients of any kind find it running."""

    def __init__(self) -> None:
        self.base_url = ""
        self._server = ScriptedOpenAI(max_requests=MAX_REQUESTS)
        self._server.answer_with(self._answer)
        self._requests: defaultdict[str, list[Request]] = defaultdict(list)
        self._running = ExitStack()

    def start(self) -> None:
        """Begin to serve."""
        self.base_url = self._running.enter_context(in_a_thread(self._server))

    def stop(self) -> None:
        """End, and with it every answer under way."""
        self._running.close()

    def calls(self, script: Script) -> list[ModelCall]:
        """The calls for a question, oldest first."""
        return [self._call(request) for request in tuple(self._requests.get(script.tag, ()))]

    def call(self, script: Script) -> ModelCall:
        """The only call for a question."""
        (call,) = self.calls(script)
        return call

    @property
    def requests(self) -> int:
        """How many calls there were for all questions."""
        return len(self._server.requests)

    def _call(self, request: Request) -> ModelCall:
        agent = int(request.headers["Authorization"].rpartition(KEY)[2])
        ended, hung_up = self._server.ended.get(request.number), self._server.hung_up.get(request.number)
        return ModelCall(agent, request.arrived_s, ended, hung_up)

    def _answer(self, request: Request) -> Reply:
        # Earlier questions of the conversation come first.
        *_, (tag, words, size, pace_ms) = INSTRUCTION.findall(str(request.body["input"]))
        self._requests[tag].append(request)
        script = Script(tag, int(words), int(pace_ms), int(size))
        return Reply.text(script.answer, pace_s=script.pace_ms / 1000)
