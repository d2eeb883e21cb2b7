"""Lists of sessions and messages page by page, and what is found in them."""

import base64

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_api.conversations.library import Page, SessionLibrary
from edge_api.conversations.schemas import SessionId, SessionInfo
from edge_api.conversations.service import ConversationService
from edge_api.errors import InvalidCursorError
from tests.integration.edge.store.steps import ADA, BOB, StillClock, drafted, talk


async def all_pages(library: SessionLibrary, *, limit: int = 10, query: str = "") -> list[list[SessionInfo]]:
    """Every page, by the cursors."""
    pages: list[list[SessionInfo]] = []
    cursor = None
    while True:
        page = await library.page(ADA, query=query, cursor=cursor, limit=limit)
        pages.append(list(page.items))
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def found(library: SessionLibrary, query: str) -> set[SessionId]:
    return {each.id for each in (await library.page(ADA, query=query, cursor=None, limit=100)).items}


async def test_sessions_of_one_moment_are_paged_without_loss_or_repetition(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    made = {(await talk(conversations)).session_id for _ in range(57)}

    pages = await all_pages(library)

    assert [len(page) for page in pages] == [10, 10, 10, 10, 10, 7]
    listed = [each.id for page in pages for each in page]
    assert set(listed) == made
    assert len(listed) == 57
    assert listed == sorted(listed, reverse=True)


async def test_sessions_are_listed_the_most_recently_active_first(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    made = []
    for _ in range(25):
        clock.pass_s(0.000_001)
        made.append((await talk(conversations)).session_id)
    clock.pass_s(1)
    await talk(conversations, session=made[3])

    listed = [each.id for page in await all_pages(library, limit=4) for each in page]

    assert listed == [made[3], *(each for each in reversed(made) if each != made[3])]


async def test_a_last_page_that_is_full_has_no_next(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    for _ in range(20):
        await talk(conversations)

    assert [len(page) for page in await all_pages(library)] == [10, 10]


async def test_sessions_begun_while_somebody_pages_move_nothing(
    conversations: ConversationService, library: SessionLibrary, clock: StillClock
) -> None:
    old = {(await talk(conversations)).session_id for _ in range(30)}
    listed: list[SessionId] = []
    cursor = None
    while True:
        page = await library.page(ADA, query="", cursor=cursor, limit=7)
        listed += [each.id for each in page.items]
        clock.pass_s(1)
        await talk(conversations)
        await talk(conversations, owner=BOB)
        cursor = page.next_cursor
        if cursor is None:
            break

    assert set(listed) == old
    assert len(listed) == 30


async def test_a_deleted_session_is_a_place_in_the_list_all_the_same(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    for _ in range(12):
        await talk(conversations)
    first = await library.page(ADA, query="", cursor=None, limit=6)
    await library.delete(ADA, first.items[-1].id)

    second = await library.page(ADA, query="", cursor=first.next_cursor, limit=6)

    assert len({each.id for each in (*first.items, *second.items)}) == 12


@pytest.mark.parametrize("newest_first", [False, True])
async def test_messages_are_paged_in_both_orders(
    conversations: ConversationService, library: SessionLibrary, newest_first: bool
) -> None:
    session = (await talk(conversations, "q0", answer=drafted("a0"))).session_id
    for number in range(1, 6):
        await talk(conversations, f"q{number}", answer=drafted(f"a{number}"), session=session)
    listed: list[list[str]] = []
    cursor = None
    while not listed or cursor is not None:
        part = await library.messages(ADA, session, cursor=cursor, limit=5, newest_first=newest_first)
        listed.append([each.row.content for each in part.items])
        cursor = part.next_cursor

    expected = [f"{kind}{number}" for number in range(6) for kind in "qa"]
    assert [each for page in listed for each in page] == (expected[::-1] if newest_first else expected)
    assert [len(each) for each in listed] == [5, 5, 2]


async def test_search_looks_into_titles_and_messages_in_any_case(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    one = (await talk(conversations, "Großer Ärger mit ÉLAN", answer=drafted("Grüße aus Ελλάδα"))).session_id
    two = (await talk(conversations, "nothing")).session_id
    await library.rename(ADA, two, "ЖЁЛТЫЙ Title")

    for query in ("ÄRGER", "ärger", "élan", "ΕΛΛΆΔΑ", "GRÜ"):
        assert await found(library, query) == {one}, query
    for query in ("жёлтый", "tITLE", "NOTH"):
        assert await found(library, query) == {two}, query
    assert await found(library, "answerdesk") == set()


@pytest.mark.parametrize("sign", ["%", "_", "\\", "%%", "\\%", "\\\\", "'", '"', "[a-z]", "*", "?"])
async def test_signs_of_patterns_are_looked_for_as_they_are(
    conversations: ConversationService, library: SessionLibrary, sign: str
) -> None:
    holding = (await talk(conversations, f"before{sign}after")).session_id
    await talk(conversations, "before-x-after")
    await talk(conversations, "beforeafter")

    assert await found(library, sign) == {holding}
    assert await found(library, f"e{sign}A") == {holding}


async def test_search_finds_only_ones_own_and_is_paged(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    mine = {(await talk(conversations, f"needle {n}")).session_id for n in range(11)}
    await talk(conversations, "hay")
    await talk(conversations, "needle", owner=BOB)

    pages = await all_pages(library, limit=5, query="needle")

    assert [len(page) for page in pages] == [5, 5, 1]
    assert {each.id for page in pages for each in page} == mine


def packed(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


MOMENTS = st.one_of(
    st.datetimes().map(lambda each: f"{each.isoformat()}+00:00"),
    st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2030-01-01", "2030-W01-1", ""]),
)
CURSORS = st.one_of(
    st.text(),
    st.text().map(packed),
    st.binary().map(lambda each: base64.urlsafe_b64encode(each).decode()),
    st.tuples(MOMENTS, st.text()).map(lambda each: packed(f"{each[0]} {each[1]}")),
    st.integers(-5, 10**30).map(lambda each: packed(f"m{each}")),
)


@given(CURSORS)
@example(packed("2030-01-01T00:00:00+00:00 \x00"))
@example(packed("m٣"))
@example("é=")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_cursor_that_no_page_gave_is_refused_or_a_place_like_any_other(
    conversations: ConversationService, library: SessionLibrary, cursor: str
) -> None:
    mine = await library.page(ADA, query="", cursor=None, limit=1)
    session = mine.items[0].id if mine.items else (await talk(conversations)).session_id
    for read in (
        library.page(ADA, query="", cursor=cursor, limit=5),
        library.messages(ADA, session, cursor=cursor, limit=5, newest_first=True),
    ):
        try:
            assert isinstance(await read, Page)
        except InvalidCursorError:
            continue


async def test_a_cursor_of_one_list_is_none_of_another(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    session = (await talk(conversations)).session_id
    await talk(conversations)
    sessions = await library.page(ADA, query="", cursor=None, limit=1)
    messages = await library.messages(ADA, session, cursor=None, limit=1, newest_first=False)

    with pytest.raises(InvalidCursorError):
        await library.page(ADA, query="", cursor=messages.next_cursor, limit=1)
    with pytest.raises(InvalidCursorError):
        await library.messages(ADA, session, cursor=sessions.next_cursor, limit=1, newest_first=False)
