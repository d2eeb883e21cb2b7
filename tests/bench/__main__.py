"""`make bench`: the pair of services and a hand-written peer under the same loads, in turns.

Run as `python -m tests.bench [--quick] [--scenarios S7,S2] [--rounds 5] [--out folder] [--publish]`. Linux only: what a
process uses is read from /proc. Nothing else should run on the machine meanwhile.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.bench import load
from tests.bench.load import BrokenRunError
from tests.bench.measure import Measurement, Stand, machine, measure
from tests.bench.pair import StartError, running_pair, running_peer, running_upstream
from tests.bench.report import Run, markdown, pictures, published
from tests.bench.sampler import Cores
from tests.bench.scenarios import SCENARIOS, SMOKE, Scenario
from tests.support.processes import ROOT

ROUNDS = 5
QUICK_ROUNDS = 1
LOG_LINES = 15
DOCS = ROOT / "docs"
PACKAGES = (
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "pydantic",
    "openai",
    "openai-agents",
    "httpx2",
    "aiohttp",
    "msgspec",
    "grpcio",
)


def say(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, flush=True)  # noqa: T201


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--scenarios", type=_scenarios, default=list(SCENARIOS), help=f"some of {','.join(SCENARIOS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, help=f"how often each is measured; default: {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="one round of shorter loads, to see whether it works")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder of the report")
    parser.add_argument("--publish", action="store_true", help="write the figures into docs/benchmarks.md, too")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    return arguments


def _scenarios(value: str) -> list[str]:
    names = value.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(SCENARIOS)}")
    return names


def chosen(names: Sequence[str], *, quick: bool) -> dict[str, Scenario]:
    """The scenarios by name; in a hurry with half of the questions."""
    rows = {name: SCENARIOS[name] for name in names}
    if not quick:
        return rows
    return {
        name: replace(row, answers=row.answers // 2, asking_s=row.asking_s / 2, ramp_s=row.ramp_s / 2)
        for name, row in rows.items()
    }


def measure_all(scenarios: Sequence[Scenario], rounds: int, folder: Path, cores: Cores) -> list[Measurement]:
    """Start everything, then measure peer and pair in turns."""
    found: list[Measurement] = []
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(running_upstream(folder, cores.tools))
        say("starting the peer and the pair, which loads the sample documents ...")
        targets = [
            stack.enter_context(running_peer(folder, cores.services, upstream)),
            stack.enter_context(running_pair(folder, cores.services, upstream)),
        ]
        for target in targets:
            load.run(target, SMOKE)
        stand = Stand(cores, upstream)
        for scenario in scenarios:
            say(f"{scenario.name}: {scenario.what}")
            for number in range(1, rounds + 1):
                for target in targets:
                    found.append(measure(target, scenario, number, stand))
                    say(f"  round {number}, {_line(found[-1])}")
    return found


def _line(measured: Measurement) -> str:
    parts = " + ".join(f"{name} {part.cpu_ms * 1000 / measured.tokens:.1f}" for name, part in measured.parts.items())
    return (
        f"{measured.target}: CPU {measured.cpu_ms_per_1k:.1f} ms per 1000 tokens ({parts}), "
        f"{measured.cpu_ms_per_answer:.1f} per answer; first token p50 +{measured.first_ms[0]:.0f} "
        f"p99 +{measured.first_ms[1]:.0f} ms; slip p99 {measured.slip_ms[1]:.0f} ms; {measured.tokens_per_s:.0f} "
        f"tokens/s; calibration {max(measured.calibration_us):.0f} us, others {measured.foreign_share:.0%}"
    )


def about(rounds: int, cores: Cores) -> dict[str, str]:
    """What a reader has to know of a run."""
    where = f"services on core {cores.services}, upstream and clients on core {cores.tools}"
    if not cores.are_apart:
        where = "only one core: services, upstream and clients share it, so that latencies say little"
    now = datetime.now(UTC)
    return {
        "measured": f"{now:%Y-%m-%d %H:%M} UTC, {rounds} rounds, peer and pair in turns; median (lowest to highest)",
        "machine": f"{machine()}, Linux {platform.release()}; {where}",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {number}" for package in PACKAGES if (number := _version(package))),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def write(run: Run, out: Path) -> None:
    """The report, its pictures and what it was made of."""
    (out / "benchmarks").mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown(run), encoding="utf-8")
    _draw(run, out / "benchmarks")
    records = "".join(json.dumps(asdict(each)) + "\n" for each in run.measurements)
    (out / "measurements.jsonl").write_text(records, encoding="utf-8")


def publish(run: Run, docs: Path) -> None:
    """The figures into the page, the pictures beside it."""
    page = docs / "benchmarks.md"
    page.write_text(published(page.read_text(encoding="utf-8"), markdown(run)), encoding="utf-8")
    _draw(run, docs / "benchmarks")


def _draw(run: Run, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in pictures(run).items():
        (folder / name).write_text(text, encoding="utf-8")


def _tail(log: Path) -> str:
    """The last lines that are no routine."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if '"level": "info"' not in line][-LOG_LINES:])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write. Returns the exit code: 1 where an answer was wrong or a service did not start."""
    arguments = parse(argv)
    if sys.platform != "linux":
        say("The benchmarks need Linux: they read /proc.")
        return 1
    cores = Cores.of_this_machine()
    if not cores.are_apart:
        say("There is only one core: the tools will disturb the services.")
    scenarios = chosen(arguments.scenarios, quick=arguments.quick)
    os.sched_setaffinity(0, {cores.tools})
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            found = measure_all(list(scenarios.values()), arguments.rounds, Path(folder), cores)
        except (BrokenRunError, StartError) as err:
            for log in sorted(Path(folder).glob("*.log")):
                say(f"--- {log.name}\n{_tail(log)}")
            say(f"failed: {err}")
            return 1
    run = Run(scenarios, found, about(arguments.rounds, cores))
    write(run, arguments.out)
    say(f"\n{markdown(run)}\nwritten to {arguments.out}/report.md")
    if arguments.publish:
        publish(run, DOCS)
        say(f"published in {DOCS / 'benchmarks.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
