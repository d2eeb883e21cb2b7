import pytest

from agent_service.errors import CollectionNotReadyError, RetrievalUnavailableError, UnknownCollectionError
from agent_service.types import Caller, CollectionName
from tests.support.shelf import BILLING, LOCAL, POLICY, TECHNICAL, Shelf, ask


@pytest.fixture
async def shelf() -> Shelf:
    shelf = Shelf(BILLING, POLICY, TECHNICAL)
    await shelf.put("basic.md", "The Basic plan has five seats.\n")
    await shelf.put("upgrade.md", "Upgrades take effect at once.\n")
    await shelf.put("privacy.md", "Personal data stays in Frankfurt.\n", collection="policy")
    return shelf


async def uris(shelf: Shelf, text: str, *collections: CollectionName, limit: int = 8, previous: str = "") -> list[str]:
    found = await shelf.searcher.search(ask(text, previous=previous), collections, limit)
    return [hit.passage.uri for hit in found.hits]


async def test_search_finds_the_passages_that_share_words_with_the_question(shelf: Shelf) -> None:
    assert await uris(shelf, "How many seats has Basic?") == ["basic.md"]


async def test_search_adds_the_users_previous_message(shelf: Shelf) -> None:
    assert set(await uris(shelf, "Can I upgrade?", previous="seats of Basic")) == {"upgrade.md", "basic.md"}
    assert await uris(shelf, "Can I upgrade?") == ["upgrade.md"]


async def test_search_stays_within_the_collections_asked_for(shelf: Shelf) -> None:
    question = "plan upgrades personal data"

    assert set(await uris(shelf, question)) == {"basic.md", "upgrade.md", "privacy.md"}
    assert await uris(shelf, question, POLICY) == ["privacy.md"]
    assert set(await uris(shelf, question, POLICY, BILLING)) == {"basic.md", "upgrade.md", "privacy.md"}


async def test_search_returns_the_best_first_and_at_most_its_limit(shelf: Shelf) -> None:
    await shelf.put("seats.md", "Seats, seats: five Basic seats of the plan.\n")
    found = await shelf.searcher.search(ask("five seats of the Basic plan"), (), 8)

    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    assert await uris(shelf, "five seats of the Basic plan", limit=1) == [found.hits[0].passage.uri]


async def test_support_is_that_of_the_best_passage(shelf: Shelf) -> None:
    whole = await shelf.searcher.search(ask("Basic seats"), (), 8)
    half = await shelf.searcher.search(ask("Basic zeppelins"), (), 8)
    none = await shelf.searcher.search(ask("zeppelins"), (), 8)

    assert whole.support == 1
    assert 0 < half.support < 1
    assert (none.hits, none.support) == ((), 0)


async def test_a_question_of_stop_words_only_finds_nothing(shelf: Shelf) -> None:
    found = await shelf.searcher.search(ask("And the?"), (), 8)

    assert (found.hits, found.support) == ((), 0)


async def test_a_question_of_stop_words_only_finds_what_the_message_before_it_found(shelf: Shelf) -> None:
    found = await shelf.searcher.search(ask("And the?", previous="Basic seats"), (), 8)

    assert [hit.passage.uri for hit in found.hits] == ["basic.md"]
    assert found.support == 1


async def test_search_shows_nothing_that_the_caller_may_not_read(shelf: Shelf) -> None:
    await shelf.put("theirs.md", "The Basic plan of Umbrella.\n", tenant="umbrella")
    await shelf.put("staff.md", "The Basic plan for staff.\n", groups=("staff",))

    assert await uris(shelf, "Basic plan") == ["basic.md"]
    member = await shelf.searcher.search(ask("Basic plan", caller=Caller("ada", "default", ("staff",))), (), 8)
    assert {hit.passage.uri for hit in member.hits} == {"basic.md", "staff.md"}


async def test_an_unknown_collection_is_named(shelf: Shelf) -> None:
    with pytest.raises(UnknownCollectionError) as raised:
        await uris(shelf, "seats", BILLING, CollectionName("bilings"))

    assert raised.value.name == "bilings"


async def test_a_collection_without_documents_is_not_ready_where_it_is_configured(shelf: Shelf) -> None:
    with pytest.raises(CollectionNotReadyError) as raised:
        await uris(shelf, "time-outs", TECHNICAL)

    assert raised.value.collections == ("technical",)


async def test_one_collection_with_documents_is_enough(shelf: Shelf) -> None:
    assert await uris(shelf, "seats", TECHNICAL, BILLING) == ["basic.md"]


async def test_a_collection_that_only_the_store_knows_is_searched(shelf: Shelf) -> None:
    await shelf.put("x.md", "Seats for all.\n", collection="extra")

    assert await uris(shelf, "seats", CollectionName("extra")) == ["x.md"]


async def test_an_empty_store_is_not_ready_for_a_search_of_everything() -> None:
    with pytest.raises(CollectionNotReadyError) as raised:
        await uris(Shelf(POLICY, BILLING), "seats")

    assert set(raised.value.collections) == {"billing", "policy"}


async def test_a_collection_whose_last_document_is_deleted_is_not_ready_again(shelf: Shelf) -> None:
    info = (await shelf.store.page(LOCAL, collections=[POLICY]))[0]
    await shelf.remove(info)

    with pytest.raises(CollectionNotReadyError):
        await shelf.searcher.require(LOCAL, [POLICY])


async def test_a_store_that_is_away_fails_the_search(shelf: Shelf) -> None:
    shelf.store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await uris(shelf, "seats")


async def test_another_tenants_collection_is_as_unknown_as_one_that_nobody_has(shelf: Shelf) -> None:
    await shelf.put("plan.md", "The merger is planned.\n", collection=CollectionName("merger"), tenant="other")

    for collection in ("merger", "nothing"):
        with pytest.raises(UnknownCollectionError):
            await uris(shelf, "merger", CollectionName(collection))
