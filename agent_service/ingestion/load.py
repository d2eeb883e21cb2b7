"""Finds and reads documents in the file system. What cannot be read is reported, file by file, and stops nothing."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from agent_service.ingestion.limits import MAX_TEXT_BYTES
from agent_service.types import Access, CollectionName, SourceDocument

SUFFIXES = frozenset((".md", ".markdown", ".txt"))

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_-]+")
_DEFAULT_COLLECTION = CollectionName("documents")


@dataclass(frozen=True, slots=True)
class Found:
    """A file to be read. `uri`: its path below the folder that was named, with slashes."""

    path: Path
    uri: str
    collection: CollectionName

    def read(self, access: Access) -> SourceDocument:
        """The document in the file, its text as it is; the title is left to ingestion.

        Raises:
            UnreadableError: there is no such file, or it is not a document.
        """
        return SourceDocument(self.uri, self.collection, "", _text(self.path), access)


class UnreadableError(Exception):
    """A file cannot be taken as a document. The message says why, without the path."""


def find_documents(paths: Sequence[Path], collection: CollectionName | None = None) -> list[Found]:
    """List the documents below folders, and files as they are.

    Below a folder these count: *.md, *.markdown and *.txt, also behind symbolic links, none of it hidden. The URI is
    the path below the folder, so it is the same wherever the folder is named from; of a file it is the name. A folder
    is entered once, whatever leads to it.

    Args:
        paths: folders and files. A file is taken whatever its name; one that is missing is reported when it is read.
        collection: for all; default: the name of the first folder below the folder named, or of the file's own.

    Returns:
        In the order of `paths`, below a folder by URI. A URI occurs once in a collection, with the first file of it.
    """
    found: dict[tuple[str, str], Found] = {}
    for path in paths:
        for each in _below(path, collection) if path.is_dir() else [_single(path, collection)]:
            found.setdefault((each.collection, each.uri), each)
    return list(found.values())


def read_documents(
    found: Sequence[Found], access: Access, unreadable: Callable[[Found, str], None]
) -> Iterator[SourceDocument]:
    """Read documents one by one, each when it is asked for.

    Args:
        found: the files.
        access: who may read the documents.
        unreadable: told of each file that cannot be taken as a document, and why.
    """
    for each in found:
        try:
            document = each.read(access)
        except UnreadableError as err:
            unreadable(each, str(err))
        else:
            yield document


def _single(path: Path, collection: CollectionName | None) -> Found:
    return Found(path, path.name, collection or _collection(path.absolute().parent.resolve().name))


def _below(root: Path, collection: CollectionName | None) -> list[Found]:
    own_name = root.resolve().name
    found = []
    for path in _files(root):
        below = path.relative_to(root)
        name = below.parts[0] if len(below.parts) > 1 else own_name
        found.append(Found(path, below.as_posix(), collection or _collection(name)))
    return sorted(found, key=lambda each: each.uri)


def _files(root: Path) -> Iterator[Path]:
    entered = {_identity(root)}
    # Folders that cannot be listed are passed over, as `os.walk` does.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        folders[:] = [name for name in folders if _enter(Path(folder, name), entered)]
        yield from (Path(folder, name) for name in files if not name.startswith(".") and _is_document(name))


def _enter(folder: Path, entered: set[tuple[int, int]]) -> bool:
    """Whether a folder is entered for the first time; a symbolic link may lead back to one above."""
    identity = _identity(folder)
    if identity in entered:
        return False
    entered.add(identity)
    return True


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_document(name: str) -> bool:
    return PurePath(name).suffix.lower() in SUFFIXES


def _collection(folder: str) -> CollectionName:
    """A folder's name as a collection may be called: "Billing & Tax" is "billing-tax"."""
    return CollectionName(_NOT_IN_A_NAME.sub("-", folder.lower()).strip("-")[:64] or _DEFAULT_COLLECTION)


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("is not a file")
        if status.st_size > MAX_TEXT_BYTES:
            raise UnreadableError("is larger than 2 MiB")
        # Not `read_text`: it would translate line ends.
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableError("is not UTF-8 text") from None
    except OSError as err:
        raise UnreadableError(err.strerror or "cannot be read") from err
    if not text:
        raise UnreadableError("is empty")
    return text
