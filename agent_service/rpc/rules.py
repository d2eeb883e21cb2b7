"""Checks of requests at the boundary: every broken rule is told at once."""

from agent_service.errors import FieldViolation, InvalidRequestError


class Rules:
    """Collects broken rules, so that a caller learns of all of them at once."""

    def __init__(self) -> None:
        self._broken: list[FieldViolation] = []

    def hold(self, holds: bool, field: str, rule: str) -> None:
        """Note the rule for the field unless it holds."""
        if not holds:
            self._broken.append(FieldViolation(field, rule))

    def text(self, value: str, field: str, most: int) -> None:
        """A required text."""
        self.hold(bool(value.strip()), field, "must not be empty or only white space")
        self.hold(len(value) <= most, field, f"must have at most {most} characters, has {len(value)}")

    def check(self) -> None:
        """Raise InvalidRequestError if any rule is broken."""
        if self._broken:
            raise InvalidRequestError(*self._broken)
