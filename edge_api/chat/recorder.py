"""Stores ended turns: whatever becomes of the request that waits for it, and while the database is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge_api.conversations.schemas import Closed, Draft, MessageId, OpenTurn
from edge_api.conversations.service import ConversationService
from edge_api.errors import StorageUnavailableError

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long the person waits for the database before they are told that it is away."""

KEEP_TRYING_S = 60.0
PAUSES_S = (0.1, 0.3, 1.0, 2.0)
"""Between tries; the last one again and again."""


class Recorder:
    """Writes turns down. A write that was begun outlives the one who waits for it."""

    def __init__(self, conversations: ConversationService, *, patience_s: float = PATIENCE_S) -> None:
        self._conversations = conversations
        self._patience_s = patience_s
        self._writing: dict[asyncio.Task[Closed], MessageId] = {}

    async def store(self, turn: OpenTurn, answer: Draft) -> Closed:
        """Store an answer as far as it came. Returns what became of it: only one of all edges has stored it.

        Raises:
            StorageUnavailableError: the database is away. It is tried for another while.
        """
        return await self._begun(turn, lambda: self._conversations.close(turn, answer))

    async def withdraw(self, turn: OpenTurn) -> None:
        """Forget the message of a turn that never began: its sender was told so and will send it again.

        Raises:
            StorageUnavailableError: the database is away. It is tried for another while.
        """

        async def withdrawn() -> Closed:
            await self._conversations.withdraw(turn)
            return "gone"

        await self._begun(turn, withdrawn)

    def is_storing(self, message_id: MessageId) -> bool:
        """Whether this turn is being written."""
        return message_id in self._writing.values()

    async def close(self, timeout_s: float) -> None:
        """Wait for the writes that are under way."""
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=timeout_s)
            if late:
                log.error("answers were not stored before the end", extra={"answers": len(late)})
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=timeout_s)

    async def _begun(self, turn: OpenTurn, write: Callable[[], Awaitable[Closed]]) -> Closed:
        task = asyncio.create_task(self._written_in_time(turn, write))
        self._writing[task] = turn.message_id
        task.add_done_callback(self._written)
        # Unlike a timeout, this leaves the task alone when the one who waits is cancelled.
        done, _ = await asyncio.wait({task}, timeout=self._patience_s)
        if not done:
            raise StorageUnavailableError("the answer is not stored yet: the database does not answer")
        return task.result()

    async def _written_in_time(self, turn: OpenTurn, write: Callable[[], Awaitable[Closed]]) -> Closed:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + KEEP_TRYING_S
        pauses = iter(PAUSES_S)
        pause_s = PAUSES_S[0]
        while True:
            try:
                return await write()
            except StorageUnavailableError:
                pause_s = next(pauses, pause_s)
                if loop.time() + pause_s > end_s:
                    # Left to recovery: an edge adopts what still runs, and gives up what nobody can be making.
                    log.exception("a turn was not stored", extra={"message_id": turn.message_id})
                    raise
                await asyncio.sleep(pause_s)
            except Exception:
                # Whoever waited may have left.
                log.exception("a turn was not stored", extra={"message_id": turn.message_id})
                raise

    def _written(self, task: asyncio.Task[Closed]) -> None:
        self._writing.pop(task, None)
        if not task.cancelled():
            # Else asyncio complains about a failure that nobody waited for; it is in the log.
            task.exception()
