"""Measurements as a page: ratios, tables, pictures, and what disturbed them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tests.bench.measure import Measurement
from tests.bench.picture import Bar, Group, chart
from tests.bench.scenarios import Scenario

PEER, PAIR = "peer", "pair"
Figure: TypeAlias = Callable[[Measurement], float]

TARGET_SCENARIO = "S7"
TARGET_RATIO = 0.6
"""What the pair may cost at most where the model is fast: CPU for a token, as a share of the peer's."""

FIXED_COST_TOKENS = 10
"""Answers of so few tokens show what a request costs; a cost per token means nothing there."""

DISTURBED_CALIBRATION = 1.15
"""So much over the run's lowest, the fixed piece of work says that the core was slower than it can be."""

DISTURBED_SHARE = 0.05
"""So much of the two cores used by others, they took more than their usual background."""

BEGIN = "<!-- make bench writes from here -->"
END = "<!-- to here -->"


class PageError(ValueError):
    """The page to publish to has no place for the figures."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, digits: int) -> str:
        """For a table; one round has no spread."""
        middle = f"{self.median:.{digits}f}"
        if self.lowest == self.highest:
            return middle
        return f"{middle} ({self.lowest:.{digits}f} to {self.highest:.{digits}f})"


@dataclass(frozen=True, slots=True)
class Run:
    """All measurements of a run. `about`: when, where and with which versions, by name."""

    scenarios: Mapping[str, Scenario]
    measurements: Sequence[Measurement]
    about: Mapping[str, str]

    def of(self, scenario: str, target: str) -> list[Measurement]:
        """The rounds of one scenario on one target, in order."""
        return [each for each in self.measurements if (each.scenario, each.target) == (scenario, target)]

    def spread(self, scenario: str, target: str, figure: Figure) -> Spread:
        """A figure over the rounds."""
        return Spread.of([figure(each) for each in self.of(scenario, target)])

    def ratio(self, scenario: str, figure: Figure) -> Spread:
        """Pair over peer: each round with itself, because both ran one right after the other."""
        rounds = zip(self.of(scenario, PAIR), self.of(scenario, PEER), strict=True)
        return Spread.of([figure(pair) / figure(peer) for pair, peer in rounds])

    @property
    def disturbed(self) -> list[Measurement]:
        """Those during which the machine was slower than it can be, or worked for others."""
        best_us = min(min(each.calibration_us) for each in self.measurements)
        return [
            each
            for each in self.measurements
            if max(each.calibration_us) > best_us * DISTURBED_CALIBRATION or each.foreign_share > DISTURBED_SHARE
        ]


def markdown(run: Run) -> str:
    """The figures, without a heading: they stand in a page of their own."""
    blocks = [_about(run), _verdict(run), "![CPU for 1000 tokens](benchmarks/cpu.svg)", _ratios(run), _table(run)]
    blocks += ["![Slip, p99](benchmarks/slip.svg)", _parts(run), _quality(run)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def pictures(run: Run) -> dict[str, str]:
    """Charts by file name."""
    streams = [name for name in run.scenarios if not _is_fixed_cost(run, name)]
    cpu = [Group(name, _cpu_bars(run, name)) for name in streams]
    paced = [name for name in streams if run.scenarios[name].rate_per_s]
    slip = [
        Group(name, [Bar(each, [(each, max(0.0, run.spread(name, each, _slip_p99).median))]) for each in (PEER, PAIR)])
        for name in paced
    ]
    return {
        "cpu.svg": chart("CPU for 1000 tokens, services on one core (less is better)", "ms", cpu),
        "slip.svg": chart("How much later than ideal an answer ends, p99 (less is better)", "ms", slip),
    }


def published(page: str, figures: str) -> str:
    """A page with these figures in the place of its old ones.

    Raises:
        PageError: it has no such place.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PageError(f"the page needs a line {BEGIN} and, below it, a line {END}")
    return f"{before}{BEGIN}\n\n{figures}\n{END}{after}"


def _about(run: Run) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in run.about.items())


def _verdict(run: Run) -> str:
    if TARGET_SCENARIO not in run.scenarios:
        return ""
    ratio = run.ratio(TARGET_SCENARIO, _per_1k)
    verdict = "met" if ratio.median <= TARGET_RATIO else "missed"
    return (
        f"**{TARGET_SCENARIO}, CPU for a token, pair / peer: {ratio.shown(2)}**; "
        f"the target of at most {TARGET_RATIO} is {verdict}."
    )


