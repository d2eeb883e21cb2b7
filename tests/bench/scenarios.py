"""What is measured: one row each."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from tests.bench.script import Script

_tags = count(1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load: so many streams at once, each of which asks again when its answer has ended.

    Attributes:
        what: one line for people.
        streams: how many at once.
        tokens: of each answer.
        rate_per_s: tokens in a second, of each stream; 0: as fast as they are taken.
        first_ms: what the model takes before the first token.
        answers: how many in all; 0: as many as there is time for.
        asking_s: for how long new questions are asked, where `answers` is 0.
        ramp_s: time over which the first questions are spread.
        most_s: a run that takes longer has failed.
    """

    name: str
    what: str
    streams: int
    tokens: int
    rate_per_s: int
    first_ms: int
    answers: int = 0
    asking_s: float = 0.0
    ramp_s: float = 0.0
    most_s: float = 60.0

    def script(self) -> Script:
        """The next answer; no two have the same tag."""
        return Script(f"q{next(_tags)}", self.tokens, self.rate_per_s, self.first_ms)

    @property
    def ideal_ms(self) -> float:
        """How long the upstream itself takes for an answer."""
        return self.script().ideal_ms


SCENARIOS: Mapping[str, Scenario] = {
    row.name: row
    for row in (
        Scenario("S2", "100 streams, 100 tokens at 20/s", 100, 100, 20, 200, answers=200, ramp_s=5.0),
        Scenario("S4", "saturation: 64 streams, 400 tokens without a pause", 64, 400, 0, 0, asking_s=5.0),
        Scenario("S6", "fixed cost: 32 streams, 2 tokens without a pause", 32, 2, 0, 0, asking_s=3.0),
        Scenario("S7", "a fast model: 20 streams, 200 tokens at 100/s", 20, 200, 100, 200, answers=40, ramp_s=2.0),
    )
}

WARM_UP = Scenario("warm-up", "before each measurement", 8, 20, 0, 0, answers=16)
SMOKE = Scenario("smoke", "whether everything works", 2, 10, 100, 20, answers=4)
