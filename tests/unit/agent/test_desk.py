"""The table of one turn: who holds it, what they read, what was written and announced."""

import pytest

from agent_service.team.desk import TurnDesk
from agent_service.types import (
    AgentName,
    AgentSelected,
    Context,
    Message,
    Outcome,
    Question,
    Role,
    Sources,
    Stage,
    Strategy,
    Token,
    TurnRequest,
)
from tests.support.answerers import REQUEST
from tests.support.briefings import ListEvents, source

BILLING, POLICY = AgentName("billing"), AgentName("policy")
CONTEXT = Context(Strategy.RAG, (source(1, "Forty."),))
BARE = Context(Strategy.HYBRID, ())


class HandClock:
    """A clock that the test moves by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def events() -> ListEvents:
    return ListEvents()


@pytest.fixture
def desk(events: ListEvents) -> TurnDesk:
    return TurnDesk(REQUEST, events)


def test_nothing_is_emitted_before_the_answering_agent_is_known(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.take_over(POLICY, BARE)

    assert events.events == []


def test_the_first_text_announces_agent_and_sources_before_it(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.write("It ")
    desk.write("costs")

    assert events.events == [
        AgentSelected(BILLING, Strategy.RAG),
        Sources(CONTEXT.sources),
        Token("It "),
        Token("costs"),
    ]
    assert desk.answer == "It costs"


def test_an_agent_without_sources_announces_none(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, BARE)
    desk.write("Nothing.")

    assert events.events == [AgentSelected(BILLING, Strategy.HYBRID), Token("Nothing.")]


def test_an_agent_without_documents_has_no_strategy(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, None)
    desk.announce()

    assert desk.strategy is None
    assert desk.sources == ()
    assert events.events == [AgentSelected(BILLING, None)]


def test_announcing_twice_says_it_once(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.announce()
    desk.announce()

    assert len(events.events) == 2


def test_an_agent_that_takes_over_in_the_middle_is_announced_too(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.write("One moment. ")
    desk.take_over(POLICY, BARE)
    desk.write("No.")

    assert events.events[-2:] == [AgentSelected(POLICY, Strategy.HYBRID), Token("No.")]


def test_the_briefing_follows_the_agent_that_holds_the_turn(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)
    assert (desk.agent, desk.sources) == (BILLING, CONTEXT.sources)

    desk.take_over(POLICY, BARE)

    assert (desk.agent, desk.sources) == (POLICY, ())
    assert desk.agents == [BILLING, POLICY]


def test_the_question_has_the_users_message_before_it() -> None:
    history = (Message(Role.USER, "Hello"), Message(Role.USER, "Prices?"), Message(Role.ASSISTANT, "Which?"))
    request = TurnRequest(REQUEST.request_id, "Enterprise", REQUEST.caller, history)

    desk = TurnDesk(request, ListEvents())

    assert desk.question == Question("Enterprise", "Prices?", REQUEST.caller)


def test_a_special_outcome_is_kept(desk: TurnDesk) -> None:
    assert desk.special_outcome is None
    desk.ended(Outcome.REFUSED)
    assert desk.special_outcome is Outcome.REFUSED


def test_a_stage_is_timed_in_milliseconds_and_belongs_to_the_agent_at_the_table() -> None:
    clock = HandClock()
    desk = TurnDesk(REQUEST, ListEvents(), clock)
    started = desk.clock()
    clock.now_s = 0.25
    desk.stage("retrieval", started)
    desk.take_over(BILLING, CONTEXT)
    clock.now_s = 0.5
    desk.stage("model", started, tokens=7)

    assert desk.stages == [Stage("retrieval", 250.0), Stage("model", 500.0, agent="billing", tokens=7)]