def _ratios(run: Run) -> str:
    lines = [
        "| scenario | load | CPU of the pair / CPU of the peer | tokens/s of the pair / of the peer |",
        "|---|---|---|---|",
    ]
    for name, scenario in run.scenarios.items():
        cpu, speed = run.ratio(name, _per_answer if _is_fixed_cost(run, name) else _per_1k), run.ratio(name, _speed)
        lines.append(f"| {name} | {scenario.what} | {cpu.shown(2)} | {speed.shown(2)} |")
    return "\n".join(lines)


def _table(run: Run) -> str:
    columns = (
        "scenario",
        "system",
        "CPU ms / 1000 tokens",
        "CPU ms / answer",
        "first token over ideal p50, p99 ms",
        "slip p50, p99 ms",
        "tokens/s",
        "client reads / 1000 tokens",
        "memory MiB",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in run.scenarios:
        for target in (PEER, PAIR):
            figures = (
                "-" if _is_fixed_cost(run, name) else run.spread(name, target, _per_1k).shown(0),
                run.spread(name, target, _per_answer).shown(1),
                f"{run.spread(name, target, _first_p50).median:.0f}, {run.spread(name, target, _first_p99).median:.0f}",
                f"{run.spread(name, target, _slip_p50).median:.0f}, {run.spread(name, target, _slip_p99).median:.0f}",
                f"{run.spread(name, target, _speed).median:.0f}",
                f"{run.spread(name, target, _reads).median:.0f}",
                f"{run.spread(name, target, _memory).median:.0f}",
            )
            lines.append(f"| {name} | {target} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _parts(run: Run) -> str:
    lines = [
        "| scenario | part | CPU ms / 1000 tokens | CPU ms / answer | of it in the kernel | memory MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name in run.scenarios:
        for target in (PEER, PAIR):
            for part in run.of(name, target)[0].parts:
                figures = (
                    f"{run.spread(name, target, _part_per_1k(part)).median:.0f}",
                    f"{run.spread(name, target, _part_per_answer(part)).median:.2f}",
                    f"{run.spread(name, target, _part_in_kernel(part)).median:.0%}",
                    f"{run.spread(name, target, _part_memory(part)).median:.0f}",
                )
                lines.append(f"| {name} | {part} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _quality(run: Run) -> str:
    measured = run.measurements
    calibrations = Spread.of([us for each in measured for us in each.calibration_us])
    tools = max(each.tools_share for each in measured)
    late_ms = max(each.late_ms for each in measured)
    lines = [
        f"- Calibration, CPU of a fixed piece of work around each measurement: {calibrations.shown(0)} us.",
        f"- The tools used at most {tools:.0%} of their core; the upstream was late by at most {late_ms:.0f} ms.",
    ]
    if run.disturbed:
        names = ", ".join(f"{each.scenario} {each.target} {each.round}" for each in run.disturbed)
        lines.append(
            f"- **Disturbed: {len(run.disturbed)} of {len(measured)} measurements** (calibration more than "
            f"{DISTURBED_CALIBRATION - 1:.0%} over the lowest, or others used more than {DISTURBED_SHARE:.0%} of a "
            f"core): {names}."
        )
    else:
        lines.append(f"- None of {len(measured)} measurements was disturbed.")
    return "\n".join(lines)


def _cpu_bars(run: Run, scenario: str) -> list[Bar]:
    return [
        Bar(target, [(part, run.spread(scenario, target, _part_per_1k(part)).median) for part in parts])
        for target in (PEER, PAIR)
        if (parts := list(run.of(scenario, target)[0].parts))
    ]


def _is_fixed_cost(run: Run, scenario: str) -> bool:
    return run.scenarios[scenario].tokens < FIXED_COST_TOKENS


def _per_1k(measured: Measurement) -> float:
    return measured.cpu_ms_per_1k


def _per_answer(measured: Measurement) -> float:
    return measured.cpu_ms_per_answer


def _speed(measured: Measurement) -> float:
    return measured.tokens_per_s


def _reads(measured: Measurement) -> float:
    return measured.reads_per_1k


def _memory(measured: Measurement) -> float:
    return sum(part.memory_mib for part in measured.parts.values())


def _first_p50(measured: Measurement) -> float:
    return measured.first_ms[0]


def _first_p99(measured: Measurement) -> float:
    return measured.first_ms[1]


def _slip_p50(measured: Measurement) -> float:
    return measured.slip_ms[0]


def _slip_p99(measured: Measurement) -> float:
    return measured.slip_ms[1]


def _part_per_1k(part: str) -> Figure:
    return lambda measured: measured.parts[part].cpu_ms * 1000 / measured.tokens


def _part_per_answer(part: str) -> Figure:
    return lambda measured: measured.parts[part].cpu_ms / measured.answers


def _part_in_kernel(part: str) -> Figure:
    return lambda measured: measured.parts[part].kernel_share


def _part_memory(part: str) -> Figure:
    return lambda measured: measured.parts[part].memory_mib
