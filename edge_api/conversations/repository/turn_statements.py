"""The statements that every question needs, made once: building one costs more than running it.

They speak of tables, not of mapped classes: what the ORM does around each costs as much again.
"""

from sqlalchemy import ColumnElement, bindparam, case, func, insert, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from edge_api.conversations.models import Session, Turn
from edge_api.conversations.repository.sessions import USAGE_COLUMNS
from edge_api.db import PlainText, UtcDateTime

NOW = bindparam("now", type_=UtcDateTime)

_turns = Turn.metadata.tables[Turn.__tablename__]
_sessions = Session.metadata.tables[Session.__tablename__]


def ending(condition: ColumnElement[bool]) -> ReturningUpdate[str]:
    """Ends a turn, where the condition holds."""
    return (
        update(_turns)
        .where(_turns.c.id == bindparam("turn"), condition)
        .values(
            status=bindparam("new_status"),
            state=bindparam("new_state"),
            agent_turn_id=func.coalesce(_turns.c.agent_turn_id, bindparam("named", type_=PlainText)),
            ended_at=bindparam("now"),
            last_sequence=bindparam("new_last_sequence"),
            failure_code=bindparam("new_failure_code"),
            failure_reason=bindparam("new_failure_reason"),
        )
        .returning(_turns.c.id)
    )


RUNNING_OF_USER = (
    select(func.count())
    .select_from(_turns)
    .where(_turns.c.user_id == bindparam("user"), _turns.c.status == "running", _turns.c.deadline_at > NOW)
)
OPEN = insert(_turns)
OPEN_NEXT = OPEN.values(
    number=select(func.coalesce(func.max(_turns.c.number), 0) + 1)
    .where(_turns.c.session_id == bindparam("of_session", type_=PlainText))
    .scalar_subquery()
)
END_RUNNING = ending(_turns.c.status == "running")
GROW = (
    update(_sessions)
    .where(_sessions.c.id == bindparam("session"))
    .values(
        turns=_sessions.c.turns + bindparam("more_turns"),
        # The clocks of two edges differ: activity never goes back.
        last_active_at=case((_sessions.c.last_active_at > NOW, _sessions.c.last_active_at), else_=NOW),
        **{column: _sessions.c[column] + bindparam(f"more_{column}") for column in USAGE_COLUMNS},
    )
)
"""A session after an answer."""
