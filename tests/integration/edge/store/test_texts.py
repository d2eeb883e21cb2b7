"""Whatever people and models write can be stored, and comes back as it was written."""

import pytest

from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import MessageId, NewMessage, SessionId
from edge_api.conversations.service import ConversationService
from edge_api.errors import MessageNotFoundError, SessionNotFoundError
from tests.integration.edge.conftest import principal
from tests.integration.edge.store.steps import ADA, ask, asked_now, drafted, talk

NUL = "a\x00b"
SHOWN = "a\N{REPLACEMENT CHARACTER}b"

TEXTS = {
    "emoji": "\U0001f469\U0001f3fd\u200d\U0001f680 \U0001f1e9\U0001f1ea",
    "right to left": "\u0643\u0645 \u202e\u0627\u0644\u062e\u0637\u0629\u202c\u061f \u05e9\u05dc\u05d5\u05dd",
    "line ends": "one\r\ntwo\u2028three\x85four\ttab",
    "quotes": "'; DROP TABLE users; -- \" \\ %s :name ?",
    "noncharacters": "\ufffe\uffff\U0010ffff\x01\x7f",
    "long": "ünï" * 66_667,
}


@pytest.mark.parametrize("written", TEXTS.values(), ids=TEXTS)
async def test_a_text_comes_back_as_it_was_written(
    conversations: ConversationService, library: SessionLibrary, written: str
) -> None:
    message = NewMessage(None, written, metadata={"text": written})
    turn = (await asked_now(conversations, message)).turn
    await conversations.close(turn, drafted(written, citations=[{"quote": written}]))
    await library.rate(ADA, turn.message_id, "up", written)
    renamed = await library.rename(ADA, turn.session_id, written)

    asked, said = (await library.messages(ADA, turn.session_id, cursor=None, limit=9, newest_first=False)).items
    assert (asked.row.content, asked.row.details) == (written, {"text": written})
    assert (said.row.content, said.row.citations) == (written, [{"quote": written}])
    assert said.verdict is not None
    assert said.verdict.comment == written
    assert renamed.title == (await library.info(ADA, turn.session_id)).title == written
    found = await library.page(ADA, query=written[:200], cursor=None, limit=9)
    assert [each.id for each in found.items] == [turn.session_id]


async def test_a_nul_is_stored_as_a_replacement_character(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    turn = (await asked_now(conversations, NewMessage(None, NUL, metadata={NUL: NUL}))).turn
    await conversations.close(turn, drafted(NUL, citations=[{"quote": NUL}]))
    titled = await library.info(ADA, turn.session_id)
    await library.rate(ADA, turn.message_id, "down", NUL)
    await library.rename(ADA, turn.session_id, NUL)

    asked, said = (await library.messages(ADA, turn.session_id, cursor=None, limit=9, newest_first=False)).items
    assert (asked.row.content, said.row.content) == (SHOWN, SHOWN)
    assert said.verdict is not None
    assert said.verdict.comment == SHOWN
    # Within JSON it is escaped, and so kept.
    assert (asked.row.details, said.row.citations) == ({NUL: NUL}, [{"quote": NUL}])
    assert titled.title == (await library.info(ADA, turn.session_id)).title == SHOWN


async def test_a_nul_in_what_is_looked_for_finds_what_was_stored_with_one(
    conversations: ConversationService, library: SessionLibrary
) -> None:
    turn = await talk(conversations, NUL)
    await talk(conversations, "other")

    page = await library.page(ADA, query=NUL, cursor=None, limit=9)

    assert [each.id for each in page.items] == [turn.session_id]


@pytest.mark.parametrize("name", ["\x00", "x" * 128, "' OR 1=1 --", "é👩🏽‍🚀"])
async def test_a_strange_id_is_an_unknown_one(
    conversations: ConversationService, library: SessionLibrary, name: str
) -> None:
    with pytest.raises(SessionNotFoundError):
        await ask(conversations, session=SessionId(name))
    with pytest.raises(SessionNotFoundError):
        await library.info(ADA, SessionId(name))
    with pytest.raises(MessageNotFoundError):
        await library.rate(ADA, MessageId(name), "up", "")


async def test_a_nul_in_the_issuers_words_for_a_user_is_no_error(conversations: ConversationService) -> None:
    owner = principal("x", subject=NUL, tenant=NUL)

    turn = await talk(conversations, owner=owner)

    await talk(conversations, owner=owner, session=turn.session_id)
