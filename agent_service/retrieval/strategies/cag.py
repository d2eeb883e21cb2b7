"""CAG: the collection's documents held whole in the prompt's stable prefix."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from agent_service.ports import VectorStore
from agent_service.retrieval.context import estimate_tokens, offer, whole
from agent_service.retrieval.search import Found, Searcher
from agent_service.retrieval.support import SupportCheck
from agent_service.types import (
    CachedPassage,
    Caller,
    CollectionName,
    Context,
    DocumentInfo,
    Passage,
    Question,
    ScoredPassage,
    Source,
    Strategy,
    TermId,
)

PREPARED_CONTEXTS = 32
"""Prepared contexts kept, the least recently used out first: one per set of visible documents and versions."""

SEARCHED = 50
"""Passages searched for the best documents, where not all fit."""

MOST_SOURCES = 50
"""Most documents offered: the contract's bound of sources, and of what a trace lists."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Documents ready for the prompt, and what each of their passages says, for the support check."""

    sources: tuple[Source, ...]
    part_terms: tuple[frozenset[TermId], ...]


class CagStrategy:
    """Offers whole documents, in a stable order and prepared once per (documents, versions).

    A caller's prepared context is found by the documents and versions that this caller may read now, so a delete, a
    new version or a change of access shows at once.
    """

    def __init__(self, store: VectorStore, searcher: Searcher, support: SupportCheck, *, budget_tokens: int) -> None:
        self._store = store
        self._searcher = searcher
        self._support = support
        self._budget_tokens = budget_tokens
        self._prepared: OrderedDict[tuple[tuple[str, str], ...], Prepared] = OrderedDict()

    async def gather(
        self,
        question: Question,
        collections: Sequence[CollectionName],
        cached: Sequence[CachedPassage],  # noqa: ARG002 - the documents are the cache
    ) -> Context:
        """See `ContextStrategy.gather`."""
        await self._searcher.require(question.caller, collections)
        chosen = await self._all_within_budget(question.caller, collections)
        if chosen is None:
            found = await self._searcher.search(question, collections, SEARCHED)
            chosen = await self._best_within_budget(found.hits, question.caller)
            if not chosen:  # nothing was found, or nothing so small
                return self._passages_only(found, collections)
            reason = f"{', '.join(collections)} exceeds the budget: the {len(chosen)} best documents by search"
        else:
            reason = f"all {len(chosen)} documents of {', '.join(collections)} are in context"
        prepared, cache_hit = await self._prepared_for(chosen, question.caller)
        weights = await self._support.weigh(question, collections)
        return Context(
            strategy=Strategy.CAG,
            sources=prepared.sources,
            considered=tuple(ScoredPassage(source.passage, 0.0) for source in prepared.sources[:MOST_SOURCES]),
            stable=True,
            cache_hit=cache_hit,
            support=max(map(weights.support, prepared.part_terms), default=0.0),
            reason=reason,
        )

    async def _all_within_budget(
        self, caller: Caller, collections: Sequence[CollectionName]
    ) -> list[DocumentInfo] | None:
        """Every visible document, ordered by id; None where they exceed the budget or the number of sources."""
        visible = await self._store.page(caller, collections=collections, limit=MOST_SOURCES + 1)
        tokens = sum(estimate_tokens(info.characters) for info in visible)
        return visible if len(visible) <= MOST_SOURCES and tokens <= self._budget_tokens else None

    async def _best_within_budget(self, hits: Sequence[ScoredPassage], caller: Caller) -> list[DocumentInfo]:
        """The documents of the best hits that fit, in the stable order of their ids."""
        left = self._budget_tokens
        chosen: list[DocumentInfo] = []
        for document_id in dict.fromkeys(hit.passage.document_id for hit in hits):
            info = await self._store.info(document_id, caller)
            if info is not None and (cost := estimate_tokens(info.characters)) <= left:
                left -= cost
                chosen.append(info)
            if len(chosen) == MOST_SOURCES:
                break
        return sorted(chosen, key=lambda info: info.id)

    def _passages_only(self, found: Found, collections: Sequence[CollectionName]) -> Context:
        """For documents each of which is larger than the whole budget."""
        return Context(
            strategy=Strategy.CAG,
            sources=offer(found.hits, budget_tokens=self._budget_tokens),
            considered=found.hits[:MOST_SOURCES],
            support=found.support,
            reason=f"no whole document fits the token budget: the best passages of {', '.join(collections)} by search",
        )

    async def _prepared_for(self, chosen: Sequence[DocumentInfo], caller: Caller) -> tuple[Prepared, bool]:
        key = tuple((info.id, info.version) for info in chosen)
        if (prepared := self._prepared.get(key)) is not None:
            self._prepared.move_to_end(key)
            return prepared, True
        prepared = await self._prepare(chosen, caller)
        # What was deleted while it was read is not kept under a key that a later ingestion could bring back.
        if len(prepared.sources) == len(chosen):
            self._prepared[key] = prepared
            while len(self._prepared) > PREPARED_CONTEXTS:
                self._prepared.popitem(last=False)
        return prepared, False

    async def _prepare(self, chosen: Sequence[DocumentInfo], caller: Caller) -> Prepared:
        documents = await asyncio.gather(*(self._read(info, caller) for info in chosen))
        there = [(text, parts) for text, parts in documents if parts]
        sources = tuple(Source(marker, whole(parts, text)) for marker, (text, parts) in enumerate(there, start=1))
        part_terms = tuple(self._support.passage_terms(part) for _, parts in there for part in parts)
        return Prepared(sources, part_terms)

    async def _read(self, info: DocumentInfo, caller: Caller) -> tuple[str, list[Passage]]:
        document = await self._store.document(info.id, caller)
        parts = await self._store.passages_of(info.id, caller)
        # Deleted or replaced since it was listed: leave it out rather than mix versions.
        if document is None or any(part.version != info.version for part in parts) or document.info != info:
            return "", []
        return document.text, parts
