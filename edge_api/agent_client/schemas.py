"""The JSON that the agent service's words become for a browser, documented for OpenAPI.

`convert.py` makes these objects as plain dictionaries: a stream has no time to validate what our own service sent.

What an answer brings with it is stored as it is, and read by other versions of the edge than the one that stored it. So
a field that comes later needs a default, and one that a model does not know is left out and is no error.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Strategy: TypeAlias = Literal["rag", "cag", "hybrid"]


class Span(BaseModel):
    """A half-open range of a text, in Unicode code points."""

    start: int
    end: int


class Passage(BaseModel):
    """A numbered piece of a document: a search hit, or a source offered to the model."""

    marker: int = Field(description="The number by which an answer cites it; 0 where it was not offered to a model.")
    document_id: str
    version: str
    title: str
    uri: str
    heading: str = Field(description='The headings above it, outermost first, joined by " > ".')
    span: Span
    text: str
    score: float = Field(description="Larger is better; at least 0; comparable only within one reply.")
    collection: str


class Citation(BaseModel):
    """A statement of the answer and the words of a document that support it. Spans count Unicode code points."""

    marker: int = Field(description="The number in the answer's text, as in `[1]`.")
    answer_span: Span
    document_id: str
    version: str
    title: str
    uri: str
    heading: str
    source_span: Span
    page: int | None = Field(description="From 1; null for formats without pages.")
    quote: str = Field(description="The words at `source_span`, verbatim.")
    collection: str


class Usage(BaseModel):
    """Tokens a turn used, summed over its model calls."""

    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    total_tokens: int


class Stage(BaseModel):
    """One stage of a turn."""

    name: str = Field(examples=["retrieval", "model", "tool", "citations"])
    agent: str
    duration_ms: float
    tokens: int


class Trace(BaseModel):
    """How an answer came about."""

    # What has a default here is in every reply all the same.
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    agent: str
    strategy: Strategy | None
    reason: str
    considered: list[Passage]
    used: list[int]
    cache_hit: bool
    stages: list[Stage]
    dropped_markers: int = Field(description="Markers without a matching source or quote; they carry no citation.")
    agents: list[str]
    support: float
    model: str = Field(
        default="", description="Who wrote the answer, also a fallback; empty: no model did, or it is not known."
    )
    retries: int = Field(default=0, description="Model requests that failed and were made again.")
    removed_links: int = Field(
        default=0, description="Links and images taken out because they led elsewhere than to the documents."
    )


class Agent(BaseModel):
    """A member of the team."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str
    strategy: Strategy | None
    model: str
    collections: list[str]
    entry: bool = Field(description="Whether questions go to it where no agent is named.")
