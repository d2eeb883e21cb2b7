"""Documents for people who check a citation, and search without generation."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.exceptions import RequestValidationError

from edge_api.agent_client.dependencies import Agent
from edge_api.documents.schemas import Document, SearchReply
from edge_api.problem import problem_responses

router = APIRouter(tags=["documents"])

READING = problem_responses(404, 409, 422, 502, 503, 504)

Collection = Annotated[str, Query(min_length=1, max_length=64)]


@router.get("/api/search", summary="Search passages", response_model=SearchReply, responses=READING)
async def search(
    agent: Agent,
    q: Annotated[str, Query(min_length=1, max_length=8_000, description="The question.")],
    collection: Annotated[
        list[Collection] | None, Query(max_length=16, description="Search only these. Default: all.")
    ] = None,
    top_k: Annotated[int, Query(ge=1, le=50, description="Most passages to return.")] = 8,
) -> Any:
    """Retrieval without generation: the passages an answer to `q` would be made from, best first."""
    if not q.strip():
        raise RequestValidationError([{"type": "blank", "loc": ("query", "q"), "msg": "must not be only white space"}])
    return await agent.search(q, collections=collection or (), top_k=top_k)


@router.get("/api/documents/{document_id}", summary="Read a document", response_model=Document, responses=READING)
async def get_document(
    agent: Agent,
    document_id: Annotated[str, Path(min_length=1, max_length=128)],
    version: Annotated[str, Query(max_length=128, description="Default: the current version.")] = "",
) -> Any:
    """Title, text and URI of a document, for showing a citation's `source_span`. Another version is current: 404."""
    return await agent.document(document_id, version)
