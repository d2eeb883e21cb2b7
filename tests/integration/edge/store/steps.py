"""What the tests of the store do again and again: ask, answer, look into the tables."""

import asyncio
import os
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from edge_api.agent_client.events import AgentSelected, Completed, JsonObject, TokenAdded, TurnId
from edge_api.agent_client.signing import Caller
from edge_api.auth.schemas import Principal
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import (
    Again,
    AskedBefore,
    AskedNow,
    Draft,
    EndedTurn,
    NewMessage,
    OpenTurn,
    RequestKey,
    SessionId,
)
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Database, database_url
from edge_api.migrations import schema
from tests.integration.edge.conftest import principal

TTL_S = 1_000.0

TURN_TIMEOUT_S = 100.0

ADA = principal("ada")

BOB = principal("bob")

RULES = TurnRules(session_ttl_s=TTL_S, turn_timeout_s=TURN_TIMEOUT_S)


class StillClock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        """Let time pass at once."""
        self.now += timedelta(seconds=seconds)


def database_at(url: str, **options: Any) -> Database:
    return Database(database_url(url, Path("unused")), **options)


async def migrate(url: str) -> None:
    database = database_at(url)
    try:
        await schema.upgrade(database)
    finally:
        await database.close()


def usage(total: int = 27) -> JsonObject:
    return {
        "requests": 1,
        "input_tokens": total - 7,
        "cached_input_tokens": 3,
        "output_tokens": 7,
        "total_tokens": total,
    }


def drafted(
    content: str = "answer",
    *,
    status: str = "completed",
    state: bytes = b"state",
    citations: list[JsonObject] | None = None,
) -> Draft:
    """An answer that came to its end."""
    draft = Draft(turn_id=TurnId("t-1"))
    draft.take(AgentSelected(2, "billing", "rag"))
    if content:
        draft.take(TokenAdded(3, content))
    draft.take(
        Completed(
            sequence=4,
            status="completed",
            outcome="answered",
            agent="billing",
            strategy="rag",
            citations=citations or [],
            usage=usage(),
            trace={"agent": "billing"},
            state=state,
        )
    )
    return draft


def cut(content: str = "", status: str = "failed") -> Draft:
    """An answer that did not come to its end."""
    draft = Draft(turn_id=TurnId("t-1"), status=status)
    if content:
        draft.take(TokenAdded(2, content))
    return draft


def caller_of(owner: Principal) -> Caller:
    """As the edge vouches for its user."""
    return Caller(owner.user_id, owner.tenant, owner.groups)


async def asked_now(
    conversations: ConversationService,
    message: NewMessage | Again,
    *,
    owner: Principal = ADA,
    key: RequestKey | None = None,
) -> AskedNow:
    """Open a turn that was not asked for before."""
    caller = caller_of(owner)
    if isinstance(message, Again):
        asked = await conversations.again(owner, message, caller=caller, key=key)
    else:
        asked = await conversations.open(owner, message, caller=caller, key=key)
    assert isinstance(asked, AskedNow)
    return asked


async def asked_before(
    conversations: ConversationService, message: NewMessage | Again, *, owner: Principal = ADA, key: RequestKey
) -> OpenTurn | EndedTurn:
    """The turn that the same request has opened."""
    caller = caller_of(owner)
    if isinstance(message, Again):
        asked = await conversations.again(owner, message, caller=caller, key=key)
    else:
        asked = await conversations.open(owner, message, caller=caller, key=key)
    assert isinstance(asked, AskedBefore)
    return asked.turn


async def ask(
    conversations: ConversationService,
    content: str = "question",
    *,
    session: SessionId | None = None,
    owner: Principal = ADA,
) -> OpenTurn:
    """Open a turn."""
    return (await asked_now(conversations, NewMessage(session, content), owner=owner)).turn


async def talk(
    conversations: ConversationService,
    content: str = "question",
    *,
    answer: Draft | None = None,
    session: SessionId | None = None,
    owner: Principal = ADA,
) -> OpenTurn:
    """A whole turn, asked and answered."""
    turn = await ask(conversations, content, session=session, owner=owner)
    assert await conversations.close(turn, answer or drafted()) == "stored"
    return turn


async def talk_again(
    conversations: ConversationService, session: SessionId, content: str | None = None, *, answer: Draft | None = None
) -> OpenTurn:
    """The last question again, or an edited one, asked and answered."""
    turn = (await asked_now(conversations, Again(session, content))).turn
    assert await conversations.close(turn, answer or drafted()) == "stored"
    return turn


async def contents(library: SessionLibrary, session: SessionId) -> list[str]:
    """What a reader sees of a session."""
    page = await library.messages(ADA, session, cursor=None, limit=200, newest_first=False)
    return [each.row.content for each in page.items]


async def rows(database: Database, table: str) -> list[Mapping[str, Any]]:
    """A table as it is stored."""
    async with database.unit_of_work() as unit:
        return [dict(row) for row in (await unit.execute(text(f"SELECT * FROM {table}"))).mappings()]


async def until_waiting(database: Database) -> None:
    """Until a statement waits for a lock. On SQLite every unit of work waits for the one before it, from its begin."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while not database.is_sqlite:
        async with database.unit_of_work() as unit:
            if (await unit.execute(text(waiting))).scalar_one():
                return


async def together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """All at once: what each returned or raised."""
    return list(await asyncio.gather(*works, return_exceptions=True))


def kinds(results: list[Any]) -> dict[str, int]:
    """How many results, and how many errors of which class."""
    names = [type(each).__name__ if isinstance(each, BaseException) else "ok" for each in results]
    return {name: names.count(name) for name in names}


def environment(url: str, **settings: str) -> dict[str, str]:
    """For a child process."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("EDGE_", "AGENT_"))}
    return kept | {"EDGE_DATABASE_URL": url} | settings
