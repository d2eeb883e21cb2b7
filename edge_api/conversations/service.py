"""Turns of a conversation: opened before the agent is asked, closed with what it answered."""

import itertools
import uuid
from collections.abc import Sequence

from edge_api.agent_client.events import Question, Said, TurnId
from edge_api.conversations.repository import ConversationRepository
from edge_api.conversations.schemas import Draft, Message, NewMessage, OpenTurn

# Bounds of ChatRequest.history in the protocol.
MAX_HISTORY_MESSAGES = 200
MAX_HISTORY_CHARACTERS = 256_000
MAX_MESSAGE_CHARACTERS = 32_000


class ConversationService:
    """What the rest of the edge does with conversations."""

    def __init__(self, repository: ConversationRepository) -> None:
        self._repository = repository

    async def open(self, message: NewMessage) -> tuple[OpenTurn, Question]:
        """Store a person's message, and make the question that the agent is asked.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionExpiredError: it was idle for too long.
            TurnRunningError: its last message is still being answered.
        """
        turn = await self._repository.open_turn(message)
        question = Question(
            request_id=str(uuid.uuid4()),
            message=message.content,
            history=history_of(turn.before),
            agent=message.agent or "",
            state=turn.state,
        )
        return turn, question

    async def name(self, turn: OpenTurn, turn_id: TurnId) -> None:
        """Write down which turn of the agent service answers."""
        await self._repository.name_turn(turn, turn_id)

    async def close(self, turn: OpenTurn, answer: Draft) -> None:
        """Store the answer as far as it came."""
        await self._repository.close_turn(turn, answer)

    async def withdraw(self, turn: OpenTurn) -> None:
        """Forget a message whose turn never began: its sender was told so and will send it again."""
        await self._repository.withdraw_turn(turn)


def history_of(messages: Sequence[Message]) -> tuple[Said, ...]:
    """The newest questions with their answers, whole pairs, within the protocol's bounds.

    A question without an answer is left out: two questions in a row would read as one.

    Args:
        messages: as stored, oldest first.

    Returns:
        Question, answer, question, answer, oldest first; may be empty.
    """
    pairs = [
        (question, answer)
        for question, answer in itertools.pairwise(messages)
        if question.role == "user" and answer.role == "assistant" and answer.content
    ]
    kept: list[Said] = []
    room = MAX_HISTORY_CHARACTERS
    for question, answer in reversed(pairs[-MAX_HISTORY_MESSAGES // 2 :]):
        said = [_said(answer), _said(question)]
        room -= sum(len(each.content) for each in said)
        if room < 0:
            break
        kept += said
    return tuple(reversed(kept))


def _said(message: Message) -> Said:
    return Said(message.role, message.content[:MAX_MESSAGE_CHARACTERS], message.agent)
