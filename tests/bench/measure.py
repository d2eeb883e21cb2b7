"""One measurement: a scenario on a target, with what it used, what its clients saw, and what disturbed it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench import load
from tests.bench.load import Target
from tests.bench.pair import Upstream
from tests.bench.sampler import Cores, Used, busy_s, calibrate, memory_mib, used
from tests.bench.scenarios import WARM_UP, Scenario
from tests.support.cluster import percentile

SETTLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Part:
    """What one process used. Shares are 0 to 1."""

    cpu_ms: float
    kernel_share: float
    memory_mib: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures of one scenario on one target in one round.

    Attributes:
        parts: processes of the target.
        first_ms: p50 and p99 of the time to the first token, over the ideal.
        slip_ms: p50 and p99 of the time to the end of the stream, over the ideal.
        reads_per_1k: reads of the clients for 1000 tokens: fewer say that tokens came together.
        calibration_us: CPU of a fixed piece of work on the services' core, before and after.
        foreign_share: what others have used of the cores of services and tools; 1 is a whole core.
        tools_share: what the tools have used of theirs.
        late_ms: the most by which the upstream was late with a token.
    """

    scenario: str
    target: str
    round: int
    answers: int
    tokens: int
    wall_s: float
    parts: Mapping[str, Part]
    first_ms: tuple[float, float]
    slip_ms: tuple[float, float]
    reads_per_1k: float
    calibration_us: tuple[float, float]
    foreign_share: float
    tools_share: float
    late_ms: float

    @property
    def cpu_ms(self) -> float:
        """Of all parts."""
        return sum(part.cpu_ms for part in self.parts.values())

    @property
    def cpu_ms_per_1k(self) -> float:
        """Of all parts, for 1000 tokens that clients have got."""
        return self.cpu_ms * 1000 / self.tokens

    @property
    def cpu_ms_per_answer(self) -> float:
        """Of all parts, for an answer."""
        return self.cpu_ms / self.answers

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.tokens / self.wall_s

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Measurement":
        """From what `dataclasses.asdict` has made of one."""
        pairs = {name: tuple(document[name]) for name in ("first_ms", "slip_ms", "calibration_us")}
        parts = {name: Part(**part) for name, part in document["parts"].items()}
        return cls(**{**document, **pairs, "parts": parts})


@dataclass(frozen=True, slots=True)
class Stand:
    """What a measurement needs beside its target."""

    cores: Cores
    upstream: Upstream


def measure(target: Target, scenario: Scenario, number: int, stand: Stand) -> Measurement:
    """Warm up, then measure. `number`: the round.

    Raises:
        BrokenRunError: an answer was not what the script says.
    """
    load.run(target, WARM_UP)
    time.sleep(SETTLE_S)
    stand.upstream.counts()
    before_us = calibrate(stand.cores.services)
    earlier = _Usage.now(target, stand)
    outcome = load.run(target, scenario)
    usage = _Usage.now(target, stand) - earlier
    after_us = calibrate(stand.cores.services)
    return Measurement(
        scenario.name,
        target.name,
        number,
        len(outcome.answers),
        outcome.tokens,
        outcome.wall_s,
        {name: _part(each, target.processes[name]) for name, each in usage.target.items()},
        _over([answer.first_ms for answer in outcome.answers], scenario.first_ms),
        _over([answer.whole_ms for answer in outcome.answers], scenario.ideal_ms),
        sum(answer.reads for answer in outcome.answers) * 1000 / outcome.tokens,
        (before_us, after_us),
        usage.foreign_s / outcome.wall_s,
        usage.tools_s / outcome.wall_s,
        stand.upstream.counts()["late_ms"],
    )


@dataclass(frozen=True, slots=True)
class _Usage:
    """CPU time of the target's parts, of the tools, and of the cores in use, for whomever they have worked."""

    target: Mapping[str, Used]
    tools_s: float
    cores_s: float

    @classmethod
    def now(cls, target: Target, stand: Stand) -> "_Usage":
        return cls(
            {name: used(pid) for name, pid in target.processes.items()},
            used(os.getpid()).cpu_s + used(stand.upstream.pid).cpu_s,
            sum(busy_s(core) for core in {stand.cores.services, stand.cores.tools}),
        )

    def __sub__(self, earlier: "_Usage") -> "_Usage":
        return _Usage(
            {name: each - earlier.target[name] for name, each in self.target.items()},
            self.tools_s - earlier.tools_s,
            self.cores_s - earlier.cores_s,
        )

    @property
    def foreign_s(self) -> float:
        """What others have used of these cores."""
        return max(0.0, self.cores_s - self.tools_s - sum(each.cpu_s for each in self.target.values()))


def _part(spent: Used, pid: int) -> Part:
    return Part(spent.cpu_s * 1000, spent.kernel_share, memory_mib(pid))


def _over(times_ms: Sequence[float], ideal_ms: float) -> tuple[float, float]:
    return percentile(times_ms, 0.5) - ideal_ms, percentile(times_ms, 0.99) - ideal_ms


def machine() -> str:
    """The processor and its cores."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:  # noqa: PTH123 - not a file of ours
        model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} cores, {model}"
