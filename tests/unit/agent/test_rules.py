import pytest

from agent_service.errors import FieldViolation, InvalidRequestError
from agent_service.rpc.rules import Rules

HOLDS, BROKEN = True, False


def broken(rules: Rules) -> list[str]:
    with pytest.raises(InvalidRequestError) as raised:
        rules.check()
    return [violation.field for violation in raised.value.violations]


def test_rules_that_hold_raise_nothing() -> None:
    rules = Rules()
    rules.hold(HOLDS, "a", "must hold")
    rules.text("x", "b", 1)

    rules.check()


def test_no_rules_raise_nothing() -> None:
    Rules().check()


def test_every_broken_rule_is_told_at_once_in_order() -> None:
    rules = Rules()
    rules.hold(BROKEN, "first", "must be first")
    rules.hold(HOLDS, "second", "must be second")
    rules.hold(BROKEN, "third", "must be third")

    with pytest.raises(InvalidRequestError) as raised:
        rules.check()

    assert raised.value.violations == (
        FieldViolation("first", "must be first"),
        FieldViolation("third", "must be third"),
    )
    assert str(raised.value) == "first: must be first; third: must be third"


@pytest.mark.parametrize("value", ["", " ", "\n\t ", "\u00a0", "\u2003"])
def test_required_text_of_white_space_only_is_broken(value: str) -> None:
    rules = Rules()
    rules.text(value, "message", 10)

    assert broken(rules) == ["message"]


def test_required_text_may_be_as_long_as_allowed_and_no_longer() -> None:
    rules = Rules()
    rules.text("x" * 10, "fits", 10)
    rules.text("x" * 11, "too_long", 10)

    assert broken(rules) == ["too_long"]


def test_text_is_counted_in_code_points() -> None:
    rules = Rules()
    rules.text("\U0001f600" * 10, "astral", 10)
    rules.text("e\u0301" * 5, "combining", 10)

    rules.check()


def test_a_broken_rule_does_not_repeat_the_text_it_is_about() -> None:
    rules = Rules()
    rules.text("hunter2" * 10, "message", 10)

    with pytest.raises(InvalidRequestError) as raised:
        rules.check()

    assert "hunter2" not in str(raised.value)
