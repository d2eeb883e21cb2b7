"""The command line of the benchmarks."""

from dataclasses import replace

import pytest

from tests.bench.__main__ import QUICK_ROUNDS, ROUNDS, chosen, parse
from tests.bench.scenarios import SCENARIOS


def test_by_default_all_scenarios_run_and_in_a_hurry_once() -> None:
    assert parse([]).scenarios == list(SCENARIOS)
    assert (parse([]).rounds, parse(["--quick"]).rounds) == (ROUNDS, QUICK_ROUNDS)
    assert parse(["--quick", "--rounds", "3"]).rounds == 3


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--scenarios", "S7,S99"])

    assert "S99 is none of" in capsys.readouterr().err


def test_a_hurry_halves_the_questions() -> None:
    assert chosen(["S7"], quick=False) == {"S7": SCENARIOS["S7"]}
    assert chosen(["S7"], quick=True) == {"S7": replace(SCENARIOS["S7"], answers=20, ramp_s=1.0)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_ends_in_time_with_whole_rounds_of_streams(name: str) -> None:
    row = SCENARIOS[name]

    assert bool(row.answers) != bool(row.asking_s)
    assert row.answers % row.streams == 0
    assert row.ramp_s + row.asking_s + 2 * row.ideal_ms / 1000 < row.most_s
