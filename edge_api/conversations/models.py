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
    """What was said. An answer has the id of its turn."""

    __tablename__ = "messages"
    __table_args__ = (UniqueConstraint("session_id", "position"),)

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    """From 1, growing; gaps are allowed."""
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
    """A message and the making of its answer. At most one of a session runs: the database holds that."""

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
        Index("ix_turns_session_id_created_at", "session_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    question_id: Mapped[str] = mapped_column(PlainText)
    """The user's message."""
    agent_turn_id: Mapped[str | None] = mapped_column(PlainText)
    """The agent service's name of the turn, once it has begun."""
    status: Mapped[str] = mapped_column(String(16))
    state: Mapped[bytes | None] = mapped_column(LargeBinary)
    """What the answer left for the next turn."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deadline_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """After this nobody can still be making the answer."""
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Feedback(Base):
    """What a user thinks of an answer."""

    __tablename__ = "feedback"

    message_id: Mapped[str] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    rating: Mapped[str] = mapped_column(String(8))
    comment: Mapped[str] = mapped_column(PlainText, default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
