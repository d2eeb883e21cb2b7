import logging

import pytest

from agent_service.ports import Vitals
from agent_service.vitals import PARTS, PartVitals


class Heard:
    """What a listener was told, in order."""

    def __init__(self, vitals: PartVitals) -> None:
        self.told: list[tuple[str, bool]] = []
        vitals.watch(lambda part, ok: self.told.append((part, ok)))
        self.at_once, self.told = self.told, []


@pytest.fixture
def vitals() -> PartVitals:
    return PartVitals()


def test_parts_of_which_nothing_is_known_work(vitals: PartVitals) -> None:
    told: Vitals = vitals

    assert Heard(vitals).at_once == [(part, True) for part in PARTS]
    assert told is vitals


def test_a_part_works_only_while_all_of_its_members_do(vitals: PartVitals) -> None:
    heard = Heard(vitals)

    vitals.tell("tools", "tickets", ok=False)
    vitals.tell("tools", "wiki", ok=False)
    vitals.tell("tools", "tickets", ok=True)
    assert heard.told == [("tools", False)]

    vitals.tell("tools", "wiki", ok=True)
    assert heard.told == [("tools", False), ("tools", True)]


def test_one_part_is_not_the_other(vitals: PartVitals) -> None:
    heard = Heard(vitals)

    vitals.tell("model", "x", ok=False)
    vitals.tell("tools", "x", ok=True)

    assert heard.told == [("model", False)]
    assert Heard(vitals).at_once == [("model", False), ("tools", True)]


def test_a_listener_hears_of_changes_alone(vitals: PartVitals) -> None:
    heard = Heard(vitals)

    vitals.tell("model", "x", ok=True)
    for ok in (False, False, True, True, False):
        vitals.tell("model", "x", ok=ok)

    assert heard.told == [("model", False), ("model", True), ("model", False)]


def test_every_listener_is_told_and_who_comes_late_how_it_is(vitals: PartVitals) -> None:
    first = Heard(vitals)
    vitals.tell("model", "x", ok=False)
    late = Heard(vitals)
    vitals.tell("model", "x", ok=True)

    assert first.told == [("model", False), ("model", True)]
    assert late.at_once == [("model", False), ("tools", True)]
    assert late.told == [("model", True)]


def test_a_part_that_there_is_not_is_an_error(vitals: PartVitals) -> None:
    heard = Heard(vitals)

    with pytest.raises(KeyError):
        vitals.tell("models", "x", ok=False)

    assert heard.told == []


def test_the_log_names_the_member_once_for_each_change(vitals: PartVitals, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "agent_service.vitals"):
        for ok in (True, False, False, True):
            vitals.tell("tools", "wiki", ok=ok)

    lines = [(line.levelname, line.getMessage(), line.part, line.member) for line in caplog.records]  # type: ignore[attr-defined]
    assert lines == [("WARNING", "does not work", "tools", "wiki"), ("INFO", "works again", "tools", "wiki")]
