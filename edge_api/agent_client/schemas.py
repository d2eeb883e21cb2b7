"""The JSON that the agent service's words become for a browser, documented for OpenAPI.

`convert.py` makes these objects as plain dictionaries: a stream has no time to validate what our own service sent.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Strategy: TypeAlias = Literal["rag", "cag", "hybrid"]


class Span(BaseModel):
    """A half-open range of a text, in Unicode code points."""

    model_config = ConfigDict(extra="forbid")

    start: int
    end: int


class Passage(BaseModel):
    """A numbered piece of a document: a search hit, or a source offered to the model."""

    model_config = ConfigDict(extra="forbid")

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

    model_config = ConfigDict(extra="forbid")

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

    model_config = ConfigDict(extra="forbid")

    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    total_tokens: int


class Stage(BaseModel):
    """One stage of a turn."""

    model_config = ConfigDict(extra="forbid")

    name: str
    agent: str
    duration_ms: float
    tokens: int


class Trace(BaseModel):
    """How an answer came about."""

    model_config = ConfigDict(extra="forbid")

    agent: str
    strategy: Strategy | None
    reason: str
    considered: list[Passage]
    used: list[int]
    cache_hit: bool
    stages: list[Stage]
    dropped_markers: int
    agents: list[str]
    support: float


class Agent(BaseModel):
    """A member of the team."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str
    strategy: Strategy | None
    model: str
    collections: list[str]
    entry: bool = Field(description="Whether questions go to it where no agent is named.")
