"""A turn from the edge's side: opened, followed, and closed with what came, however it ends."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from edge_api.agent_client.answer import Answer
from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.events import Completed, Started, TurnEvent
from edge_api.conversations.schemas import Draft, NewMessage, OpenTurn
from edge_api.conversations.service import ConversationService
from edge_api.errors import ClientLeftError


class Turn:
    """A message that is being answered."""

    def __init__(self, opened: OpenTurn, answer: Answer, conversations: ConversationService) -> None:
        self.opened = opened
        self.answer = answer
        self.draft = Draft()
        self._conversations = conversations
        self._closed = False

    async def start(self) -> Started:
        """Wait until the agent service has begun.

        Raises:
            EdgeError: it has not; the message is withdrawn, and its sender may send it again.
        """
        started = await self.answer.start()
        self.draft.turn_id = started.turn_id
        await self._conversations.name(self.opened, started.turn_id)
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
        """Store the answer as far as it came, once. A turn that never began is withdrawn."""
        if self._closed:
            return
        self._closed = True
        self.draft.status = status or self.draft.status
        if self.draft.turn_id is None:
            await self._conversations.withdraw(self.opened)
        else:
            await self._conversations.close(self.opened, self.draft)


@asynccontextmanager
async def turn_for(
    message: NewMessage, *, agent: AgentClient, conversations: ConversationService
) -> AsyncIterator[Turn]:
    """Store the message and ask the agent. Leaving the block ends the call and closes the turn.

    Raises:
        EdgeError: the session cannot take the message.
    """
    opened, question = await conversations.open(message)
    async with agent.answer(question) as answer:
        turn = Turn(opened, answer, conversations)
        try:
            yield turn
        finally:
            await turn.close()
