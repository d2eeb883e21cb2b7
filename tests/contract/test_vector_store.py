"""What every `VectorStore` does: the fake, the embedded engine and the server's client answer to one suite."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_service.errors import InvalidRequestError, RetrievalUnavailableError
from agent_service.ports import VectorStore
from agent_service.retrieval.stores.edge import EdgeStore
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.retrieval.stores.server import IN_MEMORY, ServerStore
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentId,
    PassageId,
    ScoredPassage,
    SearchQuery,
    TermId,
)
from tests.support.documents import CALLER, COLLECTION, ENCODER, TENANT, Sample, document_id, sample
from tests.support.folders import quick_folder

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")

OTHER = CollectionName("policy")


async def memory(_folder: Path, dense_size: int | None = None) -> VectorStore:
    return InMemoryStore(dense_size=dense_size)


async def edge(folder: Path, dense_size: int | None = None) -> VectorStore:
    return await EdgeStore.open(folder / "edge", timeout_s=30, dense_size=dense_size)


async def server(_folder: Path, dense_size: int | None = None) -> VectorStore:
    return await ServerStore.connect(IN_MEMORY, timeout_s=30, dense_size=dense_size)


STORES = {"memory": memory, "edge": edge, "server": server}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as place:
        yield place


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[VectorStore]:
    store = await STORES[request.param](folder)
    yield store
    await store.close()


@pytest.fixture(params=STORES)
async def dense_store(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[VectorStore]:
    store = await STORES[request.param](folder, 4)
    yield store
    await store.close()


@pytest.fixture
async def all_stores(folder: Path) -> AsyncIterator[list[VectorStore]]:
    stores = [await make(folder) for make in STORES.values()]
    yield stores
    for store in stores:
        await store.close()


def query(text: str, caller: Caller = CALLER, **changes: Any) -> SearchQuery:
    return SearchQuery(terms=ENCODER.terms(text), caller=caller, **changes)


def texts(hits: list[ScoredPassage]) -> list[str]:
    return [hit.passage.text for hit in hits]


# --- put ---


async def test_put_document_comes_back_whole(store: VectorStore) -> None:
    guide = await sample("guide", "Reset a password. ", "Change an address. ", "Close an account.").put(store)

    assert await store.info(guide.id, CALLER) == guide.info
    assert await store.document(guide.id, CALLER) == guide.document
    assert await store.passages_of(guide.id, CALLER) == guide.bare
    assert texts(await store.search(query("passwords"))) == ["Reset a password. "]


@pytest.mark.parametrize(
    "text",
    ["Ünïcödé ß straße 東京 e\u0301 \U0001f600 \u200d", "tabs\tand\r\nlines\x00\x1b", '"quoted" \\ {json}', " "],
    ids=["letters", "controls", "quotes", "blank"],
)
async def test_put_keeps_every_character(store: VectorStore, text: str) -> None:
    guide = await sample("guide", text, text, access=Access("ténant", ("größe",))).put(store)

    caller = Caller("x", "ténant", ("größe",))
    assert await store.document(guide.id, caller) == guide.document
    assert await store.passages_of(guide.id, caller) == guide.bare


async def test_put_document_without_passages(store: VectorStore) -> None:
    empty = await sample("empty").put(store)

    assert await store.document(empty.id, CALLER) == empty.document
    assert await store.passages_of(empty.id, CALLER) == []
    assert await store.delete(empty.id, CALLER) == 0


async def test_put_passage_of_stop_words_is_kept_and_never_found(store: VectorStore) -> None:
    guide = await sample("guide", "to be or not to be", "password").put(store)

    assert await store.passages_of(guide.id, CALLER) == guide.bare
    assert texts(await store.search(query("password to be"))) == ["password"]
    assert (await store.term_statistics(ENCODER.terms("password"), CALLER)).passages == 2


@pytest.mark.parametrize("new", [("zebra", "yak"), ("zebra",), ("zebra", "yak", "xerus", "wombat"), ()])
async def test_put_new_version_replaces_the_old_one_whole(store: VectorStore, new: tuple[str, ...]) -> None:
    old = await sample("guide", "alpha", "beta", "gamma").put(store)
    other = await sample("other", "alpha delta").put(store)

    changed = await sample("guide", *new, version="2", collection=OTHER).put(store)

    assert await store.info(changed.id, CALLER) == changed.info
    assert await store.passages_of(changed.id, CALLER) == changed.bare
    assert texts(await store.search(query("alpha beta gamma"))) == ["alpha delta"]
    assert sorted(texts(await store.search(query("zebra yak xerus wombat")))) == sorted(new)
    assert await store.passages([passage.id for passage in old.bare], CALLER) == []
    assert await store.page(CALLER) == sorted([changed.info, other.info], key=lambda info: info.id)
    assert await store.collections() == {COLLECTION: 1, OTHER: 1}
    assert (await store.term_statistics(ENCODER.terms("alpha"), CALLER)).frequencies == {ENCODER.terms("alpha")[0]: 1}


async def test_put_same_version_again_changes_nothing(store: VectorStore) -> None:
    guide = await sample("guide", "alpha", "beta").put(store)
    before = await store.search(query("alpha"))

    await guide.put(store)

    assert await store.search(query("alpha")) == before
    assert await store.passages_of(guide.id, CALLER) == guide.bare
    assert (await store.term_statistics((), CALLER)).passages == 2


async def test_put_same_passages_with_other_access_moves_them(store: VectorStore) -> None:
    await sample("guide", "alpha").put(store)

    await sample("guide", "alpha", access=Access(TENANT, ("staff",))).put(store)

    assert await store.search(query("alpha")) == []
    assert texts(await store.search(query("alpha", Caller("bob", TENANT, ("staff",))))) == ["alpha"]


async def test_put_of_one_document_at_the_same_time_leaves_one_version_whole(store: VectorStore) -> None:
    versions = [sample("guide", *[f"alpha {n}"] * (n + 1), version=str(n)) for n in range(5)]

    await asyncio.gather(*(version.put(store) for version in versions))

    info = await store.info(document_id("guide"), CALLER)
    assert info is not None
    winner = versions[int(info.version)]
    assert await store.passages_of(winner.id, CALLER) == winner.bare
    assert {hit.passage.version for hit in await store.search(query("alpha"))} == {winner.info.version}
    assert (await store.term_statistics((), CALLER)).passages == winner.info.passages


async def test_reads_during_puts_never_show_a_mixture(store: VectorStore) -> None:
    versions = [sample("guide", *(f"alpha {n} {part}" for part in range(n % 3 + 1)), version=str(n)) for n in range(12)]
    await versions[0].put(store)
    done = asyncio.Event()

    async def write() -> None:
        for version in versions[1:]:
            await version.put(store)
        done.set()

    async def read() -> None:
        while not done.is_set():
            found = await store.passages_of(document_id("guide"), CALLER)
            assert found == versions[int(found[0].version)].bare
            assert len({hit.passage.version for hit in await store.search(query("alpha"))}) == 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        tasks.create_task(read())


async def test_put_document_of_3000_passages(store: VectorStore) -> None:
    words = [f"word{n}" for n in range(50)]
    guide = await sample("big", *(f"{words[n % 50]} number{n} " for n in range(3000))).put(store)

    assert await store.passages_of(guide.id, CALLER) == guide.bare
    assert texts(await store.search(query("number2999"))) == ["word49 number2999 "]
    statistics = await store.term_statistics(ENCODER.terms("word7"), CALLER)
    assert (statistics.passages, *statistics.frequencies.values()) == (3000, 60)
    await sample("big", "small now", version="2").put(store)
    assert (await store.term_statistics((), CALLER)).passages == 1


def _misplaced(guide: Sample) -> list[Any]:
    other = sample("other", "alpha", "beta")
    return [
        (guide.document, other.passages),
        (guide.document, guide.passages[:1]),
        (guide.document, [guide.passages[0], guide.passages[0]]),
        (sample("guide", "alpha", "beta", version="2").document, guide.passages),
        (guide.document, sample("guide", "alpha", "beta", dense=[(1.0, 0.0)] * 2).passages),
    ]


@pytest.mark.parametrize("mistake", range(5))
async def test_put_what_does_not_fit_together_is_refused(store: VectorStore, mistake: int) -> None:
    document, passages = _misplaced(sample("guide", "alpha", "beta"))[mistake]

    with pytest.raises(ValueError, match=r"passage|dense"):
        await store.put(document, passages)

    assert await store.page(CALLER) == []


# --- search ---


async def test_search_orders_best_first(store: VectorStore) -> None:
    await sample("guide", "alpha beta", "alpha beta gamma", "gamma delta epsilon", "alpha", "beta beta beta").put(store)

    hits = await store.search(query("alpha beta"))

    assert texts(hits)[:2] == ["alpha beta", "alpha beta gamma"]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 4
    assert all(hit.score > 0 for hit in hits)


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 100])
async def test_search_gives_at_most_the_limit(store: VectorStore, limit: int) -> None:
    await sample("guide", "alpha", "alpha beta", "alpha beta gamma").put(store)

    every = await store.search(query("alpha", limit=100))
    hits = await store.search(query("alpha", limit=limit))

    assert hits == every[:limit]
    assert len(hits) == min(limit, 3)


@pytest.mark.parametrize("limit", [1, 3, 40])
async def test_search_orders_ties_by_passage_id(store: VectorStore, limit: int) -> None:
    guides = [await sample(f"guide {n}", "alpha beta").put(store) for n in range(40)]
    await sample("better", "alpha").put(store)

    hits = await store.search(query("alpha", limit=limit + 1))

    assert hits[0].passage.text == "alpha"
    assert [hit.passage.id for hit in hits[1:]] == sorted(guide.bare[0].id for guide in guides)[:limit]


async def test_search_without_terms_finds_nothing(store: VectorStore) -> None:
    await sample("guide", "alpha").put(store)

    assert await store.search(query("")) == []
    assert await store.search(query("the of and")) == []


async def test_search_in_an_empty_store_finds_nothing(store: VectorStore) -> None:
    assert await store.search(query("alpha")) == []
    assert await store.page(CALLER) == []
    assert await store.collections() == {}
    assert await store.term_statistics(ENCODER.terms("alpha"), CALLER) == await store.term_statistics(
        ENCODER.terms("alpha"), CALLER, [OTHER]
    )


async def test_search_unknown_term_finds_nothing(store: VectorStore) -> None:
    await sample("guide", "alpha").put(store)

    assert await store.search(query("omega")) == []


@pytest.mark.parametrize(
    ("collections", "expected"),
    [
        ((), {"guides", "policy"}),
        (("guides",), {"guides"}),
        (("guides", "policy"), {"guides", "policy"}),
        (("x",), set()),
    ],
)
async def test_reads_keep_to_the_collections(
    store: VectorStore, collections: tuple[CollectionName, ...], expected: set[str]
) -> None:
    await sample("guide", "alpha").put(store)
    await sample("rule", "alpha beta", collection=OTHER).put(store)

    hits = await store.search(query("alpha", collections=collections))
    page = await store.page(CALLER, collections=collections)
    statistics = await store.term_statistics(ENCODER.terms("alpha"), CALLER, collections)

    assert {hit.passage.collection for hit in hits} == expected
    assert {info.collection for info in page} == expected
    assert statistics.passages == len(expected)
    assert list(statistics.frequencies.values()) == [len(expected)]


async def test_search_weighs_terms_by_the_whole_store(store: VectorStore) -> None:
    await sample("guide", "alpha", "beta").put(store)
    await sample("foreign", *["alpha"] * 5, access=Access("rival")).put(store)

    assert texts(await store.search(query("alpha beta"))) == ["beta", "alpha"]


async def test_scores_agree_between_the_stores(all_stores: list[VectorStore]) -> None:
    chance = random.Random(7)
    words = [f"w{n}" for n in range(60)]
    documents = [
        sample(
            f"guide {n % 40}",
            *(" ".join(chance.choices(words, k=chance.randint(0, 30))) for _ in range(chance.randint(1, 6))),
            version=str(n % 3),
            access=Access(chance.choice([TENANT, "rival"]), chance.choice([(), ("staff",)])),
        )
        for n in range(60)
    ]
    for store in all_stores:
        for each in documents:
            await each.put(store)
        for n in range(5):
            await store.delete(document_id(f"guide {n}"), Caller("x", "rival", ("staff",)))

    for _ in range(30):
        asked = query(" ".join(chance.choices(words, k=5)), limit=100)
        expected, *others = [await store.search(asked) for store in all_stores]
        scores = {hit.passage.id: hit.score for hit in expected}
        assert scores
        for hits in others:
            assert {hit.passage.id: hit.score for hit in hits} == pytest.approx(scores, rel=1e-3)
    terms = ENCODER.terms(" ".join(words))
    first, *rest = [await store.term_statistics(terms, CALLER) for store in all_stores]
    assert rest == [first, first]


# --- dense ---

DENSE = [(1.0, 0.0, 0.0, 0.0), (0.6, 0.8, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)]
TEXTS = ["alpha", "alpha beta", "gamma", "delta alpha"]


async def test_search_with_dense_vector_fuses_both(dense_store: VectorStore) -> None:
    await sample("guide", *TEXTS, dense=DENSE).put(dense_store)

    hits = await dense_store.search(query("beta", dense=(0.0, 1.0, 0.0, 0.0)))

    assert texts(hits) == ["alpha beta", "gamma", "alpha", "delta alpha"]
    assert all(hit.score >= 0 for hit in hits)
    # Sparse: the only hit, 0.5. Dense: 0.8 among 0, 0.8, 1, 0 is 0.5 + (0.8 - 0.45) / 6 deviations of 0.5260.
    assert hits[0].score == pytest.approx(0.5 + 0.5 + 0.35 / (6 * 0.52599), rel=1e-3)


async def test_search_with_dense_vector_alone(dense_store: VectorStore) -> None:
    await sample("guide", *TEXTS, dense=DENSE).put(dense_store)

    hits = await dense_store.search(query("", dense=(0.6, 0.8, 0.0, 0.0), limit=2))

    assert texts(hits) == ["alpha beta", "gamma"]


async def test_search_with_dense_vector_keeps_to_the_caller(dense_store: VectorStore) -> None:
    await sample("guide", *TEXTS, dense=DENSE, access=Access(TENANT, ("staff",))).put(dense_store)
    await sample("rule", *TEXTS, dense=DENSE, collection=OTHER).put(dense_store)
    await sample("foreign", *TEXTS, dense=DENSE, access=Access("rival")).put(dense_store)

    asked = query("alpha", dense=DENSE[0], limit=100)

    assert {hit.passage.title for hit in await dense_store.search(asked)} == {"About rule"}
    nothing = query("alpha", dense=DENSE[0], collections=(CollectionName("x"),))
    assert await dense_store.search(nothing) == []


async def test_search_without_dense_vector_in_a_dense_store_is_bm25(dense_store: VectorStore) -> None:
    await sample("guide", *TEXTS, dense=DENSE).put(dense_store)
    plain = InMemoryStore()
    await sample("guide", *TEXTS).put(plain)

    found, expected = await dense_store.search(query("alpha beta")), await plain.search(query("alpha beta"))

    assert texts(found) == texts(expected)
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], rel=1e-3)


@pytest.mark.parametrize("dense", [[], [(1.0, 0.0)] * 4])
async def test_put_without_fitting_dense_vectors_is_refused(
    dense_store: VectorStore, dense: list[tuple[float, ...]]
) -> None:
    with pytest.raises(ValueError, match="dense vector of size"):
        await sample("guide", *TEXTS, dense=dense).put(dense_store)
    with pytest.raises(ValueError, match="dense vector of size"):
        await dense_store.search(query("alpha", dense=(1.0,)))


async def test_search_with_dense_vector_in_a_store_without_is_refused(store: VectorStore) -> None:
    with pytest.raises(ValueError, match="dense vector of size 4, the store has None"):
        await store.search(query("alpha", dense=DENSE[0]))


# --- isolation ---


async def reads_info(store: VectorStore, caller: Caller, secret: Sample) -> object:
    return await store.info(secret.id, caller)


async def reads_document(store: VectorStore, caller: Caller, secret: Sample) -> object:
    return await store.document(secret.id, caller)


async def reads_page(store: VectorStore, caller: Caller, secret: Sample) -> object:
    return await store.page(caller, collections=[secret.info.collection])


async def reads_passages(store: VectorStore, caller: Caller, secret: Sample) -> object:
    return await store.passages([secret.bare[0].id], caller)


async def reads_passages_of(store: VectorStore, caller: Caller, secret: Sample) -> object:
    return await store.passages_of(secret.id, caller)


async def reads_search(store: VectorStore, caller: Caller, _secret: Sample) -> object:
    return await store.search(query("merger", caller))


async def reads_term_statistics(store: VectorStore, caller: Caller, _secret: Sample) -> object:
    statistics = await store.term_statistics(ENCODER.terms("merger"), caller)
    assert statistics.passages == sum(statistics.frequencies.values())
    return statistics.passages


async def reads_by_deleting(store: VectorStore, caller: Caller, secret: Sample) -> object:
    return await store.delete(secret.id, caller)


Read = Callable[[VectorStore, Caller, Sample], Awaitable[object]]
READS: list[Read] = [
    reads_info,
    reads_document,
    reads_page,
    reads_passages,
    reads_passages_of,
    reads_search,
    reads_term_statistics,
    reads_by_deleting,
]
BOARD = Access(TENANT, ("board", "audit"))
SEES = {
    "member": (BOARD, Caller("eve", TENANT, ("sales", "board")), True),
    "member of the other group": (BOARD, Caller("eve", TENANT, ("audit",)), True),
    "non-member": (BOARD, Caller("eve", TENANT, ("sales",)), False),
    "no groups": (BOARD, Caller("eve", TENANT), False),
    "group called star": (BOARD, Caller("eve", TENANT, ("*",)), False),
    "group with the prefix": (BOARD, Caller("eve", TENANT, ("group:board",)), False),
    "same group elsewhere": (BOARD, Caller("eve", "rival", ("board", "audit")), False),
    "whole tenant": (Access(TENANT), Caller("eve", TENANT), True),
    "whole tenant, in a group": (Access(TENANT), Caller("eve", TENANT, ("sales",)), True),
    "other tenant": (Access(TENANT), Caller("eve", "rival"), False),
    "no tenant": (Access(TENANT), Caller("eve", ""), False),
    "document for a group called star": (Access(TENANT, ("*",)), Caller("eve", TENANT, ("sales",)), False),
}


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("case", SEES)
async def test_every_read_keeps_to_tenant_and_groups(store: VectorStore, read: Read, case: str) -> None:
    access, caller, visible = SEES[case]
    secret = await sample("secret", "merger", access=access).put(store)

    assert bool(await read(store, caller, secret)) is visible


async def test_delete_by_who_may_not_read_leaves_the_document(store: VectorStore) -> None:
    secret = await sample("secret", "merger", access=BOARD).put(store)

    assert await store.delete(secret.id, CALLER) is None

    member = Caller("eve", TENANT, ("board",))
    assert await store.passages_of(secret.id, member) == secret.bare
    assert await store.collections() == {COLLECTION: 1}


async def test_a_document_exists_whoever_may_read_it_until_it_is_deleted(store: VectorStore) -> None:
    secret = await sample("secret", "merger", access=BOARD).put(store)
    await sample("guide", "alpha").put(store)

    assert await store.exists(secret.id)
    assert await store.delete(secret.id, Caller("eve", TENANT, ("board",))) == 1
    assert not await store.exists(secret.id)


# --- by id, pages, statistics ---


@pytest.mark.parametrize("name", ["", "none", "00000000-0000-0000-0000-000000000000", "x'; drop", "\U0001f600"])
async def test_unknown_ids_are_not_there(store: VectorStore, name: str) -> None:
    await sample("guide", "alpha").put(store)

    unknown = DocumentId(name)
    assert await store.info(unknown, CALLER) is None
    assert not await store.exists(unknown)
    assert await store.document(unknown, CALLER) is None
    assert await store.delete(unknown, CALLER) is None
    assert await store.passages_of(unknown, CALLER) == []
    assert await store.passages([PassageId(name)], CALLER) == []


async def test_put_document_id_that_is_no_uuid_is_refused(store: VectorStore) -> None:
    guide = sample("guide", "alpha")
    object.__setattr__(guide.document.info, "id", DocumentId("guide-1"))

    with pytest.raises(ValueError, match="not a UUID"):
        await guide.put(store)


async def test_passages_come_in_the_order_asked_for(store: VectorStore) -> None:
    guide = await sample("guide", "a", "b", "c").put(store)
    other = await sample("other", "d").put(store)
    a, b, c = guide.bare
    (d,) = other.bare

    found = await store.passages([c.id, PassageId("gone"), d.id, a.id, c.id], CALLER)

    assert found == [c, d, a, c]
    assert await store.passages([], CALLER) == []
    assert await store.passages([b.id], CALLER) == [b]


async def test_passages_of_are_in_the_order_of_the_text(store: VectorStore) -> None:
    guide = await sample("guide", *(f"part {n} " for n in range(120))).put(store)

    assert [passage.ordinal for passage in await store.passages_of(guide.id, CALLER)] == list(range(120))


async def test_page_walks_all_documents_in_order_of_ids(store: VectorStore) -> None:
    guides = [await sample(f"guide {n}", "alpha").put(store) for n in range(7)]
    await sample("foreign", "alpha", access=Access("rival")).put(store)
    expected = sorted((guide.info for guide in guides), key=lambda info: info.id)

    pages = [await store.page(CALLER, limit=3)]
    while pages[-1]:
        pages.append(await store.page(CALLER, after=pages[-1][-1].id, limit=3))

    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert list(itertools.chain(*pages)) == expected
    assert await store.page(CALLER) == expected


async def test_page_after_an_id_that_is_gone_goes_on_behind_it(store: VectorStore) -> None:
    for n in range(5):
        await sample(f"guide {n}", "alpha").put(store)
    ids = [info.id for info in await store.page(CALLER)]
    await store.delete(ids[2], CALLER)

    assert [info.id for info in await store.page(CALLER, after=ids[2])] == ids[3:]
    last = DocumentId("ffffffff-ffff-ffff-ffff-ffffffffffff")
    assert await store.page(CALLER, after=last) == []


async def test_page_after_what_is_no_id_is_refused(store: VectorStore) -> None:
    with pytest.raises(InvalidRequestError, match="page_token"):
        await store.page(CALLER, after=DocumentId("next"))


async def test_term_statistics_are_exact(store: VectorStore) -> None:
    await sample("guide", "alpha beta", "alpha alpha alpha", "gamma").put(store)
    await sample("secret", "alpha", access=Access(TENANT, ("board",))).put(store)
    await sample("foreign", "alpha beta", access=Access("rival")).put(store)
    alpha, beta, gamma, omega = (ENCODER.terms(word)[0] for word in ("alpha", "beta", "gamma", "omega"))

    found = await store.term_statistics([omega, alpha, gamma, beta], CALLER)

    assert found.passages == 3
    assert found.frequencies == {alpha: 2, beta: 1, gamma: 1, omega: 0}
    member = await store.term_statistics([alpha], Caller("eve", TENANT, ("board",)))
    assert (member.passages, member.frequencies) == (4, {alpha: 3})
    assert (await store.term_statistics([TermId(0)], CALLER)).frequencies == {TermId(0): 0}
    assert (await store.term_statistics([], CALLER)).frequencies == {}


async def test_collections_count_documents_of_every_tenant(store: VectorStore) -> None:
    assert await store.collections() == {}
    await sample("guide", "alpha", "beta").put(store)
    await sample("secret", "alpha", access=Access(TENANT, ("board",))).put(store)
    await sample("foreign", "alpha", access=Access("rival"), collection=OTHER).put(store)

    assert await store.collections() == await store.collections() == {COLLECTION: 2, OTHER: 1}
    assert await store.delete(document_id("foreign"), Caller("x", "rival")) == 1
    assert await store.collections() == {COLLECTION: 2}


# --- delete and close ---


async def test_delete_removes_document_and_passages(store: VectorStore) -> None:
    guide = await sample("guide", "alpha", "alpha beta").put(store)
    other = await sample("other", "alpha").put(store)

    assert await store.delete(guide.id, CALLER) == 2

    assert await store.info(guide.id, CALLER) is None
    assert await store.passages_of(guide.id, CALLER) == []
    assert await store.passages([passage.id for passage in guide.bare], CALLER) == []
    assert [hit.passage for hit in await store.search(query("alpha beta"))] == other.bare
    assert await store.page(CALLER) == [other.info]
    assert await store.delete(guide.id, CALLER) is None
    await guide.put(store)
    assert await store.passages_of(guide.id, CALLER) == guide.bare


async def raw_points(store: VectorStore) -> list[Any]:
    """All points, with payload and vectors, past the store's own filters."""
    if isinstance(store, EdgeStore):
        from qdrant_edge import ScrollRequest  # noqa: PLC0415 - only here, and only for this

        request = ScrollRequest(limit=1000, with_payload=True, with_vector=True)
        return await store._call(lambda shard: shard.scroll(request)[0])
    assert isinstance(store, ServerStore)
    return (await store._client.scroll("answerdesk_1", limit=1000, with_payload=True, with_vectors=True))[0]


