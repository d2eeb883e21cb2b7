"""Takes documents in: checks, names, cuts, weighs and stores them. The text is never changed: offsets count in it."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid5

from agent_service.errors import FieldViolation, IngestConflictError, InvalidRequestError
from agent_service.ingestion.chunk import CHUNKER_VERSION, Chunk, chunks
from agent_service.ingestion.limits import MAX_TITLE, check
from agent_service.ingestion.outline import Outline
from agent_service.ports import TermEncoder, VectorStore
from agent_service.types import (
    Access,
    Caller,
    DocumentId,
    DocumentInfo,
    IndexedPassage,
    Ingested,
    IngestStatus,
    Passage,
    PassageId,
    SourceDocument,
    StoredDocument,
)

MAX_PASSAGES = 20_000

# Names this project's documents among all UUIDs; a new value would rename every document.
_NAMESPACE = UUID("6f1c1c5e-3a0b-5d7e-9a53-0d2f3c9b7a41")

_T = TypeVar("_T")


class IngestPipeline:
    """Stores documents in passages. One document at a time may be asked for by many; each is written by one."""

    def __init__(
        self, store: VectorStore, encoder: TermEncoder, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._clock = clock
        self._writing: set[DocumentId] = set()
