"""Which edges are alive, and whose turns are taken over. Each method is part of one short unit of work."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from edge_api.conversations.models import Edge, Turn
from edge_api.conversations.repository.turns import open_turn
from edge_api.conversations.schemas import OpenTurn


class EdgeRepository:
    """Leases and the turns behind them, within one unit of work."""

    def __init__(self, session: AsyncSession, *, now: datetime) -> None:
        """`now`: by this edge's clock, which is the database's where that is a file."""
        self._session = session
        self._now = now

    async def renew(self, edge_id: str, *, lease: timedelta) -> None:
        """Say that this edge is alive."""
        insert = sqlite.insert if self._is_sqlite else postgresql.insert
        until = await self._database_now() + lease
        said = insert(Edge).values(id=edge_id, lease_until=until)
        await self._session.execute(said.on_conflict_do_update(index_elements=[Edge.id], set_={"lease_until": until}))

    async def release(self, edge_id: str) -> None:
        """Say that this edge is gone."""
        await self._session.execute(delete(Edge).where(Edge.id == edge_id))

    async def forget(self, *, older_than: timedelta) -> None:
        """Delete leases that ran out that long ago. Several edges may do this at once."""
        old = select(Edge.id).where(Edge.lease_until < await self._database_now() - older_than)
        found = (await self._session.execute(old.with_for_update(skip_locked=True))).scalars().all()
        if found:
            await self._session.execute(delete(Edge).where(Edge.id.in_(found)))

    async def adopt(self, edge_id: str, *, everything: bool, limit: int) -> list[OpenTurn]:
        """Take over running turns whose time is not over, the most urgent first.

        Args:
            edge_id: who takes them.
            everything: all turns, whosever they are. Else only those of edges that are gone, at most `limit`.
            limit: most turns.
        """
        wanted = select(Turn).where(*self._running()).order_by(Turn.deadline_at, Turn.id)
        if not everything:
            # By the name of an edge and not by its lease: where another has taken a turn while this statement ran, the
            # database compares again only what is in the turn's own row.
            gone = await self._gone(but=edge_id)
            named = [each for each in gone if each is not None]
            nobodys = [Turn.edge_id.is_(None)] if None in gone else []
            wanted = wanted.where(or_(Turn.edge_id.in_(named), *nobodys)).limit(limit)
        found = (await self._session.execute(wanted.with_for_update(skip_locked=True))).scalars().all()
        for turn in found:
            turn.edge_id = edge_id
        return [open_turn(turn) for turn in found]

    async def turns_of(self, edge_id: str, *, opened_before: datetime) -> list[OpenTurn]:
        """Running turns of an edge that were opened before then."""
        wanted = select(Turn).where(*self._running(), Turn.edge_id == edge_id, Turn.created_at < opened_before)
        return [open_turn(turn) for turn in (await self._session.execute(wanted)).scalars().all()]

    async def _gone(self, *, but: str) -> list[str | None]:
        """The edges of running turns that are not alive; None: turns that are no edge's."""
        wanted = (
            select(Turn.edge_id)
            .distinct()
            .outerjoin(Edge, Edge.id == Turn.edge_id)
            .where(
                *self._running(),
                or_(Turn.edge_id.is_(None), Turn.edge_id != but),
                or_(Edge.id.is_(None), Edge.lease_until <= await self._database_now()),
            )
        )
        return list((await self._session.execute(wanted)).scalars().all())

    def _running(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return Turn.status == "running", Turn.deadline_at > self._now

    @property
    def _is_sqlite(self) -> bool:
        return self._session.get_bind().dialect.name == "sqlite"

    async def _database_now(self) -> datetime:
        """One clock for all edges. A file has none of its own: its one edge's is."""
        if self._is_sqlite:
            return self._now
        # Not the transaction's beginning, which may be a wait ago.
        moment: datetime = (await self._session.execute(select(func.clock_timestamp()))).scalar_one()
        return moment
