"""RAG, CAG and hybrid, over the fake store filled by the real pipeline."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from agent_service.errors import CollectionNotReadyError, RetrievalUnavailableError, UnknownCollectionError
from agent_service.ports import ContextStrategy
from agent_service.retrieval.context import estimate_tokens
from agent_service.retrieval.stores.memory import InMemoryStore
from agent_service.retrieval.strategies.cag import PREPARED_CONTEXTS, CagStrategy
from agent_service.retrieval.strategies.hybrid import HybridStrategy
from agent_service.retrieval.strategies.rag import RagStrategy
from agent_service.types import (
    CachedPassage,
    Caller,
    CollectionName,
    Context,
    DocumentId,
    DocumentInfo,
    Passage,
    PassageId,
    Question,
    Strategy,
)
from tests.support.shelf import BILLING, LOCAL, POLICY, TECHNICAL, Shelf, ask

STAFF = Caller("ada", "default", ("staff",))
UMBRELLA = Caller("eve", "umbrella")

PLANS = "# Plans\n\nThe Enterprise plan costs EUR 1,200 a month.\n"
UPGRADES = "# Upgrades\n\nUpgrades from Basic take effect at once.\n"
TAX = "# Tax\n\nGerman customers pay 19 % VAT on invoices.\n"


def rag(shelf: Shelf, *, budget_tokens: int = 1_000) -> RagStrategy:
    return RagStrategy(shelf.searcher, budget_tokens=budget_tokens)


def cag(shelf: Shelf, *, budget_tokens: int = 1_000) -> CagStrategy:
    return CagStrategy(shelf.store, shelf.searcher, shelf.support, budget_tokens=budget_tokens)


def hybrid(shelf: Shelf, *, budget_tokens: int = 1_000) -> HybridStrategy:
    return HybridStrategy(
        rag(shelf, budget_tokens=budget_tokens), shelf.store, shelf.support, budget_tokens=budget_tokens
    )


MAKERS: list[Callable[[Shelf], ContextStrategy]] = [rag, cag, hybrid]


@pytest.fixture
async def shelf() -> Shelf:
    shelf = Shelf(BILLING, POLICY, TECHNICAL)
    for uri, text in (("plans.md", PLANS), ("upgrades.md", UPGRADES), ("tax.md", TAX)):
        await shelf.put(uri, text)
    return shelf


async def gather(strategy: ContextStrategy, question: Question | str, cached: Sequence[CachedPassage] = ()) -> Context:
    return await strategy.gather(ask(question) if isinstance(question, str) else question, [BILLING], cached)


def uris(context: Context) -> list[str]:
    return [source.passage.uri for source in context.sources]


def markers(context: Context) -> list[int]:
    return [source.marker for source in context.sources]


# --- all of them ---


@pytest.mark.parametrize("make", MAKERS)
async def test_a_collection_without_documents_is_not_ready(
    make: Callable[[Shelf], ContextStrategy], shelf: Shelf
) -> None:
    with pytest.raises(CollectionNotReadyError):
        await make(shelf).gather(ask("GDPR"), [POLICY], ())


@pytest.mark.parametrize("make", MAKERS)
async def test_a_collection_that_nobody_knows_is_refused(
    make: Callable[[Shelf], ContextStrategy], shelf: Shelf
) -> None:
    with pytest.raises(UnknownCollectionError):
        await make(shelf).gather(ask("GDPR"), [CollectionName("x")], ())


@pytest.mark.parametrize("make", MAKERS)
async def test_a_store_that_is_away_fails_the_gathering(make: Callable[[Shelf], ContextStrategy], shelf: Shelf) -> None:
    shelf.store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await gather(make(shelf), "Enterprise plan")


@pytest.mark.parametrize("make", MAKERS)
async def test_a_caller_who_may_read_nothing_gets_no_sources(
    make: Callable[[Shelf], ContextStrategy], shelf: Shelf
) -> None:
    context = await gather(make(shelf), ask("Enterprise plan", caller=UMBRELLA))

    assert (context.sources, context.considered, context.cached, context.support) == ((), (), (), 0)


@pytest.mark.parametrize("make", MAKERS)
async def test_sources_are_numbered_from_one(make: Callable[[Shelf], ContextStrategy], shelf: Shelf) -> None:
    context = await gather(make(shelf), "Enterprise plan, Basic upgrades, invoices")

    assert markers(context) == [1, 2, 3]
    assert 0 <= context.support <= 1
    assert context.reason


# --- rag ---


async def test_rag_searches_every_time_whatever_is_cached(shelf: Shelf) -> None:
    strategy = rag(shelf)
    first = await gather(strategy, "Enterprise plan")
    cached = [CachedPassage(hit.passage.document_id, hit.passage.version, hit.passage.id) for hit in first.considered]

    second = await gather(strategy, "Upgrades from Basic", cached)

    assert (first.strategy, uris(first), first.cache_hit) == (Strategy.RAG, ["plans.md"], False)
    assert (uris(second), second.cache_hit, second.cached) == (["upgrades.md"], False, ())
    assert not second.stable


async def test_rag_shows_a_new_version_and_a_delete_at_once(shelf: Shelf) -> None:
    strategy = rag(shelf)
    info = await shelf.put("plans.md", PLANS.replace("1,200", "1,500"))
    assert "1,500" in (await gather(strategy, "Enterprise plan")).sources[0].passage.text

    await shelf.remove(info)

    assert (await gather(strategy, "Enterprise plan")).sources == ()


async def test_rag_merges_the_neighbours_it_finds(shelf: Shelf) -> None:
    await shelf.put("long.md", "# Zeppelins\n\n" + "\n\n".join(f"Zeppelin number {n} flies. " * 20 for n in range(8)))

    context = await gather(rag(shelf, budget_tokens=100_000), "zeppelin flies")

    assert len(context.considered) > len(context.sources)
    for source in context.sources:
        assert len(source.passage.text) == source.passage.span.end - source.passage.span.start


async def test_rag_keeps_to_its_budget(shelf: Shelf) -> None:
    for number in range(6):
        await shelf.put(f"{number}.md", f"Zeppelins of kind {number} fly. " * 10)

    context = await gather(rag(shelf, budget_tokens=200), "zeppelins fly")

    assert len(context.sources) > 1
    assert sum(estimate_tokens(len(source.passage.text)) for source in context.sources) <= 200
    assert len(context.considered) > len(context.sources)


# --- cag ---


async def test_cag_offers_every_document_whole_and_before_the_question(shelf: Shelf) -> None:
    context = await gather(cag(shelf), "Enterprise plan")

    assert context.strategy is Strategy.CAG
    assert context.stable
    assert {source.passage.uri: source.passage.text for source in context.sources} == {
        "plans.md": PLANS,
        "upgrades.md": UPGRADES,
        "tax.md": TAX,
    }


async def test_cag_offers_the_documents_in_the_same_order_whatever_is_asked(shelf: Shelf) -> None:
    orders = {
        tuple(uris(await gather(cag(shelf), question)))
        for question in ("Enterprise plan", "VAT on invoices", "Upgrades", "Who won the World Cup?", "And?")
    }

    assert len(orders) == 1


async def test_cag_offers_documents_whose_sentences_can_be_quoted(shelf: Shelf) -> None:
    context = await gather(cag(shelf), "Enterprise plan")

    for source in context.sources:
        assert source.passage.sentences
        for sentence in source.passage.sentences:
            assert source.passage.text[sentence.span.start : sentence.span.end].strip()


async def test_cag_prepares_a_context_once(shelf: Shelf) -> None:
    strategy = cag(shelf)

    hits = [(await gather(strategy, question)).cache_hit for question in ("Enterprise plan", "VAT", "Enterprise plan")]

    assert hits == [False, True, True]


async def test_cag_measures_the_support_of_each_question_anew(shelf: Shelf) -> None:
    strategy = cag(shelf)

    supports = [
        (await gather(strategy, text)).support for text in ("Enterprise plan", "Enterprise zeppelins", "zeppelins")
    ]

    assert supports[0] == 1
    assert 0 < supports[1] < 1
    assert supports[2] == 0


async def test_cag_shows_a_new_version_at_once(shelf: Shelf) -> None:
    strategy = cag(shelf)
    await gather(strategy, "Enterprise plan")

    await shelf.put("plans.md", PLANS.replace("1,200", "1,500"))
    context = await gather(strategy, "Enterprise plan")

    texts = "".join(source.passage.text for source in context.sources)
    assert not context.cache_hit
    assert "1,500" in texts
    assert "1,200" not in texts
    assert len(context.sources) == 3


async def test_cag_shows_a_delete_at_once(shelf: Shelf) -> None:
    strategy = cag(shelf)
    info = await shelf.put("plans.md", PLANS + "\nMore.\n")
    await gather(strategy, "Enterprise plan")

    await shelf.remove(info)
    context = await gather(strategy, "Enterprise plan")

    assert sorted(uris(context)) == ["tax.md", "upgrades.md"]
    assert context.support < 1


async def test_cag_shows_a_new_document_at_once(shelf: Shelf) -> None:
    strategy = cag(shelf)
    await gather(strategy, "Enterprise plan")

    await shelf.put("new.md", "Discounts are rare.\n")

    assert "new.md" in uris(await gather(strategy, "Enterprise plan"))


async def test_cag_shows_a_document_that_came_back_as_it_now_is(shelf: Shelf) -> None:
    strategy = cag(shelf)
    info = await shelf.put("new.md", "Discounts are rare.\n")
    await gather(strategy, "discounts")
    await shelf.remove(info)
    await gather(strategy, "discounts")
    await shelf.put("new.md", "Discounts are rare.\n")

    context = await gather(strategy, "discounts")

    assert "new.md" in uris(context)
    assert context.support == 1


async def test_cag_shows_each_caller_only_what_they_may_read(shelf: Shelf) -> None:
    strategy = cag(shelf)
    await shelf.put("staff.md", "Staff pay nothing.\n", groups=("staff",))
    await shelf.put("theirs.md", "Umbrella pays double.\n", tenant="umbrella")

    seen = [
        sorted(uris(await gather(strategy, ask("Who pays?", caller=caller))))
        for caller in (STAFF, LOCAL, UMBRELLA, LOCAL, STAFF)
    ]

    ours = ["plans.md", "tax.md", "upgrades.md"]
    assert seen == [sorted([*ours, "staff.md"]), ours, ["theirs.md"], ours, sorted([*ours, "staff.md"])]


async def test_cag_prepares_once_for_callers_who_see_the_same(shelf: Shelf) -> None:
    strategy = cag(shelf)
    await gather(strategy, ask("Enterprise plan", caller=LOCAL))

    assert (await gather(strategy, ask("Enterprise plan", caller=STAFF))).cache_hit


async def test_cag_shows_a_change_of_access_at_once(shelf: Shelf) -> None:
    strategy = cag(shelf)
    await gather(strategy, "Enterprise plan")

    await shelf.put("plans.md", PLANS, groups=("staff",))

    assert "plans.md" not in uris(await gather(strategy, "Enterprise plan"))
    assert "plans.md" in uris(await gather(strategy, ask("Enterprise plan", caller=STAFF)))


async def test_cag_over_its_budget_offers_the_best_documents_by_search_and_says_so(shelf: Shelf) -> None:
    budget = estimate_tokens(len(PLANS)) + estimate_tokens(len(UPGRADES))

    context = await gather(cag(shelf, budget_tokens=budget), "the Enterprise plan, Enterprise a month; Basic upgrades")

    assert sorted(uris(context)) == ["plans.md", "upgrades.md"]
    assert {source.passage.text for source in context.sources} == {PLANS, UPGRADES}
    assert "budget" in context.reason
    assert context.stable


async def test_cag_within_its_budget_does_not_speak_of_it(shelf: Shelf) -> None:
    budget = sum(estimate_tokens(len(text)) for text in (PLANS, UPGRADES, TAX))

    context = await gather(cag(shelf, budget_tokens=budget), "Enterprise plan")

    assert len(context.sources) == 3
    assert "budget" not in context.reason


async def test_cag_over_its_budget_passes_over_a_document_that_does_not_fit(shelf: Shelf) -> None:
    await shelf.put("huge.md", "Zeppelin fares. " * 400)
    await shelf.put("small.md", "A zeppelin is small.\n")

    context = await gather(cag(shelf, budget_tokens=100), "zeppelin fares")

    assert uris(context) == ["small.md"]


async def test_cag_over_its_budget_keeps_the_order_of_documents_whatever_is_asked(shelf: Shelf) -> None:
    budget = estimate_tokens(len(PLANS)) + estimate_tokens(len(UPGRADES))
    strategy = cag(shelf, budget_tokens=budget)

    one = await gather(strategy, "Enterprise plan costs a month; Basic")
    other = await gather(strategy, "Basic upgrades take effect; Enterprise")

    assert uris(one) == uris(other)
    assert other.cache_hit


async def test_cag_offers_passages_where_no_document_fits_its_budget(shelf: Shelf) -> None:
    await shelf.put("tax.md", "# Tax\n\n" + "VAT is due on invoices. " * 200)

    context = await gather(cag(shelf, budget_tokens=300), "VAT on invoices are due")

    assert set(uris(context)) == {"tax.md"}
    assert "budget" in context.reason
    assert context.considered


@pytest.mark.parametrize("make", [rag, cag, hybrid], ids=["rag", "cag", "hybrid"])
async def test_neighbours_that_are_merged_keep_to_the_budget(
    make: Callable[..., ContextStrategy], shelf: Shelf
) -> None:
    await shelf.put("tax.md", "# Tax\n\n" + "VAT is due on invoices. " * 400)
    strategy = make(shelf, budget_tokens=600)

    first = await gather(strategy, "VAT is due on invoices")
    second = await gather(strategy, "VAT is due on invoices", first.cached)

    for context in (first, second):
        assert context.sources
        # Every passage alone fits the budget: only their merger can exceed it.
        assert all(estimate_tokens(len(hit.passage.text)) <= 600 for hit in context.considered)
        assert sum(estimate_tokens(len(source.passage.text)) for source in context.sources) <= 600


async def test_cag_over_its_budget_offers_nothing_for_a_question_about_nothing(shelf: Shelf) -> None:
    context = await gather(cag(shelf, budget_tokens=10), "zeppelins")

    assert (context.sources, context.support) == ((), 0)


async def test_cag_offers_at_most_the_fifty_sources_that_the_contract_allows(shelf: Shelf) -> None:
    for number in range(60):
        await shelf.put(f"{number}.md", f"Note {number}.\n")

    context = await gather(cag(shelf), "Enterprise plan")

    assert len(context.sources) <= 50


async def test_cag_over_its_budget_says_so_however_many_documents_there_are(shelf: Shelf) -> None:
    for number in range(220):
        await shelf.put(f"{number}.md", f"Note {number}.\n")
    texts = [PLANS, UPGRADES, TAX, *(f"Note {number}.\n" for number in range(220))]
    budget = sum(estimate_tokens(len(text)) for text in texts) - 1

    assert "budget" in (await gather(cag(shelf, budget_tokens=budget), "Enterprise plan")).reason


async def test_cag_keeps_a_bounded_number_of_prepared_contexts_the_least_used_out_first(shelf: Shelf) -> None:
    strategy = cag(shelf)
    callers = [Caller("ada", "default", (f"g{number}",)) for number in range(PREPARED_CONTEXTS + 1)]
    for number, caller in enumerate(callers):
        await shelf.put(f"{number}.md", f"Note {number}.\n", groups=caller.groups)
    for caller in callers:
        await gather(strategy, ask("Enterprise plan", caller=caller))

    newest = await gather(strategy, ask("Enterprise plan", caller=callers[-1]))
    oldest = await gather(strategy, ask("Enterprise plan", caller=callers[0]))

    assert newest.cache_hit
    assert not oldest.cache_hit


class InterruptedStore(InMemoryStore):
    """A store in which something else happens right before a document is read. `then` runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[], Awaitable[object]] | None = None

    async def passages_of(self, document_id: DocumentId, caller: Caller) -> list[Passage]:
        then, self.then = self.then, None
        if then is not None:
            await then()
        return await super().passages_of(document_id, caller)


