"""From the markers of an answer to citations whose quotes stand in the stored documents."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent_service.ports import TermEncoder, VectorStore
from agent_service.types import Caller, CheckedCitations, Citation, DocumentId, Sentence, Source, Span, StoredDocument

MARKERS = re.compile(r"(?:\s?\[\d{1,3}\])+")
MARKER = re.compile(r"\[(\d{1,3})\]")
STATEMENT_END = re.compile(r"[.!?][\"')\]]*\s+|\n+")

LEAST_OVERLAP = 0.3
"""Share of a statement's terms that its quote must hold. Extractive answers have 1; a paraphrase of a sentence keeps
its names and figures, while a wrong marker shares little beyond the subject."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A part of the answer that ends in markers. `span` covers both."""

    text: str
    span: Span
    markers: tuple[int, ...]


def statements(answer: str) -> Iterator[Statement]:
    """The statements with markers, in order. A statement reaches back to the sentence or marker before it.

    Markers after the full stop belong to the sentence before ("... annually. [1]").
    """
    floor = 0
    for group in MARKERS.finditer(answer):
        body = answer[floor : group.start()].rstrip()
        start = floor
        for end in STATEMENT_END.finditer(body):
            start = floor + end.end()
        while start < group.start() and answer[start].isspace():
            start += 1
        markers = tuple(dict.fromkeys(int(number) for number in MARKER.findall(group.group())))
        yield Statement(answer[start : group.start()].strip(), Span(start, group.end()), markers)
        floor = group.end()


class StoredQuoteChecker:
    """Finds the words behind each marker and checks that they still stand in the stored document."""

    def __init__(self, store: VectorStore, encoder: TermEncoder) -> None:
        self._store = store
        self._encoder = encoder

    async def check(self, answer: str, sources: Sequence[Source], caller: Caller) -> CheckedCitations:
        """See `CitationChecker.check`.

        Raises:
            RetrievalUnavailableError: the store failed.
        """
        by_marker = {source.marker: source for source in sources}
        documents: dict[DocumentId, StoredDocument | None] = {}
        citations: list[Citation] = []
        dropped = 0
        for statement in statements(answer):
            for marker in statement.markers:
                citation = self._cite(statement, marker, by_marker)
                if citation is not None and await self._stands(citation, documents, caller):
                    citations.append(citation)
                else:
                    dropped += 1
        return CheckedCitations(tuple(citations), dropped)

    def _cite(self, statement: Statement, marker: int, by_marker: Mapping[int, Source]) -> Citation | None:
        source = by_marker.get(marker)
        sentence = self._quote(statement.text, source.passage.sentences) if source else None
        if source is None or sentence is None:
            return None
        start = sentence.span.start - source.passage.span.start
        end = sentence.span.end - source.passage.span.start
        return Citation(
            marker=marker,
            answer_span=statement.span,
            passage=source.passage,
            heading=sentence.heading,
            source_span=sentence.span,
            quote=source.passage.text[start:end],
        )

    def _quote(self, statement: str, sentences: Sequence[Sentence]) -> Sentence | None:
        """The sentence that says the statement; the shortest of the best, so that a quote is no longer than needed."""
        said = frozenset(self._encoder.terms(statement))
        best: tuple[float, int] = (0.0, 0)
        quote: Sentence | None = None
        for sentence in sentences:
            if sentence.text == statement:
                return sentence
            held = said.intersection(self._encoder.terms(sentence.text))
            share = len(held) / len(said) if said else 0.0
            if share >= LEAST_OVERLAP and (share, -len(sentence.text)) > best:
                best, quote = (share, -len(sentence.text)), sentence
        return quote

    async def _stands(
        self, citation: Citation, documents: dict[DocumentId, StoredDocument | None], caller: Caller
    ) -> bool:
        """Whether the quote is what the document's current version has at that place, read as the caller."""
        document_id = citation.passage.document_id
        if document_id not in documents:
            documents[document_id] = await self._store.document(document_id, caller)
        document = documents[document_id]
        if document is None or document.info.version != citation.passage.version:
            return False
        return bool(citation.quote) and (
            document.text[citation.source_span.start : citation.source_span.end] == citation.quote
        )
