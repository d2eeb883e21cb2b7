"""Which points a read may touch, in words that both clients understand. The access rule of the stores is here."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent_service.errors import FieldViolation, InvalidRequestError
from agent_service.retrieval.stores.payload import DOCUMENT, PASSAGE, REPLACED, document_point, readers_for
from agent_service.types import Caller, CollectionName, DocumentId, ScoredPassage, TermId

PAGE = 1000
"""Points read from a store at a time: 1,000 passages are about 3 MB."""

PREFETCH = 100
"""Candidates of each kind before they are fused."""

MAX_TIED = 1024
"""Hits fetched at most to put equal scores in order; beyond it their order is the engine's."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A conjunction. `equal`: field and value; `among`: field and values, one of which it holds; `points`: ids."""

    equal: Mapping[str, str | int]
    among: Mapping[str, Sequence[str]]
    points: tuple[str, ...] | None = None

    def term(self, term: TermId) -> "Selection":
        """Of these, the passages that hold the term."""
        return Selection({**self.equal, "terms": term}, self.among, self.points)


def passages_for(
    caller: Caller,
    collections: Sequence[CollectionName] = (),
    *,
    document_id: DocumentId | None = None,
    points: Iterable[str] | None = None,
) -> Selection:
    """The passages that the caller may read, in these collections (none named: all)."""
    return _readable(PASSAGE, caller, collections, document_id, points)


def documents_for(
    caller: Caller, collections: Sequence[CollectionName] = (), *, document_id: DocumentId | None = None
) -> Selection:
    """The documents that the caller may read, in these collections (none named: all)."""
    return _readable(DOCUMENT, caller, collections, document_id, None)


ALL_DOCUMENTS = Selection({"kind": DOCUMENT}, {})
LEFT_OVER = Selection({"kind": REPLACED}, {})


def everything_of(document_id: DocumentId) -> Selection:
    """All points of a document, whoever may read it: for writing only."""
    return Selection({"document_id": document_id}, {})


def document_of_anybody(document_id: DocumentId) -> Selection:
    """A document, whoever may read it: for writing only."""
    return Selection({"kind": DOCUMENT, "document_id": document_id}, {})


def page_start(after: DocumentId | None) -> str | None:
    """The first point id that a page may hold; None: from the beginning.

    Raises:
        InvalidRequestError: `after` is no id of a document.
    """
    if after is None:
        return None
    point = document_point(after)
    if point is None:
        raise InvalidRequestError(FieldViolation("page_token", "was not given out by this service"))
    return str(uuid.UUID(int=min(uuid.UUID(point).int + 1, (1 << 128) - 1)))


def ranked(hits: Iterable[ScoredPassage], limit: int) -> list[ScoredPassage]:
    """The best first, ties by passage id."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))[:limit]


def cut_through_tie(scores: Sequence[float], limit: int, fetched: int) -> bool:
    """Were hits left behind that may be equal to the last one wanted? `scores`: best first, of `fetched` asked for."""
    return limit < len(scores) == fetched < MAX_TIED and scores[-1] == scores[limit - 1]


def _readable(
    kind: str,
    caller: Caller,
    collections: Sequence[CollectionName],
    document_id: DocumentId | None,
    points: Iterable[str] | None,
) -> Selection:
    equal: dict[str, str | int] = {"kind": kind, "tenant": caller.tenant}
    if document_id is not None:
        equal["document_id"] = document_id
    among: dict[str, Sequence[str]] = {"readers": readers_for(caller)}
    if collections:
        among["collection"] = list(collections)
    return Selection(equal, among, None if points is None else tuple(points))
