"""The statements that every question needs, made once: building one costs more than running it."""

from sqlalchemy import ColumnElement, bindparam, case, func, insert, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from edge_api.conversations.models import Session, Turn
from edge_api.conversations.repository.sessions import USAGE_COLUMNS
from edge_api.db import PlainText, UtcDateTime


def ending(condition: ColumnElement[bool]) -> ReturningUpdate[str]:
    """Ends a turn, where the condition holds."""
    return (
        update(Turn)
        .where(Turn.id == bindparam("turn"), condition)
        .values(
            status=bindparam("new_status"),
            state=bindparam("new_state"),
            agent_turn_id=func.coalesce(Turn.agent_turn_id, bindparam("named", type_=PlainText)),
            ended_at=bindparam("now"),
            last_sequence=bindparam("new_last_sequence"),
            failure_code=bindparam("new_failure_code"),
            failure_reason=bindparam("new_failure_reason"),
        )
        .returning(Turn.id)
        .execution_options(synchronize_session=False)
    )


NOW = bindparam("now", type_=UtcDateTime)
RUNNING_OF_USER = select(func.count()).where(
    Turn.user_id == bindparam("user"), Turn.status == "running", Turn.deadline_at > NOW
)
OPEN = insert(Turn.metadata.tables[Turn.__tablename__])
OPEN_NEXT = OPEN.values(
    number=select(func.coalesce(func.max(Turn.number), 0) + 1)
    .where(Turn.session_id == bindparam("of_session", type_=PlainText))
    .scalar_subquery()
)
END_RUNNING = ending(Turn.status == "running")
GROW = (
    update(Session)
    .where(Session.id == bindparam("session"))
    .values(
        turns=Session.turns + bindparam("more_turns"),
        # The clocks of two edges differ: activity never goes back.
        last_active_at=case((Session.last_active_at > NOW, Session.last_active_at), else_=NOW),
        **{column: getattr(Session, column) + bindparam(f"more_{column}") for column in USAGE_COLUMNS},
    )
    .execution_options(synchronize_session=False)
)
"""A session after an answer."""
