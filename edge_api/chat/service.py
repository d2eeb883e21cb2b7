"""A turn from the edge's side: opened, followed, and closed with what came, however it ends."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from edge_api.agent_client.answer import Answer
from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.events import Completed, Started, TurnEvent
from edge_api.agent_client.signing import Caller
from edge_api.auth.schemas import Principal
from edge_api.chat.recorder import Recorder
from edge_api.conversations.schemas import Draft, NewMessage, OpenTurn
from edge_api.conversations.service import ConversationService
from edge_api.errors import ClientLeftError, StorageUnavailableError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks whom, and where it is kept."""

    agent: AgentClient
    conversations: ConversationService
    recorder: Recorder
    owner: Principal
    caller: Caller


class Turn:
    """A message that is being answered."""

    def __init__(self, opened: OpenTurn, answer: Answer, asker: Asker) -> None:
        self.opened = opened
        self.answer = answer
        self.draft = Draft()
        self._conversations = asker.conversations
        self._recorder = asker.recorder
        self._closed = False

    async def start(self) -> Started:
        """Wait until the agent service has begun.

        Raises:
            EdgeError: it has not; the message is withdrawn, and its sender may send it again.
        """
        started = await self.answer.start()
        self.draft.turn_id = started.turn_id
        try:
            await self._conversations.name(self.opened, started.turn_id)
        except StorageUnavailableError:
            # The answer is being made; its name is written with it.
            log.warning("a turn could not be named", extra={"turn_id": started.turn_id})
        return started

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        """The steps after the start. What was answered is stored before the last step or the error leaves.

        Raises:
            EdgeError: the answer ended without `Completed`.
        """
        try:
            async with aclosing(self.answer.events()) as events:
                async for event in events:
                    self.draft.take(event)
                    if isinstance(event, Completed):
                        await self.close()
                    yield event
        except ClientLeftError:
            await self.close()
            raise
        except Exception:
            await self.close("failed")
            raise

    async def close(self, status: str | None = None) -> None:
        """Store the answer as far as it came, once. A turn that never began is withdrawn.

        Raises:
            StorageUnavailableError: the database is away; the recorder goes on trying.
        """
        if self._closed:
            return
        self._closed = True
        self.draft.status = status or self.draft.status
        await self._recorder.store(self.opened, self.draft)


@asynccontextmanager
async def turn_for(message: NewMessage, asker: Asker) -> AsyncIterator[Turn]:
    """Store the message and ask the agent. Leaving the block ends the call and closes the turn.

    Raises:
        EdgeError: the session cannot take the message.
    """
    opened, question = await asker.conversations.open(asker.owner, message)
    turn: Turn | None = None
    try:
        async with asker.agent.answer(question, asker.caller) as answer:
            turn = Turn(opened, answer, asker)
            try:
                yield turn
            finally:
                await turn.close()
    finally:
        if turn is None:
            # Nobody was asked.
            await asker.recorder.store(opened, Draft())
