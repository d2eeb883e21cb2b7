"""One turn's events for any number of readers."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_api.agent_client.events import Started, TokenAdded, TurnId
from edge_api.agent_client.signing import Caller
from edge_api.chat.feed import MOST_FRAMES, TurnFeed
from edge_api.conversations.schemas import MessageId, OpenTurn, SessionId
from edge_api.errors import ClientLeftError, ShuttingDownError, UnknownSequenceError, UpstreamError
from tests.unit.edge.sse_parser import parse


def new_feed() -> TurnFeed:
    turn = OpenTurn(
        SessionId("s"),
        MessageId("m"),
        MessageId("q"),
        created=False,
        caller=Caller("u", "default"),
        deadline_at=datetime.now(UTC),
    )
    return TurnFeed(turn, ours=True, readers_changed=lambda _: None)


def write(feed: TurnFeed, events: int) -> None:
    for _ in range(events):
        number = feed.last_sequence + 1
        feed.append(TokenAdded(number, f"{number} ") if number > 1 else Started(1, TurnId("m")))


async def all_of(frames: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [each async for each in frames]


@given(
    steps=st.lists(st.one_of(st.integers(1, 3), st.floats(0, 1)), max_size=40),
    slow=st.integers(1, 5),
)
def test_every_reader_gets_every_event_after_its_place_once(steps: list[int | float], slow: int) -> None:
    """Steps are events that come (a number of them), or a reader that comes (how far along the log it begins)."""

    async def run() -> None:
        feed = new_feed()
        places: list[int] = []
        reading: list[asyncio.Task[list[bytes]]] = []
        for count, step in enumerate(steps):
            if isinstance(step, int):
                write(feed, step)
            else:
                places.append(int(step * feed.last_sequence))
                reading.append(asyncio.create_task(all_of(feed.reader(places[-1]).frames(instance="/"))))
            if count % slow == 0:
                await asyncio.sleep(0)
        feed.end()
        for place, task in zip(places, reading, strict=True):
            events = parse(b"".join(await task).decode())
            assert [int(event.id or 0) for event in events] == list(range(place + 1, feed.last_sequence + 1))

    asyncio.run(run())


async def test_a_late_reader_gets_a_long_log_in_pieces() -> None:
    feed = new_feed()
    write(feed, 10 * MOST_FRAMES)
    feed.end()

    assert len(await all_of(feed.reader().frames(instance="/"))) == 10


async def test_a_failure_is_the_last_frame_and_has_no_number() -> None:
    feed = new_feed()
    write(feed, 2)
    feed.end(UpstreamError("UNAVAILABLE", "MODEL_UNAVAILABLE"))

    events = parse(b"".join(await all_of(feed.reader(2).frames(instance="/"))).decode())

    assert [(event.type, event.id) for event in events] == [("error", None)]


async def test_a_feed_that_is_cut_ends_without_an_end() -> None:
    feed = new_feed()
    write(feed, 2)
    reader = feed.reader()
    frames = asyncio.create_task(all_of(reader.frames(instance="/")))
    await asyncio.sleep(0)
    feed.cut_off()

    assert len(parse(b"".join(await frames).decode())) == 2
    with pytest.raises(ShuttingDownError):
        await reader.answer()


async def test_who_leaves_is_let_go_of_everywhere() -> None:
    feed = new_feed()
    reader = feed.reader()
    waiting = [asyncio.create_task(reader.begin()), asyncio.create_task(reader.answer())]
    streaming = asyncio.create_task(all_of(reader.frames(instance="/")))
    await asyncio.sleep(0)
    reader.leave()
    reader.leave()

    assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [ClientLeftError] * 2
    assert await streaming == []
    assert feed.readers == 0


async def test_a_place_beyond_the_end_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_api.chat.feed.QUIET_S", 0.01)
    feed = new_feed()
    write(feed, 3)

    with pytest.raises(UnknownSequenceError):
        await feed.reader(4).begin()


async def test_a_place_that_is_still_to_come_is_waited_for() -> None:
    feed = new_feed()
    write(feed, 1)
    beginning = asyncio.create_task(feed.reader(3).begin())
    await asyncio.sleep(0)
    write(feed, 2)

    await beginning


async def test_what_failed_before_it_began_is_refused() -> None:
    feed = new_feed()
    feed.end(UpstreamError("UNAVAILABLE"))

    with pytest.raises(UpstreamError):
        await feed.reader().begin()
