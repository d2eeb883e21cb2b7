"""A steady load on a cluster, by people whose clients do as documented; and what became of each of their turns."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

import httpx

from tests.support.cluster import Cluster, percentile
from tests.support.cluster_client import NumberedReader, answer_within, ask_whole
from tests.support.cluster_model import Script

PEOPLE = 6
CHECKED_AT_ONCE = 8


@dataclass(slots=True)
class Asked:
    """One turn as its client saw it.

    Attributes:
        acknowledged: whether the client knows that its message was taken.
        problem: why the client gave up; empty where it did not.
    """

    script: Script
    http: httpx.AsyncClient
    session_id: str = ""
    text: str = ""
    status: str | None = None
    forgotten: bool = False
    took_s: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    problem: str = ""

    @property
    def acknowledged(self) -> bool:
        """Whether its client was told where the answer will be."""
        return bool(self.session_id)


class Load:
    """Turns at a steady rate, through both edges in turns; every fourth client waits for the whole answer as JSON."""

    def __init__(self, cluster: Cluster, *, rate_per_s: float, script: Callable[[int], Script]) -> None:
        """`script`: makes the question of the turn with this number."""
        self.turns: list[Asked] = []
        self._cluster = cluster
        self._rate_per_s = rate_per_s
        self._script = script
        self._stack = AsyncExitStack()
        self._people: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Self:
        for _ in range(PEOPLE):
            self._people.append(await self._stack.enter_async_context(self._cluster.person()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, goes_on: Callable[[float], bool]) -> None:
        """Ask as long as `goes_on` says so, which is told the seconds since the start; wait for all answers."""
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while goes_on(time.monotonic() - started_s):
                number = len(self.turns)
                turn = Asked(self._script(number), self._people[number % PEOPLE])
                self.turns.append(turn)
                group.create_task(self._ask(number, turn))
                await asyncio.sleep(max(0.0, started_s + (number + 1) / self._rate_per_s - time.monotonic()))

    async def check(self, *, timeout_s: float) -> list[str]:
        """Is every acknowledged answer stored, once and whole? Returns what is not so. Waits so long for all."""
        end_s = time.monotonic() + timeout_s
        free = asyncio.Semaphore(CHECKED_AT_ONCE)
        found: list[str] = []

        async def check(turn: Asked) -> None:
            async with free:
                left_s = max(0.0, end_s - time.monotonic())
                try:
                    stored = await answer_within(turn.http, self._cluster.urls, turn.session_id, turn.script, left_s)
                except AssertionError as err:
                    found.append(f"{turn.script.tag}: {err}")
                    return
            if (stored["status"], stored["content"]) != ("completed", turn.script.answer):
                found.append(f"{turn.script.tag}: {stored['status']} {stored['content']!r}")
            elif not turn.forgotten and turn.text != stored["content"]:
                found.append(f"{turn.script.tag}: shown {turn.text!r}, stored {stored['content']!r}")

        async with asyncio.TaskGroup() as group:
            for turn in self.turns:
                if turn.acknowledged:
                    group.create_task(check(turn))
        return found

    @property
    def met(self) -> Counter[str]:
        """What the clients met on their way, and got over or not."""
        return sum((turn.met for turn in self.turns), Counter[str]())

    @property
    def problems(self) -> list[str]:
        """Why clients gave up."""
        return [f"{turn.script.tag}: {turn.problem}" for turn in self.turns if turn.problem]

    def summary(self) -> str:
        """Counts and times in a line."""
        late_s = [turn.took_s - turn.script.duration_s for turn in self.turns if not turn.problem]
        shown = ", ".join(f"{percentile(late_s, share):.2f}" for share in (0.5, 0.95, 0.99, 1)) if late_s else "-"
        healed = sum(1 for turn in self.turns if turn.met and not turn.problem)
        return (
            f"{len(self.turns)} turns, {healed} of them healed, {len(self.problems)} given up; met {dict(self.met)}; "
            f"over the model's own time p50, p95, p99, most: {shown} s"
        )

    async def _ask(self, number: int, turn: Asked) -> None:
        edges = self._cluster.urls if number % 2 else self._cluster.urls[::-1]
        started_s = time.monotonic()
        try:
            if number % 4 == 3:
                await self._ask_whole(turn, edges)
            else:
                await self._ask_stream(turn, edges)
        except (AssertionError, httpx.HTTPError, TimeoutError) as err:
            turn.problem = f"{type(err).__name__}: {err}"
        turn.took_s = time.monotonic() - started_s

    async def _ask_whole(self, turn: Asked, edges: Sequence[str]) -> None:
        reply = await ask_whole(turn.http, edges, turn.script, turn.met)
        turn.session_id, turn.text, turn.status = reply["session_id"], reply["answer"], reply["status"]

    async def _ask_stream(self, turn: Asked, edges: Sequence[str]) -> None:
        reader = NumberedReader(turn.http, turn.script.question)
        reader.met = turn.met
        try:
            await reader.finish(edges)
        finally:
            if reader.log.start:
                turn.session_id = reader.session_id
            turn.text, turn.status, turn.forgotten = reader.text, reader.status, reader.forgotten
        if reader.log.error is not None:
            turn.problem = f"ended with {reader.log.error}"
