"""Documents in the file system: what is found, how it is named, and what is reported instead."""

import os
from pathlib import Path

import pytest

from agent_service.ingestion.limits import MAX_TEXT_BYTES
from agent_service.ingestion.load import Found, UnreadableError, find_documents, read_documents
from agent_service.types import Access, CollectionName

ACCESS = Access("acme", ("staff",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder as people keep them."""
    root = tmp_path / "Know ledge"
    for name in ("billing/plans.md", "billing/more/tax.MARKDOWN", "Policy & Law/gdpr.txt", "readme.md"):
        write(root / name, f"# {name}\n")
    for name in (".hidden.md", ".git/notes.md", "billing/picture.png", "billing/no-suffix"):
        write(root / name, "no document")
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def names(found: list[Found]) -> list[tuple[str, str]]:
    return [(each.collection, each.uri) for each in found]


def test_find_lists_documents_below_a_folder_sorted_and_in_collections_named_by_it(root: Path) -> None:
    assert names(find_documents([root])) == [
        ("policy-law", "Policy & Law/gdpr.txt"),
        ("billing", "billing/more/tax.MARKDOWN"),
        ("billing", "billing/plans.md"),
        ("know-ledge", "readme.md"),
    ]


def test_find_gives_the_same_uris_from_anywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = names(find_documents([root]))

    monkeypatch.chdir(root)
    from_inside = names(find_documents([Path()]))
    monkeypatch.chdir(root.parent)

    assert from_inside == absolute == names(find_documents([Path(root.name)]))


def test_find_takes_a_collection_for_all(root: Path) -> None:
    found = find_documents([root, root / "readme.md"], CollectionName("all"))

    assert {each.collection for each in found} == {"all"}
    assert [each.uri for each in found].count("readme.md") == 1


def test_find_takes_a_file_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "billing")

    assert names(find_documents([Path("picture.png"), root / ".hidden.md"])) == [
        ("billing", "picture.png"),
        ("know-ledge", ".hidden.md"),
    ]


def test_find_calls_a_collection_documents_where_the_folder_has_no_usable_name(tmp_path: Path) -> None:
    write(tmp_path / "データ" / "x.md", "x")

    assert names(find_documents([tmp_path])) == [("documents", "データ/x.md")]


def test_find_names_collections_within_the_limit_of_the_protocol(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 100) / "x.md", "x")

    assert find_documents([tmp_path])[0].collection == "a" * 64


def test_find_follows_links_but_enters_no_folder_twice(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "linked.md", "x")
    (root / "billing" / "loop").symlink_to(root, target_is_directory=True)
    (root / "zz").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "zzz").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "alias.md").symlink_to(root / "readme.md")

    uris = [each.uri for each in find_documents([root])]

    assert "zz/linked.md" in uris
    assert "alias.md" in uris
    assert not any(uri.startswith(("zzz", "billing/loop")) for uri in uris)


def read(path: Path) -> str:
    return Found(path, path.name, CollectionName("c")).read(ACCESS).text


@pytest.mark.parametrize("text", ["# A\r\n\r\nb\rc\n", "\ufeffx", " \n", "naïve 😀\u2028no end"])
def test_read_gives_the_text_as_it_is(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path / "x.md", text)) == text


def test_read_leaves_the_title_to_ingestion_and_passes_the_access_on(root: Path) -> None:
    document = find_documents([root / "readme.md"])[0].read(ACCESS)

    assert (document.title, document.access, document.uri) == ("", ACCESS, "readme.md")


def test_read_takes_a_file_of_just_2_mib(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "x.md", "x" * MAX_TEXT_BYTES))) == MAX_TEXT_BYTES


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"caf\xe9", "is not UTF-8 text"),
        ("UTF-16".encode("utf-16"), "is not UTF-8 text"),
        (b"x" * (MAX_TEXT_BYTES + 1), "is larger than 2 MiB"),
    ],
    ids=["empty", "latin-1", "utf-16", "large"],
)
def test_read_reports_what_is_no_document(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.md"
    path.write_bytes(content)

    with pytest.raises(UnreadableError, match=reason):
        read(path)


def test_read_reports_a_missing_file_a_broken_link_and_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "broken.md").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.md")

    with pytest.raises(UnreadableError, match="No such file"):
        read(tmp_path / "missing.md")
    with pytest.raises(UnreadableError, match="No such file"):
        read(tmp_path / "broken.md")
    with pytest.raises(UnreadableError, match="is not a file"):
        read(tmp_path / "pipe.md")


def test_read_documents_goes_on_after_a_file_that_cannot_be_read(root: Path) -> None:
    write(root / "empty.md", "")
    problems: list[tuple[str, str]] = []

    documents = read_documents(
        find_documents([root, root / "missing.md"]), ACCESS, lambda found, why: problems.append((found.uri, why))
    )

    assert [document.uri for document in documents] == [
        "Policy & Law/gdpr.txt",
        "billing/more/tax.MARKDOWN",
        "billing/plans.md",
        "readme.md",
    ]
    assert problems == [("empty.md", "is empty"), ("missing.md", "No such file or directory")]


def test_read_documents_reads_a_file_when_it_is_asked_for(root: Path) -> None:
    documents = read_documents(find_documents([root]), ACCESS, lambda found, why: pytest.fail(f"{found.uri}: {why}"))
    next(documents)

    (root / "billing" / "more" / "tax.MARKDOWN").write_bytes(b"changed")

    assert next(documents).text == "changed"
