"""Search as a tool: the model asks its agent's documents again, in its own words."""

import functools
from collections.abc import Sequence
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, StringConstraints

from agent_service.errors import AgentServiceError
from agent_service.team.desk import TurnDesk
from agent_service.team.prompt import fence
from agent_service.team.spec import AgentSpec
from agent_service.team.tool_arguments import parsed
from agent_service.team.tool_call import ToolBody, ToolOffer, ToolRefusedError, ToolText
from agent_service.team.tool_spec import ToolSpec
from agent_service.types import CollectionName, Question, ScoredPassage

MOST_HITS = 5
MOST_QUERY_CHARACTERS = 1_000

FENCE_CHARACTERS = 64
"""About what a passage's fence adds to it."""


class FoundPassages(Protocol):
    """What a search comes to."""

    @property
    def hits(self) -> tuple[ScoredPassage, ...]:
        """Passages, best first."""
        ...


class PassageSearch(Protocol):
    """Finds passages that a question's caller may read."""

    async def search(self, question: Question, collections: Sequence[CollectionName], limit: int) -> FoundPassages:
        """Passages of these collections for the question, best first; at most `limit`.

        Raises:
            AgentServiceError: there is nothing to search in, or the store failed.
        """
        ...


class SearchArguments(BaseModel):
    """What the model gives."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_QUERY_CHARACTERS)]


OFFER = ToolOffer(
    description=(
        "Searches the documents that you answer from, with words of your own. Use it when the numbered sources do not "
        "answer the question and other words might find what does. Cite what it finds by its number."
    ),
    # Bounds of a string are no part of every provider's strict schemas; `SearchArguments` holds them.
    schema={
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to look for, in at most 1000 characters."}},
        "required": ["query"],
        "additionalProperties": False,
    },
)


def search_tool(search: PassageSearch, agent: AgentSpec, spec: ToolSpec) -> ToolBody:
    """Search in what an agent reads, as the caller of the turn at hand."""
    return functools.partial(_search, search, agent, spec.max_characters)


async def _search(
    search: PassageSearch, agent: AgentSpec, max_characters: int, desk: TurnDesk, arguments: str
) -> ToolText:
    query = parsed(SearchArguments, arguments).query
    try:
        found = await search.search(Question(query, "", desk.question.caller), agent.reads, MOST_HITS)
    except AgentServiceError:
        raise ToolRefusedError("The search failed.") from None
    return ToolText(fence(desk.found(_fitting(found.hits, max_characters))), is_data=False)


def _fitting(hits: Sequence[ScoredPassage], max_characters: int) -> Sequence[ScoredPassage]:
    """The first passages that fit, whole, because a quote must be found in its source; one at least."""
    used = 0
    for count, hit in enumerate(hits):
        passage = hit.passage
        used += len(passage.text) + len(passage.title) + len(passage.heading) + FENCE_CHARACTERS
        if used > max_characters:
            return hits[: max(count, 1)]
    return hits
