"""What the mirror of turns keeps and forgets while Redis does not answer. The link is a fake."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.errors import TurnLogUnavailableError
from agent_service.rpc.turn_codec import ProtoTurnCodec
from agent_service.turns import log_redis_mirror
from agent_service.turns.log_memory import TurnLog
from agent_service.turns.log_redis_link import RedisLink
from agent_service.turns.log_redis_mirror import Mirror, as_text, usage_from_text
from agent_service.turns.log_redis_scripts import SCRIPTS, Call
from agent_service.types import RequestId, Started, Token, TurnId, Usage
from tests.support.answerers import ANSWERED

WRITE, RELEASE = SCRIPTS["write"][0], SCRIPTS["release"][0]
BASE, EVENTS = 5 + 3 + 3, 5 + 3 + 11
"""Where a write has the sequence that Redis is known to have, and its first event."""


class ObedientLink(RedisLink):
    """A Redis that takes everything, unless it is away."""

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1")
        self.is_away = False
        self.calls: list[Call] = []

    @property
    def away_s(self) -> float:
        return 60.0 if self.is_away else 0.0

    async def ask(self, *calls: Call) -> list[Any]:
        if self.is_away:
            raise TurnLogUnavailableError("away")
        self.calls += calls
        return [[b"running", int(call[BASE]) + len(call) - EVENTS, 0, 0] if call[1] == WRITE else 1 for call in calls]

    def written(self) -> list[tuple[int, int]]:
        """From where, and how many events, of each write."""
        return [(int(call[BASE]), len(call) - EVENTS) for call in self.calls if call[1] == WRITE]


class NobodyElse:
    """Hosts nothing, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def stop_asked(self, tag: str) -> None:
        raise AssertionError(tag)

    def followed_elsewhere(self, tag: str, followers: int) -> None:
        self.told.append((tag, followers))

    def lost(self, tag: str) -> None:
        raise AssertionError(tag)


def log_of(*texts: str) -> TurnLog:
    log = TurnLog(TurnId("t"))
    log.emit(Started(RequestId("r")))
    for text in texts:
        log.emit(Token(text))
    return log


@pytest.fixture
async def link() -> ObedientLink:
    return ObedientLink()


@pytest.fixture
async def mirror(link: ObedientLink) -> Mirror:
    return Mirror(link, ProtoTurnCodec(), "replica", keep_ms=1_000)


async def test_only_what_is_new_is_written(mirror: Mirror, link: ObedientLink) -> None:
    log = log_of("a")
    mirror.own("t", log, "f")
    await mirror.write(NobodyElse())
    await mirror.write(NobodyElse())
    log.emit(Token("b"))
    log.emit(Token("c"))
    await mirror.write(NobodyElse())

    assert link.written() == [(0, 2), (2, 2)]


async def test_what_could_not_be_written_is_written_later(mirror: Mirror, link: ObedientLink) -> None:
    log = log_of("a")
    mirror.own("t", log, "f")
    link.is_away = True
    for text in "bc":
        with pytest.raises(TurnLogUnavailableError):
            await mirror.write(NobodyElse())
        log.emit(Token(text))
    link.is_away = False
    await mirror.write(NobodyElse())

    assert link.written() == [(0, 4)]


async def test_a_long_log_is_written_in_parts(mirror: Mirror, link: ObedientLink) -> None:
    mirror.own("t", log_of(*"x" * 600), "f")
    for _ in range(3):
        await mirror.write(NobodyElse())

    assert link.written() == [(0, 256), (256, 256), (512, 89)]


async def test_many_turns_go_in_rounds(mirror: Mirror, link: ObedientLink) -> None:
    for number in range(250):
        mirror.own(f"t{number}", log_of(), "f")
    await mirror.write(NobodyElse())

    assert link.written() == [(0, 1)] * 250


async def test_a_turn_that_was_forgotten_is_not_written_any_more(mirror: Mirror, link: ObedientLink) -> None:
    log = log_of("a")
    mirror.own("t", log, "f")
    link.is_away = True
    with pytest.raises(TurnLogUnavailableError):
        await mirror.write(NobodyElse())
    mirror.forget("t")
    with pytest.raises(TurnLogUnavailableError):
        await mirror.write(NobodyElse())
    link.is_away = False
    log.emit(Token("b"))
    await mirror.write(NobodyElse())

    assert [call[1] for call in link.calls] == [RELEASE]


async def test_a_redis_that_stays_away_costs_bounded_memory(
    mirror: Mirror, link: ObedientLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_redis_mirror, "MOST_OWNED", 3)
    running = log_of()
    mirror.own("running", running, "f")
    for number in range(5):
        ended = log_of()
        mirror.own(f"t{number}", ended, "f")
        ended.emit(ANSWERED)
        ended.close()
    await mirror.write(NobodyElse())

    assert len(link.written()) == 3
    assert running.on_change is not None


async def test_who_followed_through_a_redis_that_is_gone_is_gone(mirror: Mirror, link: ObedientLink) -> None:
    hosting = NobodyElse()
    mirror.own("t", log_of(), "f")
    mirror._nobody_elsewhere(hosting)
    assert hosting.told == []

    link.is_away = True
    mirror._nobody_elsewhere(hosting)

    assert hosting.told == [("t", 0)]


@given(st.builds(Usage, *[st.integers(0, 2**40)] * 4))
def test_usage_is_the_same_after_the_journey(usage: Usage) -> None:
    assert usage_from_text(as_text(usage)) == usage


def test_usage_that_nobody_wrote_is_none() -> None:
    assert usage_from_text("") == Usage()
