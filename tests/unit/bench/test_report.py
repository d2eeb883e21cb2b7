"""Figures over rounds, and the page that shows them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from xml.etree import ElementTree as ET

import pytest

from tests.bench.measure import Measurement, Part
from tests.bench.picture import Bar, Group, chart
from tests.bench.report import BEGIN, END, PageError, Run, Spread, markdown, pictures, published
from tests.bench.scenarios import SCENARIOS

QUIET = Measurement(
    scenario="S7",
    target="peer",
    round=1,
    answers=40,
    tokens=8000,
    wall_s=4.0,
    parts={"peer": Part(2000.0, 0.1, 130.0)},
    first_ms=(5.0, 20.0),
    slip_ms=(8.0, 40.0),
    reads_per_1k=900.0,
    calibration_us=(2300.0, 2310.0),
    foreign_share=0.01,
    tools_share=0.2,
    late_ms=1.0,
)


def measured(target: str, cpu_ms: Sequence[float], scenario: str = "S7") -> list[Measurement]:
    """One round for each figure; the pair's is that of its agent, and its edge uses 100 ms."""
    edge = {"edge": Part(100.0, 0.2, 90.0)}
    return [
        replace(
            QUIET,
            scenario=scenario,
            target=target,
            round=number,
            parts={"agent": Part(each, 0.1, 150.0)} | edge if target == "pair" else {"peer": Part(each, 0.1, 130.0)},
        )
        for number, each in enumerate(cpu_ms, 1)
    ]


def run(*measurements: Measurement) -> Run:
    names = dict.fromkeys(each.scenario for each in measurements)
    return Run({name: SCENARIOS[name] for name in names}, measurements, {"machine": "two cores"})


def test_figures_are_for_what_clients_have_got() -> None:
    assert QUIET.cpu_ms_per_1k == 250
    assert QUIET.cpu_ms_per_answer == 50
    assert QUIET.tokens_per_s == 2000


def test_a_spread_shows_the_median_and_how_far_rounds_were_apart() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([3.0, 1.0, 2.0]).shown(1) == "2.0 (1.0 to 3.0)"
    assert Spread.of([2.0]).shown(0) == "2"


def test_a_ratio_compares_each_round_with_itself() -> None:
    """A machine that slows down during the run slows both."""
    whole = run(*measured("peer", [1000, 4000]), *measured("pair", [400, 1900]))

    assert whole.ratio("S7", lambda each: each.cpu_ms) == Spread(0.5, 0.5, 0.5)


def test_the_page_says_whether_the_target_is_met() -> None:
    met = markdown(run(*measured("peer", [1000]), *measured("pair", [500])))
    missed = markdown(run(*measured("peer", [1000]), *measured("pair", [700])))

    assert "pair / peer: 0.60**; the target of at most 0.6 is met" in met
    assert "pair / peer: 0.80**; the target of at most 0.6 is missed" in missed


def test_the_page_has_a_row_for_each_system_and_each_part() -> None:
    page = markdown(run(*measured("peer", [1000]), *measured("pair", [500])))

    assert "- machine: two cores" in page
    for row in ("| S7 | peer | 125 | 25.0 |", "| S7 | pair | 75 | 15.0 |", "| S7 | agent | 62 |", "| S7 | edge | 12 |"):
        assert row in page


def test_answers_of_two_tokens_are_compared_by_the_request() -> None:
    page = markdown(run(*measured("peer", [1000], "S6"), *measured("pair", [500], "S6")))

    assert "| S6 | peer | - | 25.0 |" in page
    assert "target" not in page


@pytest.mark.parametrize(
    "change", [{"calibration_us": (2300.0, 2900.0)}, {"foreign_share": 0.3}], ids=["slow core", "others"]
)
def test_a_disturbed_measurement_is_named(change: dict[str, object]) -> None:
    (peer,), (pair,) = measured("peer", [1000]), measured("pair", [500])

    assert "None of 2 measurements was disturbed" in markdown(run(peer, pair))
    assert "1 of 2 measurements** (" in (page := markdown(run(peer, replace(pair, **change))))  # type: ignore[arg-type]
    assert "core): S7 pair 1." in page


def test_a_measurement_survives_as_json() -> None:
    (pair,) = measured("pair", [500])

    assert Measurement.of(json.loads(json.dumps(asdict(pair)))) == pair


def test_figures_are_published_in_the_place_of_the_old_ones() -> None:
    page = f"# Benchmarks\n\n{BEGIN}\nold\n{END}\n\nBy hand.\n"

    new = published(page, "new\n")

    assert new == f"# Benchmarks\n\n{BEGIN}\n\nnew\n\n{END}\n\nBy hand.\n"
    assert published(new, "new\n") == new


def test_a_page_without_a_place_for_figures_is_left_alone() -> None:
    with pytest.raises(PageError):
        published("# Benchmarks\n", "new")


def test_pictures_are_whole_and_show_every_part() -> None:
    drawn = pictures(run(*measured("peer", [1000]), *measured("pair", [500])))

    assert drawn.keys() == {"cpu.svg", "slip.svg"}
    shown = {each.get("class") for each in ET.fromstring(drawn["cpu.svg"]).iter("{http://www.w3.org/2000/svg}rect")}
    assert shown == {"paper", "peer", "agent", "edge"}


def test_bars_are_as_long_as_their_values() -> None:
    drawn = ET.fromstring(
        chart("A & B", "ms", [Group("S1", [Bar("x", [("a", 30.0), ("b", 10.0)]), Bar("y", [("a", 20)])])])
    )

    bars = [each for each in drawn.iter("{http://www.w3.org/2000/svg}rect") if each.get("height") == "22"]
    widths = [float(each.get("width", "0")) for each in bars]
    assert widths == pytest.approx([widths[0], widths[0] / 3, widths[0] * 2 / 3], abs=0.1)
    assert "40.0 ms" in "".join(drawn.itertext())
