"""Who stores an answer when the edge that asked for it is gone."""

from datetime import timedelta

from edge_api.conversations.repository.edges import EdgeRepository
from edge_api.conversations.schemas import OpenTurn
from edge_api.db import Clock, Database, utc_now

LEASE = timedelta(seconds=10)
"""How long an edge counts as alive after it said so. It says so every 3 s: two lost tries are no death."""

REMEMBERED = timedelta(hours=1)
"""How long a lease that ran out is kept, for who looks into the table."""

ADOPTED_AT_ONCE = 100

ABOUT_TO_ASK = timedelta(seconds=15)
"""So old is a turn that was opened and is not followed: longer than any unit of work takes."""


class Leases:
    """This edge among the others. Every method is one short transaction.

    Each process needs an `edge_id` of its own: a new process with the id of a dead one would never take that one's
    turns over.
    """

    def __init__(self, database: Database, edge_id: str, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._edge_id = edge_id
        self._clock = clock

    async def release(self) -> None:
        """Say that this edge is gone: others may take its turns over at once.

        Raises:
            StorageUnavailableError: as all of these methods do.
        """
        async with self._database.unit_of_work() as unit:
            await EdgeRepository(unit, now=self._clock()).release(self._edge_id)

    async def left_over(self) -> list[OpenTurn]:
        """Running turns of this edge, but for those that it may be about to ask.

        What it follows among them it knows itself. The others it could not store, or does not know that it opened.
        """
        async with self._database.unit_of_work() as unit:
            now = self._clock()
            return await EdgeRepository(unit, now=now).turns_of(self._edge_id, opened_before=now - ABOUT_TO_ASK)

    async def adopt(self, *, everything: bool = False, limit: int = ADOPTED_AT_ONCE) -> list[OpenTurn]:
        """Say that this edge is alive, and take over running turns whose edge is gone. Of several each takes others.

        The lease is good for 10 s by the database's clock. Turns whose deadline is over are left to be given up.

        Args:
            everything: all running turns, also those of edges that are alive: this is the only edge and has just
                started.
            limit: most turns, the most urgent first; `everything` has none.

        Returns:
            The turns, whose answers this edge now follows and stores.
        """
        async with self._database.unit_of_work() as unit:
            edges = EdgeRepository(unit, now=self._clock())
            await edges.renew(self._edge_id, lease=LEASE)
            await edges.forget(older_than=REMEMBERED)
            return await edges.adopt(self._edge_id, everything=everything, limit=limit)
