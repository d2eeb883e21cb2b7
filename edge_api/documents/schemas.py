"""Replies of the document endpoints."""

from pydantic import BaseModel, ConfigDict, Field

from edge_api.agent_client.schemas import Passage


class Document(BaseModel):
    """A document, whole. Spans of citations and passages count in `text`."""

    model_config = ConfigDict(extra="forbid")

    id: str
    version: str
    title: str
    uri: str
    collection: str
    characters: int = Field(description="Length of `text` in Unicode code points.")
    passages: int
    ingested_at: str | None = Field(description="When this version was stored; RFC 3339, UTC.")
    text: str


class SearchReply(BaseModel):
    """Passages for a question, without generation."""

    model_config = ConfigDict(extra="forbid")

    passages: list[Passage] = Field(description="Best first; may be empty.")
    support: float = Field(description="Share of the question's rare words that the best passage holds; 0 to 1.")
    duration_ms: float