@pytest.mark.parametrize("what", ["delete", "replace"])
async def test_cag_leaves_out_what_goes_while_it_is_read_and_prepares_anew_then(what: str) -> None:
    store = InterruptedStore()
    shelf = Shelf(store=store)
    info = await shelf.put("plans.md", PLANS)
    strategy = cag(shelf)

    async def interfere() -> DocumentInfo | None:
        if what == "delete":
            await shelf.remove(info)
            return None
        return await shelf.put("plans.md", PLANS.replace("1,200", "1,500"))

    await shelf.put("tax.md", TAX)
    store.then = interfere
    during = await gather(strategy, "Enterprise plan")
    # What was seen during the change is whole, old or new; afterwards only the new is.
    for source in during.sources:
        assert source.passage.text in {PLANS, TAX, PLANS.replace("1,200", "1,500")}

    await shelf.put("plans.md", PLANS + "\nMore.\n")
    after = await gather(strategy, "Enterprise plan")

    assert {source.passage.text for source in after.sources} == {PLANS + "\nMore.\n", TAX}


# --- hybrid ---


async def test_hybrid_searches_on_the_first_question_and_keeps_what_it_found(shelf: Shelf) -> None:
    context = await gather(hybrid(shelf), "Enterprise plan")

    assert context.strategy is Strategy.HYBRID
    assert uris(context) == ["plans.md"]
    assert not context.cache_hit
    assert [entry.passage_id for entry in context.cached] == [hit.passage.id for hit in context.considered]
    (entry,) = context.cached
    passage = context.sources[0].passage
    assert entry == CachedPassage(passage.document_id, passage.version, passage.id)


