"""Documents: put in, listed, read for checking a citation, deleted; and search without generation."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.exceptions import RequestValidationError

from edge_api.agent_client.dependencies import Agent
from edge_api.agent_client.events import NewDocument
from edge_api.auth.dependencies import ChatRoute, CurrentCaller, DocumentsWriteRoute
from edge_api.bodies import require_json
from edge_api.documents.schemas import Document, DocumentList, SearchReply, Upload, Uploaded
from edge_api.problem import problem_responses

router = APIRouter(tags=["documents"], route_class=ChatRoute)
writing = APIRouter(tags=["documents"], route_class=DocumentsWriteRoute)

READING = problem_responses(404, 409, 422, 502, 503, 504)
WRITING = problem_responses(404, 409, 413, 415, 422, 502, 503, 504)

Collection = Annotated[str, Query(min_length=1, max_length=64)]
DocumentId = Annotated[str, Path(min_length=1, max_length=128)]

MAX_QUERY_CHARACTERS = 2_000
"""A character takes up to 12 bytes of a request line, and servers refuse long lines: ours at 64 KiB."""


@router.get("/api/search", summary="Search passages", response_model=SearchReply, responses=READING)
async def search(
    agent: Agent,
    caller: CurrentCaller,
    q: Annotated[str, Query(min_length=1, max_length=MAX_QUERY_CHARACTERS, description="The question.")],
    collection: Annotated[
        list[Collection],
        Query(default_factory=list, max_length=16, description="Search only these. Default: all."),
    ],
    top_k: Annotated[int, Query(ge=1, le=50, description="Most passages to return.")] = 8,
) -> Any:
    """Retrieval without generation: the passages an answer to `q` would be made from, best first."""
    if not q.strip():
        raise RequestValidationError([{"type": "blank", "loc": ("query", "q"), "msg": "must not be only white space"}])
    return await agent.search(q, caller, collections=collection, top_k=top_k)


@router.get("/api/documents", summary="List documents", response_model=DocumentList, responses=READING)
async def list_documents(
    agent: Agent,
    caller: CurrentCaller,
    collection: Annotated[str, Query(max_length=64, description="Only this one. Default: all.")] = "",
    cursor: Annotated[str, Query(max_length=200, description="`next_cursor` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=200, description="Most documents to return.")] = 50,
) -> Any:
    """The documents that the caller may read, without their texts."""
    return await agent.documents(caller, collection=collection, cursor=cursor, limit=limit)


@router.get("/api/documents/{document_id}", summary="Read a document", response_model=Document, responses=READING)
async def get_document(
    agent: Agent,
    caller: CurrentCaller,
    document_id: DocumentId,
    version: Annotated[str, Query(max_length=128, description="Default: the current version.")] = "",
) -> Any:
    """Title, text and URI of a document, for showing a citation's `source_span`. Another version is current: 404."""
    return await agent.document(document_id, version, caller)


@writing.post(
    "/api/documents",
    summary="Store a document",
    response_model=Uploaded,
    responses={201: {"model": Uploaded, "description": "It is new."}, **WRITING},
    dependencies=[Depends(require_json)],
)
async def upload(agent: Agent, caller: CurrentCaller, body: Upload, response: Response) -> Any:
    """Stores a document in the caller's tenant, or a new version of it. Answered when it can be found as a whole."""
    document = NewDocument(body.uri, body.collection, body.title, body.text, tuple(dict.fromkeys(body.groups)))
    done = await agent.ingest(document, caller)
    if done["status"] == "created":
        response.status_code = 201
    return done


@writing.delete("/api/documents/{document_id}", summary="Delete a document", status_code=204, responses=WRITING)
async def delete_document(agent: Agent, caller: CurrentCaller, document_id: DocumentId) -> None:
    """Deletes a document with its passages and its text."""
    await agent.delete_document(document_id, caller)
