"""Bodies of the document endpoints."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge_api.agent_client.schemas import Passage


class DocumentInfo(BaseModel):
    """What is known of a document, without its text."""

    model_config = ConfigDict(extra="forbid")

    id: str
    version: str
    title: str
    uri: str
    collection: str
    characters: int = Field(description="Length of the text in Unicode code points.")
    passages: int
    ingested_at: str | None = Field(description="When this version was stored; RFC 3339, UTC.")


class Document(DocumentInfo):
    """A document, whole. Spans of citations and passages count in `text`."""

    text: str


class DocumentList(BaseModel):
    """A page of documents, ordered by id."""

    model_config = ConfigDict(extra="forbid")

    documents: list[DocumentInfo]
    next_cursor: str | None = Field(description="Asks for the next page; null: this was the last.")


class Upload(BaseModel):
    """A document to store in the caller's tenant."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"uri": "handbook/leave.md", "collection": "policy", "text": "# Leave\n\n30 days a year."}]
        },
    )

    uri: str = Field(
        min_length=1,
        max_length=1_024,
        description="Where it came from. With the collection it names the document: the same again is a new version.",
    )
    collection: str = Field(pattern=r"^[a-z0-9_-]{1,64}$")
    title: str = Field(default="", max_length=300, description="Default: the first heading, else the file's name.")
    text: str = Field(min_length=1, max_length=2_097_152, description="Markdown or plain text; at most 2 MiB.")
    groups: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]] = Field(
        default=[], max_length=32, description="Only their members may read it. Default: the whole tenant."
    )


class Uploaded(DocumentInfo):
    """What became of a document. It is durable and searchable as a whole."""

    status: Literal["created", "replaced", "unchanged"]


class SearchReply(BaseModel):
    """Passages for a question, without generation."""

    model_config = ConfigDict(extra="forbid")

    passages: list[Passage] = Field(description="Best first; may be empty.")
    support: float = Field(description="Share of the question's rare words that the best passage holds; 0 to 1.")
    duration_ms: float
