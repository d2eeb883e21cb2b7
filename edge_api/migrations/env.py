"""What Alembic runs: the migrations over the connection that `migrations.schema` hands in."""

from typing import Any, Literal

from alembic import context
from sqlalchemy.types import TypeDecorator

import edge_api.auth.models
import edge_api.conversations.models  # noqa: F401 - imported for the tables that they add to the metadata
from edge_api.db import Base


def _as_stored(kind: str, obj: Any, _context: object) -> str | Literal[False]:
    """How a column's type is written into a migration: as what the database stores, since our own types may change."""
    return f"sa.{obj.impl_instance!r}" if kind == "type" and isinstance(obj, TypeDecorator) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter most of a table in place: Alembic copies it.
    render_as_batch=True,
    render_item=_as_stored,
    transactional_ddl=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
