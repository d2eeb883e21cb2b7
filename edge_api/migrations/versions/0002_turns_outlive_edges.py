"""Alternatives in a message's place, idempotency keys, and what another edge must know to store an answer."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply."""
    # Plain ALTER TABLE and no batches: SQLite would copy the table and drop the old one, and that takes along what
    # refers to its rows. Its new columns need a value for the rows that are there.
    op.add_column("messages", sa.Column("place", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("messages", sa.Column("active", sa.Boolean(), nullable=False, server_default=sa.true()))
    # Until now an answer was always stored right after its question.
    op.execute("UPDATE messages SET place = position")
    op.create_index(
        "ix_messages_session_id_place_inactive",
        "messages",
        ["session_id", "place"],
        sqlite_where=sa.text("NOT active"),
        postgresql_where=sa.text("NOT active"),
    )
    op.create_index(
        "uq_messages_session_id_place_active",
        "messages",
        ["session_id", "place"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )

    op.add_column("turns", sa.Column("number", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("turns", sa.Column("replaced_id", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("created", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("turns", sa.Column("edge_id", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("caller", sa.JSON(), nullable=True))
    op.add_column("turns", sa.Column("last_sequence", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("turns", sa.Column("failure_code", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("failure_reason", sa.Text(), nullable=True))
    op.execute(
        "UPDATE turns SET number = ordered.number FROM ("
        "SELECT turns.id, row_number() OVER ("
        "PARTITION BY turns.session_id ORDER BY messages.position, turns.created_at, turns.id"
        ") AS number FROM turns LEFT JOIN messages ON messages.id = turns.question_id"
        ") AS ordered WHERE ordered.id = turns.id"
    )
    op.create_index("uq_turns_session_id_number", "turns", ["session_id", "number"], unique=True)
    op.drop_index("ix_turns_session_id_created_at", "turns")

    op.create_table(
        "edges",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_edges"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("failed_turn_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name="fk_idempotency_keys_turn_id_turns", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "user_id", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_turn_id", "idempotency_keys", ["turn_id"])
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    """Take back. Alternatives become messages like any other."""
    op.drop_table("idempotency_keys")
    op.drop_table("edges")
    op.create_index("ix_turns_session_id_created_at", "turns", ["session_id", "created_at"])
    op.drop_index("uq_turns_session_id_number", "turns")
    op.drop_index("uq_messages_session_id_place_active", "messages")
    op.drop_index("ix_messages_session_id_place_inactive", "messages")
    for column in (
        "failure_reason",
        "failure_code",
        "last_sequence",
        "caller",
        "edge_id",
        "created",
        "replaced_id",
        "number",
    ):
        op.drop_column("turns", column)
    for column in ("active", "place"):
        op.drop_column("messages", column)
