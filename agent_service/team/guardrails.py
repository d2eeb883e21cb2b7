"""Stub until written."""

from collections.abc import Sequence

from agent_service.team.tool_spec import GuardrailSpec


class Guardrails:
    def __init__(self, specs: Sequence[GuardrailSpec]) -> None:
        self.needed = bool(specs)

    async def check(self, text: str) -> str | None:
        return None
