"""Tables of conversations."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from edge_api.db import Base, PlainText, UtcDateTime

ACTIVE = text("active")
INACTIVE = text("NOT active")
EXPIRED = text("expired_at IS NOT NULL")
RUNNING = text("status = 'running'")


class Session(Base):
    """A conversation of one user. An expired one has lost its content and stays for a while to say so."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_user_id_last_active_at_id", "user_id", "last_active_at", "id"),
        Index("ix_sessions_last_active_at", "last_active_at"),
        Index("ix_sessions_expired_at", "expired_at", sqlite_where=EXPIRED, postgresql_where=EXPIRED),
    )

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(PlainText)
    named: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether its owner chose the title; a made one is forgotten with the message it was made from."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_active_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    turns: Mapped[int] = mapped_column(Integer, default=0)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    input_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cached_input_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    output_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    total_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class Message(Base):
    """What was said. An answer has the id of its turn.

    Messages in one place are alternatives: what was said first, and what came in its place. The conversation is the
    active ones; of a place at most one is: the database holds that.
    """

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("session_id", "position"),
        Index(
            "uq_messages_session_id_place_active",
            "session_id",
            "place",
            unique=True,
            sqlite_where=ACTIVE,
            postgresql_where=ACTIVE,
        ),
        Index(
            "ix_messages_session_id_place_inactive",
            "session_id",
            "place",
            sqlite_where=INACTIVE,
            postgresql_where=INACTIVE,
        ),
    )

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    """The order in which messages were stored: from 1, growing; gaps are allowed."""
    place: Mapped[int] = mapped_column(Integer)
    """The order in which they are read: from 1, growing; an answer's is its question's and one more."""
    active: Mapped[bool] = mapped_column(Boolean, default=True)
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(PlainText)
    status: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(16))
    agent: Mapped[str] = mapped_column(PlainText, default="")
    strategy: Mapped[str | None] = mapped_column(String(16))
    # JSON and not JSONB: nothing is looked up inside, and JSONB refuses \u0000.
    citations: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    usage: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    trace: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The `metadata` that a client sent with it."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Turn(Base):
    """A question and an attempt to answer it. At most one of a session runs: the database holds that."""

    __tablename__ = "turns"
    __table_args__ = (
        Index(
            "uq_turns_session_id_running",
            "session_id",
            unique=True,
            sqlite_where=RUNNING,
            postgresql_where=RUNNING,
        ),
        Index("ix_turns_user_id_status", "user_id", "status"),
        Index("ix_turns_status_deadline_at", "status", "deadline_at"),
        Index("uq_turns_session_id_number", "session_id", "number", unique=True),
    )

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    """The order of a session's turns: from 1, growing. Not by time: the clocks of two edges differ."""
    question_id: Mapped[str] = mapped_column(PlainText)
    """The user's message; several turns may answer the same."""
    replaced_id: Mapped[str | None] = mapped_column(PlainText)
    """The answer that stepped back because its question was replaced by this turn's."""
    created: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether its session began with it."""
    edge_id: Mapped[str | None] = mapped_column(PlainText)
    """The edge that stores the answer."""
    caller: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """On whose behalf the agent service is asked; null in turns from before this was kept."""
    agent_turn_id: Mapped[str | None] = mapped_column(PlainText)
    """The agent service's name of the turn, once it has begun."""
    status: Mapped[str] = mapped_column(String(16))
    state: Mapped[bytes | None] = mapped_column(LargeBinary)
    """What the answer left for the next turn."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deadline_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """After this nobody can still be making the answer."""
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_sequence: Mapped[int] = mapped_column(Integer, default=0)
    """The number of its last event that came here."""
    failure_code: Mapped[str | None] = mapped_column(PlainText)
    failure_reason: Mapped[str | None] = mapped_column(PlainText)


class Edge(Base):
    """An edge that is alive until its lease runs out, by the database's clock."""

    __tablename__ = "edges"

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    lease_until: Mapped[datetime] = mapped_column(UtcDateTime)


class IdempotencyKey(Base):
    """A client's name for its request, and the turn that the request opened. It goes where the turn goes."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        Index("ix_idempotency_keys_turn_id", "turn_id"),
        Index("ix_idempotency_keys_created_at", "created_at"),
    )

    tenant: Mapped[str] = mapped_column(PlainText, primary_key=True)
    user_id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    key: Mapped[str] = mapped_column(PlainText, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(PlainText)
    turn_id: Mapped[str] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"))
    failed_turn_id: Mapped[str | None] = mapped_column(PlainText)
    """The failed turn in whose place `turn_id` was started; the key goes back to it where that never began."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Feedback(Base):
    """What a user thinks of an answer."""

    __tablename__ = "feedback"

    message_id: Mapped[str] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    rating: Mapped[str] = mapped_column(String(8))
    comment: Mapped[str] = mapped_column(PlainText, default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
