"""Conversations for routers."""

from typing import Annotated

from fastapi import Depends, Request

from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.service import ConversationService


async def get_conversations(request: Request) -> ConversationService:
    """The service that the lifespan made."""
    service: ConversationService = request.app.state.conversations
    return service


async def get_library(request: Request) -> SessionLibrary:
    """The library that the lifespan made."""
    library: SessionLibrary = request.app.state.library
    return library


Conversations = Annotated[ConversationService, Depends(get_conversations)]
Library = Annotated[SessionLibrary, Depends(get_library)]
