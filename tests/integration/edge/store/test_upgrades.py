"""Databases with conversations in them, brought up to this version's schema and back."""

from datetime import datetime, timedelta

from alembic import command
from sqlalchemy import Connection, inspect, text

from edge_api.agent_client.signing import Caller
from edge_api.conversations.leases import Leases
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.schemas import Again, SessionId
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Database
from edge_api.migrations import schema
from tests.integration.edge.store.steps import (
    ADA,
    StillClock,
    asked_now,
    database_at,
    drafted,
    rows,
    talk,
    talk_again,
)

KEPT = ("users", "sessions", "messages", "turns", "feedback")
"""Tables of the first schema."""

MOMENT = "2030-01-02 03:04:05.000000"

CONVERSATION = f"""
INSERT INTO users (id, issuer, subject, tenant, groups, scopes, guest, disabled, created_at)
VALUES ('{ADA.user_id}', '{ADA.issuer}', 'ada', 'acme', '[]', '[]', false, false, '{MOMENT}');

INSERT INTO sessions (id, user_id, title, named, created_at, last_active_at, turns, requests, input_tokens,
    cached_input_tokens, output_tokens, total_tokens)
VALUES ('s', '{ADA.user_id}', 'title', false, '{MOMENT}', '{MOMENT}', 2, 0, 0, 0, 0, 0);

INSERT INTO messages (id, session_id, position, role, content, status, agent, citations, usage, trace, details,
    created_at)
SELECT id, 's', position, role, id, 'completed', '', '[]', '{{}}', '{{}}', '{{}}', '{MOMENT}'
FROM (SELECT 'q1' AS id, 1 AS position, 'user' AS role UNION SELECT 'a1', 2, 'assistant'
    UNION SELECT 'lost', 3, 'user'
    UNION SELECT 'q2', 4, 'user' UNION SELECT 'a2', 5, 'assistant'
    UNION SELECT 'q3', 6, 'user') AS said;

INSERT INTO turns (id, session_id, user_id, question_id, status, state, created_at, deadline_at)
SELECT id, 's', '{ADA.user_id}', question_id, status, CAST('state' AS BINARY), '{MOMENT}', '{MOMENT}'
FROM (SELECT 'a3' AS id, 'q3' AS question_id, 'running' AS status UNION SELECT 'a2', 'q2', 'completed'
    UNION SELECT 'gone', 'lost', 'failed' UNION SELECT 'a1', 'q1', 'completed') AS begun;

INSERT INTO feedback (message_id, rating, comment, created_at) VALUES ('a1', 'up', 'good', '{MOMENT}')
"""
"""As the first schema holds it; the last question is being answered."""


def to_first(connection: Connection) -> None:
    """To the first schema, from below or from above."""
    way = command.downgrade if inspect(connection).has_table("users") else command.upgrade
    way(schema.configuration(connection), "0001")


def check(connection: Connection) -> None:
    command.check(schema.configuration(connection))


async def fill(database: Database) -> None:
    moment, blob = ("", "BLOB") if database.is_sqlite else ("timestamptz ", "BYTEA")
    script = CONVERSATION.replace("BINARY", blob).replace(f"'{MOMENT}'", f"{moment}'{MOMENT}'")
    async with database.unit_of_work() as unit:
        for statement in script.split(";"):
            await unit.execute(text(statement))


async def counts(database: Database) -> list[int]:
    return [len(await rows(database, table)) for table in KEPT]


async def test_a_filled_first_schema_is_brought_up_with_all_it_holds(empty_url: str) -> None:
    database = database_at(empty_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(to_first)
    await fill(database)
    before = await counts(database)

    await schema.upgrade(database)

    async with database.engine.begin() as connection:
        await connection.run_sync(check)
    assert await counts(database) == before == [1, 1, 6, 4, 1]
    said = await rows(database, "messages")
    assert all(row["place"] == row["position"] and row["active"] for row in said)
    assert {row["id"]: row["number"] for row in await rows(database, "turns")} == {"a1": 1, "gone": 2, "a2": 3, "a3": 4}
    await assert_in_use(database)
    await database.close()


async def assert_in_use(database: Database) -> None:
    """What the first schema held is read, answered and gone on with."""
    clock = StillClock()
    clock.now = datetime.fromisoformat(f"{MOMENT}+00:00") - timedelta(days=2)
    conversations = ConversationService(database, TurnRules(10 * 86_400), edge_id="new", clock=clock)
    library = SessionLibrary(database, session_ttl_s=10 * 86_400, clock=clock)
    session = SessionId("s")

    (taken,) = await Leases(database, "new", clock=clock).adopt(everything=True)
    assert (taken.message_id, taken.caller, taken.created) == ("a3", Caller(ADA.user_id, "default"), False)
    assert await conversations.close(taken, drafted("a3")) == "stored"
    again = await asked_now(conversations, Again(session))
    assert [said.content for said in again.question.history] == ["q1", "a1", "q2", "a2"]
    assert again.question.state == b"state"
    await conversations.close(again.turn, drafted("a3, again"))
    await talk(conversations, "q4", answer=drafted("a4"), session=session)

    page = await library.messages(ADA, session, cursor=None, limit=99, newest_first=False)
    shown = [each.row.content for each in page.items]
    assert shown == ["q1", "a1", "lost", "q2", "a2", "q3", "a3, again", "q4", "a4"]
    assert [each.row.content for each in page.items[6].alternatives] == ["a3"]
    assert page.items[1].verdict is not None


async def test_one_step_down_and_up_again_keeps_what_was_said(
    conversations: ConversationService, library: SessionLibrary, database: Database
) -> None:
    first = await talk(conversations, "one", answer=drafted("1"))
    await library.rate(ADA, first.message_id, "up", "good")
    await talk_again(conversations, first.session_id, answer=drafted("1, again"))
    await talk(conversations, "two", session=first.session_id)
    before = await counts(database)

    async with database.engine.begin() as connection:
        await connection.run_sync(to_first)
    down = await counts(database)
    await schema.upgrade(database)

    async with database.engine.begin() as connection:
        await connection.run_sync(check)
    assert before == down == await counts(database) == [1, 1, 5, 3, 1]
