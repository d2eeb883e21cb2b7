"""From the markers of an answer to citations whose quotes stand in the stored documents."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent_service.ports import TermEncoder, VectorStore
from agent_service.types import Caller, CheckedCitations, Citation, DocumentId, Sentence, Source, Span, StoredDocument

MARKERS = re.compile(r"\s*\[\d{1,3}\](?:[\s,;]*\[\d{1,3}\])*")
MARKER = re.compile(r"\[(\d{1,3})\]")
INDEX = re.compile(r"(?<=\w)\[\d{1,3}\](?=\.?\w|\()", re.ASCII)
"""As in items[0].price: no marker, but a place in something."""

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
FENCE = re.compile(r"\A```\w*\n(.*)\n```\Z", re.DOTALL)
STATEMENT_END = re.compile(r"[.!?][\"')\]]*\s+|\n+")

LEAST_OVERLAP = 0.3
"""Share of a statement's terms that its quote must hold. Extractive answers have 1; a paraphrase of a sentence keeps
its names and figures, while a wrong marker shares little beyond the subject."""


LEAST_RETURNED_SHARE = 0.5
LEAST_RETURNED_TERMS = 3
"""How much of a sentence a tool's result must hold, for an answer without a citation to have evidence. Stricter than
for a quote, which a marker names: nothing says here which result is meant."""

MOST_RESULT_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Statement:
    """A part of the answer that ends in markers: its last sentence. `span` covers text and markers.

    `reach` is where everything since the markers before begins: all of that is the statement where it is one quote.
    """

    text: str
    span: Span
    markers: tuple[int, ...]
    reach: int


def statements(answer: str) -> Iterator[Statement]:
    """The statements with markers, in order.

    Markers after the full stop belong to the sentence before ("... annually. [1]"). What looks like a marker in code
    is none.
    """
    # Same length, so that places in it are places in the answer.
    prose = INDEX.sub(_blank, CODE.sub(_blank, answer))
    floor = 0
    for group in MARKERS.finditer(prose):
        text_end = len(answer[: group.start()].rstrip())
        reach = _skip_space(answer, floor)
        start = reach
        for boundary in STATEMENT_END.finditer(prose, reach, text_end):
            start = boundary.end()
        markers = tuple(dict.fromkeys(int(number) for number in MARKER.findall(group.group())))
        yield Statement(answer[start:text_end], Span(start, group.end()), markers, reach)
        floor = group.end()


def _blank(match: re.Match[str]) -> str:
    return "x" * len(match.group())


def _skip_space(text: str, place: int) -> int:
    # What ends the sentence before may stand behind its markers ("... annually [1]. And ...").
    while place < len(text) and (text[place].isspace() or text[place] in ".,;:"):
        place += 1
    return place


def _unfenced(text: str) -> str:
    fenced = FENCE.match(text)
    return fenced.group(1) if fenced else text


class StoredQuoteChecker:
    """Finds the words behind each marker and checks that they still stand in the stored document."""

    def __init__(self, store: VectorStore, encoder: TermEncoder) -> None:
        self._store = store
        self._encoder = encoder

    async def check(
        self, answer: str, sources: Sequence[Source], caller: Caller, results: Sequence[str] = ()
    ) -> CheckedCitations:
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
                citation = self._cite(answer, statement, by_marker.get(marker), marker)
                if citation is not None and await self._stands(citation, documents, caller):
                    citations.append(citation)
                else:
                    dropped += 1
        return CheckedCitations(tuple(citations), dropped, self._rests_on(answer, results))

    def _rests_on(self, answer: str, results: Sequence[str]) -> bool:
        """Whether some sentence of the answer says what a tool has returned."""
        returned = [frozenset(self._encoder.terms(result[:MOST_RESULT_CHARACTERS])) for result in results]
        if not returned:
            return False
        for sentence in STATEMENT_END.split(answer):
            said = frozenset(self._encoder.terms(sentence))
            held = max(len(said & terms) for terms in returned)
            if held >= LEAST_RETURNED_TERMS and held >= LEAST_RETURNED_SHARE * len(said):
                return True
        return False

    def _cite(self, answer: str, statement: Statement, source: Source | None, marker: int) -> Citation | None:
        if source is None:
            return None
        start = statement.reach
        text_end = statement.span.start + len(statement.text)
        everything = _unfenced(answer[start:text_end])
        sentence = next((s for s in source.passage.sentences if s.text == everything), None)
        if sentence is None:
            start = statement.span.start
            sentence = self._quote(_unfenced(statement.text), source.passage.sentences)
        if sentence is None:
            return None
        offset = source.passage.span.start
        return Citation(
            marker=marker,
            answer_span=Span(start, statement.span.end),
            passage=source.passage,
            heading=sentence.heading,
            source_span=sentence.span,
            quote=source.passage.text[sentence.span.start - offset : sentence.span.end - offset],
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