async def test_hybrid_keeps_its_passages_while_they_support_the_follow_ups(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    first = await gather(strategy, "Enterprise plan")
    # Another document that a search would find for the follow-up, too.
    await shelf.put("month.md", "Every Enterprise month has days.\n")

    second = await gather(strategy, "Enterprise costs a month", first.cached)

    assert uris(second) == ["plans.md"]
    assert second.cache_hit
    assert second.cached == first.cached
    assert second.strategy is Strategy.HYBRID
    assert second.support == 1


async def test_hybrid_searches_again_when_the_subject_changes(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    first = await gather(strategy, "Enterprise plan")

    second = await gather(strategy, "VAT on invoices", first.cached)

    assert uris(second) == ["tax.md"]
    assert not second.cache_hit
    assert [entry.document_id for entry in second.cached] == [second.sources[0].passage.document_id]
    assert second.reason != first.reason


async def test_hybrid_keeps_its_passages_for_a_question_of_stop_words_only(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    first = await gather(strategy, "Enterprise plan")

    for question in (ask("And?"), ask("And?", previous="Enterprise plan")):
        second = await gather(strategy, question, first.cached)
        assert (uris(second), second.cache_hit) == (["plans.md"], True)


async def test_hybrid_drops_a_replaced_document_and_searches_again(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    first = await gather(strategy, "Enterprise plan")

    await shelf.put("plans.md", PLANS.replace("1,200", "1,500"))
    second = await gather(strategy, "Enterprise plan", first.cached)

    assert not second.cache_hit
    assert [source.passage.text for source in second.sources] == [PLANS.replace("1,200", "1,500")]
    assert set(second.cached).isdisjoint(first.cached)


async def test_hybrid_drops_a_deleted_document(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    info = await shelf.put("fees.md", "Late fees are EUR 5.\n")
    first = await gather(strategy, "late fees")

    await shelf.remove(info)
    second = await gather(strategy, "late fees", first.cached)

    assert second.sources == ()
    assert second.cached == ()


async def test_hybrid_keeps_the_rest_where_one_of_its_documents_goes(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    info = await shelf.put("fees.md", "Late fees of Enterprise are EUR 5.\n")
    first = await gather(strategy, "Enterprise")
    assert sorted(uris(first)) == ["fees.md", "plans.md"]

    await shelf.remove(info)
    second = await gather(strategy, "Enterprise", first.cached)

    assert (uris(second), second.cache_hit) == (["plans.md"], True)
    assert [entry.document_id for entry in second.cached] == [second.sources[0].passage.document_id]


async def test_hybrid_rereads_its_passages_as_the_caller_of_this_turn(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    await shelf.put("staff.md", "Staff discounts are 90 %.\n", groups=("staff",))
    first = await gather(strategy, ask("staff discounts", caller=STAFF))
    assert uris(first) == ["staff.md"]

    second = await gather(strategy, ask("staff discounts", caller=LOCAL), first.cached)

    assert (second.sources, second.considered, second.cached) == ((), (), ())


async def test_hybrid_drops_what_was_closed_to_the_caller_since(shelf: Shelf) -> None:
    strategy = hybrid(shelf)
    first = await gather(strategy, "Enterprise plan")

    await shelf.put("plans.md", PLANS, groups=("staff",))

    assert (await gather(strategy, "Enterprise plan", first.cached)).sources == ()


async def test_hybrid_does_not_take_passages_of_collections_that_are_not_the_agents(shelf: Shelf) -> None:
    info = await shelf.put("gdpr.md", "GDPR requests take 30 days.\n", collection="policy")
    (passage,) = await shelf.passages(info)

    context = await gather(hybrid(shelf), "GDPR requests", [CachedPassage(info.id, info.version, passage.id)])

    assert (context.sources, context.cache_hit) == ((), False)


@pytest.mark.parametrize("passage_id", ["", "x", "not-a-uuid", "00000000-0000-0000-0000-000000000000", "x" * 5_000])
async def test_hybrid_ignores_ids_that_are_none(shelf: Shelf, passage_id: str) -> None:
    cached = [CachedPassage(DocumentId("d"), "v", PassageId(passage_id))]

    context = await gather(hybrid(shelf), "Enterprise plan", cached)

    assert (uris(context), context.cache_hit) == (["plans.md"], False)


async def test_hybrid_offers_kept_passages_within_its_budget(shelf: Shelf) -> None:
    for number in range(5):
        await shelf.put(f"{number}.md", f"Zeppelins of kind {number} fly. " * 10)
    strategy = hybrid(shelf, budget_tokens=170)
    first = await gather(strategy, "zeppelins fly")

    second = await gather(strategy, "zeppelins fly", first.cached)

    assert second.cache_hit
    assert markers(second) == [1, 2]
    assert uris(second) == uris(first)


async def test_hybrid_keeps_no_more_than_the_state_holds(shelf: Shelf) -> None:
    for number in range(60):
        await shelf.put(f"{number}.md", f"Zeppelins of kind {number} fly.\n")

    assert 0 < len((await gather(hybrid(shelf), "zeppelins fly")).cached) <= 32
