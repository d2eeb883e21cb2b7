"""When a call that follows a turn fails: is the turn over, or only the call?"""

from datetime import UTC, datetime

import pytest

from edge_api.agent_client.events import Started, TurnId
from edge_api.agent_client.signing import Caller
from edge_api.chat.feed import TurnFeed
from edge_api.chat.patience import ALONE_PATIENCE_S, APART_S, ASK_PAUSES_S, LONGEST_PAUSE_S, READ_PATIENCE_S, Patience
from edge_api.conversations.schemas import MessageId, OpenTurn, SessionId
from edge_api.errors import UpstreamError

AWAY = UpstreamError("UNAVAILABLE")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def feed(*, begun: bool = True, ours: bool = True, readers: int = 1) -> TurnFeed:
    turn = OpenTurn(
        SessionId("s"),
        MessageId("m"),
        MessageId("q"),
        created=False,
        caller=Caller("u", "default"),
        deadline_at=datetime.now(UTC),
    )
    found = TurnFeed(turn, ours=ours, readers_changed=lambda _: None)
    found.readers = readers
    if begun:
        found.append(Started(1, TurnId("m")))
    return found


def pauses(
    error: UpstreamError, of: TurnFeed, *, asking: bool = False, asked: bool = True, most: int = 1_000
) -> tuple[list[float], float]:
    """Fail again and again. Returns the pauses and how long it took to give up; all within one row of failures."""
    clock = Clock()
    patience = Patience(asked=asked, clock=clock)
    found: list[float] = []
    try:
        while len(found) < most:
            found.append(patience.pause_s(error, of, asking=asking))
            clock.now_s += found[-1]
    except UpstreamError:
        pass
    return found, clock.now_s - 100


def test_a_question_is_asked_again_at_once_and_not_often() -> None:
    assert pauses(AWAY, feed(begun=False), asking=True)[0] == list(ASK_PAUSES_S)


@pytest.mark.parametrize("reason", ["", "DRAINING"])
def test_a_reader_waits_some_seconds_for_an_agent_that_is_away(reason: str) -> None:
    found, took_s = pauses(UpstreamError("UNAVAILABLE", reason), feed())

    assert found[0] < 0.1
    assert max(found) == LONGEST_PAUSE_S
    assert READ_PATIENCE_S < took_s <= READ_PATIENCE_S + LONGEST_PAUSE_S + 0.1


def test_what_nobody_reads_is_waited_for_longer() -> None:
    assert pauses(AWAY, feed(readers=0))[1] > ALONE_PATIENCE_S


def test_a_log_that_cannot_be_reached_says_nothing_of_the_turn() -> None:
    assert len(pauses(UpstreamError("UNAVAILABLE", "TURN_LOG_UNAVAILABLE"), feed(), most=200)[0]) == 200


def test_who_only_reads_along_is_told_that_a_log_cannot_be_reached() -> None:
    away = UpstreamError("UNAVAILABLE", "TURN_LOG_UNAVAILABLE")

    assert READ_PATIENCE_S < pauses(away, feed(ours=False), asked=False)[1] < READ_PATIENCE_S + 2


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError("UNAVAILABLE", "MODEL_UNAVAILABLE"),
        UpstreamError("UNAVAILABLE", "TURN_LOST"),
        UpstreamError("DEADLINE_EXCEEDED"),
        UpstreamError("INTERNAL"),
        UpstreamError("UNAUTHENTICATED", "UNAUTHENTICATED"),
        UpstreamError("RESOURCE_EXHAUSTED"),
    ],
)
@pytest.mark.parametrize("asking", [True, False])
def test_what_a_turn_has_failed_with_is_final(error: UpstreamError, asking: bool) -> None:
    with pytest.raises(UpstreamError) as raised:
        Patience(asked=True).pause_s(error, feed(), asking=asking)

    assert raised.value is error


def test_our_turn_that_the_agent_does_not_know_is_lost() -> None:
    unknown = UpstreamError("NOT_FOUND", "UNKNOWN_TURN")

    with pytest.raises(UpstreamError) as raised:
        Patience(asked=True).pause_s(unknown, feed(), asking=False)

    assert (raised.value.code, raised.value.reason) == ("UNAVAILABLE", "TURN_LOST")


def test_a_turn_of_another_edge_may_be_on_its_way_to_the_agent() -> None:
    found, took_s = pauses(UpstreamError("NOT_FOUND", "UNKNOWN_TURN"), feed(begun=False, ours=False), asked=False)

    assert len(found) > 3
    assert took_s < READ_PATIENCE_S + 2


def test_an_agent_that_knows_no_resuming_ends_with_what_broke_the_call() -> None:
    patience = Patience(asked=True)
    patience.pause_s(AWAY, feed(), asking=True)

    with pytest.raises(UpstreamError) as raised:
        patience.pause_s(UpstreamError("UNIMPLEMENTED"), feed(), asking=False)

    assert raised.value is AWAY


def test_an_agent_that_knows_no_resuming_has_lost_what_was_left() -> None:
    with pytest.raises(UpstreamError) as raised:
        Patience(asked=True).pause_s(UpstreamError("UNIMPLEMENTED"), feed(), asking=False)

    assert raised.value.reason == "TURN_LOST"


def test_who_has_just_come_waits_as_long_as_everybody() -> None:
    clock = Clock()
    of, patience = feed(readers=0), Patience(asked=True, clock=clock)
    for _ in range(8):
        patience.pause_s(AWAY, of, asking=False)
        clock.now_s += 1
    of.readers, of.read_since_s = 1, clock.now_s

    for _ in range(int(READ_PATIENCE_S)):
        patience.pause_s(AWAY, of, asking=False)
        clock.now_s += 1


@pytest.mark.parametrize("between", ["events", "silence"])
def test_failures_far_apart_are_not_of_one_row(between: str) -> None:
    clock = Clock()
    patience = Patience(asked=True, clock=clock)
    for _ in range(20):
        patience.pause_s(AWAY, feed(), asking=False)
        if between == "events":
            patience.reset()
            clock.now_s += 1
        else:
            clock.now_s += APART_S + 0.1
