"""Conversations for routers."""

from typing import Annotated

from fastapi import Depends, Request

from edge_api.conversations.service import ConversationService


def get_conversations(request: Request) -> ConversationService:
    """The service that the lifespan made."""
    service: ConversationService = request.app.state.conversations
    return service


Conversations = Annotated[ConversationService, Depends(get_conversations)]