@pytest.mark.parametrize("name", ["edge", "server"])
async def test_delete_and_replacement_leave_nothing_behind(name: str, folder: Path) -> None:
    store = await STORES[name](folder)
    guide = await sample("guide", "alpha", "beta", "gamma").put(store)
    await sample("guide", "delta", version="2").put(store)

    points = await raw_points(store)
    assert sorted(point.payload["kind"] for point in points) == ["document", "passage"]
    assert {point.payload["version"] for point in points} == {"2"}
    assert not any("alpha" in str(point.payload) for point in points)

    await store.delete(guide.id, CALLER)
    assert await raw_points(store) == []
    await store.close()


CALLS: dict[str, Callable[[VectorStore], Awaitable[object]]] = {
    "put": lambda store: sample("guide", "alpha").put(store),
    "delete": lambda store: store.delete(document_id("guide"), CALLER),
    "info": lambda store: store.info(document_id("guide"), CALLER),
    "exists": lambda store: store.exists(document_id("guide")),
    "document": lambda store: store.document(document_id("guide"), CALLER),
    "page": lambda store: store.page(CALLER),
    "passages": lambda store: store.passages([], CALLER),
    "passages_of": lambda store: store.passages_of(document_id("guide"), CALLER),
    "search": lambda store: store.search(query("")),
    "term_statistics": lambda store: store.term_statistics((), CALLER),
    "collections": lambda store: store.collections(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_closed_store_is_unavailable(store: VectorStore, call: str) -> None:
    await store.close()
    await store.close()

    with pytest.raises(RetrievalUnavailableError, match="closed"):
        await CALLS[call](store)
