import pytest

from agent_service.errors import CollectionNotReadyError, RetrievalUnavailableError
from agent_service.retrieval.routing import Specialist, SupportRouter
from agent_service.types import AgentName, Caller, CollectionName
from tests.support.shelf import BILLING, ENCODER, POLICY, TECHNICAL, Shelf, ask

ORCHESTRATOR = AgentName("orchestrator")
BILLS = AgentName("billing")
TECHS = AgentName("technical")
POLICIES = AgentName("policy")

TEAM = (
    Specialist(BILLS, "Plans and prices, invoices, refunds.", (BILLING,)),
    Specialist(TECHS, "The API, webhooks, time-outs, errors.", (TECHNICAL,)),
    Specialist(POLICIES, "Privacy and GDPR, retention.", (POLICY,)),
)


@pytest.fixture
async def shelf() -> Shelf:
    shelf = Shelf(BILLING, TECHNICAL, POLICY)
    await shelf.put("plans.md", "# Plans\n\nThe Enterprise plan costs EUR 1,200 a month. Upgrades are immediate.\n")
    await shelf.put("refunds.md", "# Refunds\n\nRefunds of invoices are paid within 14 days.\n")
    await shelf.put("timeouts.md", "# Time-outs\n\nAPI requests time out after 30 seconds.\n", collection="technical")
    await shelf.put("hooks.md", "# Webhooks\n\nA webhook is delivered with a signature.\n", collection="technical")
    await shelf.put("gdpr.md", "# GDPR\n\nWe comply with the GDPR. Personal data stays here.\n", collection="policy")
    return shelf


def router(shelf: Shelf, team: tuple[Specialist, ...] = TEAM) -> SupportRouter:
    return SupportRouter(shelf.store, ENCODER, shelf.support, team)


@pytest.mark.parametrize("current", [ORCHESTRATOR, *(specialist.name for specialist in TEAM)])
@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("What does the Enterprise plan cost?", BILLS),
        ("When are refunds of invoices paid?", BILLS),
        ("Why do API requests time out after seconds?", TECHS),
        ("How is a webhook signature delivered?", TECHS),
        ("Do you comply with GDPR?", POLICIES),
    ],
)
async def test_a_question_goes_to_the_specialist_whose_documents_support_it(
    shelf: Shelf, question: str, best: AgentName, current: AgentName
) -> None:
    assert await router(shelf).route(ask(question), current) == best


@pytest.mark.parametrize("question", ["Who won the 1998 World Cup?", "zeppelins over Lisbon", "\U0001f600"])
async def test_a_question_about_nothing_that_is_there_goes_to_nobody(shelf: Shelf, question: str) -> None:
    assert await router(shelf).route(ask(question), ORCHESTRATOR) is None


async def test_a_specialist_keeps_a_question_that_another_supports_as_well() -> None:
    shelf = Shelf()
    await shelf.put("a.md", "# Limits\n\nThe limit is 100 a minute.\n", collection="billing")
    await shelf.put("b.md", "# Limits\n\nThe limit is 100 a minute.\n", collection="technical")
    route = router(shelf).route

    assert await route(ask("What is the limit a minute?"), BILLS) == BILLS
    assert await route(ask("What is the limit a minute?"), TECHS) == TECHS
    assert await route(ask("What is the limit a minute?"), ORCHESTRATOR) in {BILLS, TECHS}


async def test_a_specialist_gives_up_a_question_whose_subject_is_clearly_anothers(shelf: Shelf) -> None:
    question = ask("How is a webhook delivered?", previous="What does the Enterprise plan cost?")

    assert await router(shelf).route(question, BILLS) == TECHS


@pytest.mark.parametrize("question", ["And?", "the of", "??"])
async def test_a_question_of_stop_words_only_changes_no_subject(shelf: Shelf, question: str) -> None:
    asked = ask(question, previous="Do you comply with GDPR?")

    assert await router(shelf).route(asked, BILLS) == BILLS
    assert await router(shelf).route(ask(question), ORCHESTRATOR) is None


async def test_a_follow_up_that_leans_on_the_message_before_stays_with_its_specialist(shelf: Shelf) -> None:
    asked = ask("And are upgrades of it immediate?", previous="What does the Enterprise plan cost?")

    assert await router(shelf).route(asked, BILLS) == BILLS


async def test_documents_that_the_caller_may_not_read_do_not_route(shelf: Shelf) -> None:
    await shelf.put("secret.md", "Zeppelins fly over Lisbon.\n", groups=("staff",))
    await shelf.put("theirs.md", "Zeppelins fly over Lisbon.\n", tenant="umbrella", collection="policy")
    question = "Do zeppelins fly over Lisbon?"

    assert await router(shelf).route(ask(question), ORCHESTRATOR) is None
    member = Caller("ada", "default", ("staff",))
    assert await router(shelf).route(ask(question, caller=member), ORCHESTRATOR) == BILLS
    assert await router(shelf).route(ask(question, caller=Caller("eve", "umbrella")), ORCHESTRATOR) == POLICIES


async def test_a_description_decides_between_equal_documents() -> None:
    shelf = Shelf()
    for collection in ("billing", "technical"):
        await shelf.put("a.md", "# Errors\n\nErrors have a code.\n", collection=collection)

    assert await router(shelf).route(ask("Which errors have a code?"), ORCHESTRATOR) == TECHS


async def test_a_specialist_without_documents_is_never_chosen() -> None:
    shelf = Shelf()
    await shelf.put("a.md", "# Webhooks\n\nA webhook costs nothing.\n", collection="billing")

    assert await router(shelf).route(ask("What does a webhook cost?"), ORCHESTRATOR) == BILLS


async def test_a_specialist_may_read_several_collections(shelf: Shelf) -> None:
    everything = Specialist(AgentName("all"), "Everything.", (BILLING, POLICY))

    chosen = await router(shelf, (everything, TEAM[1])).route(ask("Do you comply with GDPR?"), TECHS)

    assert chosen == "all"


async def test_routing_over_an_empty_store_is_not_ready() -> None:
    with pytest.raises(CollectionNotReadyError) as raised:
        await router(Shelf()).route(ask("What does it cost?", previous=""), ORCHESTRATOR)

    assert set(raised.value.collections) == {"billing", "technical", "policy"}


async def test_routing_needs_a_collection_of_one_of_the_specialists() -> None:
    shelf = Shelf()
    await shelf.put("a.md", "Costs.\n", collection=CollectionName("other"))

    with pytest.raises(CollectionNotReadyError):
        await router(shelf).route(ask("What does it cost?"), ORCHESTRATOR)


async def test_a_store_that_is_away_fails_the_routing(shelf: Shelf) -> None:
    shelf.store.unavailable = True

    with pytest.raises(RetrievalUnavailableError):
        await router(shelf).route(ask("What does the Enterprise plan cost?"), ORCHESTRATOR)
