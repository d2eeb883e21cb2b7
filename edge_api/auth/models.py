"""Tables of accounts."""

from datetime import datetime

from sqlalchemy import JSON, Boolean, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from edge_api.db import Base, PlainText, UtcDateTime


class User(Base):
    """Somebody who may call: a built-in account, a guest, or an external user with at least one session.

    Groups and scopes of external users are those of their token, and not kept.
    """

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("issuer", "subject"),
        UniqueConstraint("username_key"),
        Index("ix_users_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    issuer: Mapped[str] = mapped_column(PlainText)
    subject: Mapped[str] = mapped_column(PlainText)
    tenant: Mapped[str] = mapped_column(PlainText)
    groups: Mapped[list[str]] = mapped_column(JSON, default=list)
    scopes: Mapped[list[str]] = mapped_column(JSON, default=list)
    username: Mapped[str | None] = mapped_column(PlainText)
    username_key: Mapped[str | None] = mapped_column(PlainText)
    """The name as it is compared: names that look alike are one."""
    password_hash: Mapped[str | None] = mapped_column(PlainText)
    guest: Mapped[bool] = mapped_column(Boolean, default=False)
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RefreshToken(Base):
    """One link of a chain: every use replaces it. Only its digest is kept."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        UniqueConstraint("digest"),
        Index("ix_refresh_tokens_family_id", "family_id"),
        Index("ix_refresh_tokens_user_id", "user_id"),
        Index("ix_refresh_tokens_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(PlainText, primary_key=True)
    family_id: Mapped[str] = mapped_column(PlainText)
    """The login that the chain began with."""
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
