"""The table of one turn: who holds it, what they read, what was written and announced."""

from dataclasses import replace

import pytest

from agent_service.team.desk import MOST_SOURCES, TurnDesk
from agent_service.types import (
    AgentName,
    AgentSelected,
    Context,
    Message,
    Outcome,
    Question,
    Role,
    ScoredPassage,
    Sources,
    Stage,
    Strategy,
    Token,
    Tool,
    ToolPhase,
    TurnRequest,
    Usage,
)
from tests.support.answerers import REQUEST
from tests.support.briefings import ListEvents, passage, source

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
        # A blank waits for what follows it.
        Token("It"),
        Token(" costs"),
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


# --- tools ---


def test_a_tool_call_is_told_after_the_agent_that_makes_it(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.tool("order_status", "call_1", ToolPhase.STARTED)
    desk.tool("order_status", "call_1", ToolPhase.COMPLETED)

    assert events.kinds == ["AgentSelected", "Sources", "Tool", "Tool"]
    assert events.events[2:] == [
        Tool("order_status", "call_1", ToolPhase.STARTED),
        Tool("order_status", "call_1", ToolPhase.COMPLETED),
    ]


def test_what_a_tool_finds_is_numbered_after_the_sources_and_told(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.announce()
    known = ScoredPassage(CONTEXT.sources[0].passage, 0.5)
    new = ScoredPassage(passage("Fifty.", name="fifty"), 0.9)

    offered = desk.found([new, known])

    assert [each.marker for each in offered] == [2, 1]
    assert desk.sources == (CONTEXT.sources[0], offered[0])
    assert events.events[-1] == Sources(desk.sources)


def test_what_was_found_before_keeps_its_number_and_is_not_told_again(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.announce()
    new = ScoredPassage(passage("Fifty.", name="fifty"), 0.9)
    first = desk.found([new])
    told = len(events.events)

    assert desk.found([new]) == first
    assert len(events.events) == told


def test_no_more_sources_than_the_contract_allows_are_on_the_table(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)

    offered = desk.found(ScoredPassage(passage(f"Number {n}.", name=f"n{n}"), 1.0) for n in range(60))

    assert len(desk.sources) == MOST_SOURCES
    assert len(offered) == MOST_SOURCES - 1


def test_what_was_found_leaves_with_the_agent_that_found_it(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.found([ScoredPassage(passage("Fifty.", name="fifty"), 0.9)])
    desk.take_over(POLICY, BARE)

    assert desk.sources == ()


def test_text_before_a_tool_call_and_after_it_are_two_paragraphs(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.begin_call(10)
    desk.write("Let me look.")
    desk.end_call(Usage(requests=1))
    desk.begin_call(10)
    desk.write("It is on its way.")

    assert desk.answer == "Let me look.\n\nIt is on its way."


# --- what may be shown ---


def test_a_marker_without_a_source_is_taken_out_and_counted(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)
    for piece in ("Forty [", "1] or ", "fifty [7", "].", " Ask [8]"):
        desk.write(piece)
    desk.flush()

    assert desk.answer == "Forty [1] or fifty. Ask"
    assert desk.dropped_markers == 2


def test_a_foreign_link_is_taken_out_and_counted(events: ListEvents) -> None:
    desk = TurnDesk(REQUEST, events, allows=lambda url: "rosterlund" in url)
    desk.take_over(BILLING, CONTEXT)
    desk.write("See https://docs.rosterlund.example/a and ![x](https://evil.example/?q=secret)")
    desk.flush()

    assert "https://docs.rosterlund.example/a" in desk.answer
    assert "evil.example" not in desk.answer
    assert desk.removed_links == 1


def test_counts_go_on_over_the_calls_of_a_turn(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)
    for _ in range(2):
        desk.begin_call(1)
        desk.write("Forty [9].")
        desk.end_call(Usage(requests=1))

    assert desk.dropped_markers == 2


def test_held_text_is_shown_in_one_piece_when_it_has_passed(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT, holds=True)
    desk.write("It ")
    desk.write("costs 40.")
    desk.flush()
    assert [event for event in events.events if isinstance(event, Token)] == []
    assert desk.held == "It costs 40."

    desk.release()

    assert events.events[-1] == Token("It costs 40.")
    assert desk.answer == "It costs 40."


def test_held_text_that_is_refused_is_never_shown(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT, holds=True)
    desk.write("My card is 4111.")
    desk.refuse("I cannot help with that.")

    assert [event for event in events.events if isinstance(event, Token)] == [Token("I cannot help with that.")]
    assert desk.special_outcome is Outcome.REFUSED
    assert desk.answer == "I cannot help with that."


# --- who answered ---


def test_the_model_that_answered_last_is_noted_and_retries_add_up(desk: TurnDesk) -> None:
    desk.asked("small", retries=2)
    desk.asked("large", retries=1)

    assert (desk.model, desk.retries) == ("large", 3)


# --- guardrails ---


def test_a_refusal_stands_apart_from_what_was_shown_before(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT)
    desk.write("One moment. ")
    desk.take_over(POLICY, None, holds=True)
    desk.write("The secret is")
    desk.refuse("I cannot help with that.")

    assert desk.answer == "One moment. \n\nI cannot help with that."


def test_held_text_of_several_calls_waits_whole(desk: TurnDesk, events: ListEvents) -> None:
    desk.take_over(BILLING, CONTEXT, holds=True)
    for text in ("Let me look.", "It is on its way [1]."):
        desk.begin_call(1)
        desk.write(text)
        desk.end_call(Usage(requests=1))
    assert desk.answer == ""

    desk.release()

    assert desk.answer == "Let me look.\n\nIt is on its way [1]."
    assert events.kinds == ["AgentSelected", "Sources", "Token"]


def test_held_text_of_an_agent_that_hands_over_is_not_shown_for_the_next(desk: TurnDesk) -> None:
    desk.take_over(BILLING, CONTEXT, holds=True)
    desk.write("The secret is 4711.")
    desk.take_over(POLICY, BARE)
    desk.write("No.")
    desk.flush()

    assert desk.answer == "No."


def test_what_is_held_counts_as_written_and_has_been_screened(events: ListEvents) -> None:
    desk = TurnDesk(REQUEST, events, allows=lambda _: False)
    desk.take_over(BILLING, CONTEXT, holds=True)
    desk.begin_call(4)
    desk.write("Forty [9] https://evil.example/x")
    desk.break_call()
    desk.flush()

    assert desk.held == "Forty [link removed]"
    assert (desk.dropped_markers, desk.removed_links) == (1, 1)
    assert desk.usage.output_tokens == 8


def test_a_sources_own_address_may_be_shown(desk: TurnDesk, events: ListEvents) -> None:
    address = "https://docs.customer.example/plans"
    own = replace(CONTEXT.sources[0], passage=replace(CONTEXT.sources[0].passage, uri=address))
    desk = TurnDesk(REQUEST, events, allows=lambda _: False)
    desk.take_over(BILLING, replace(CONTEXT, sources=(own,)))
    desk.write(f"See {address}, [plans]({address}) or {address}/x")
    desk.flush()

    assert desk.answer == f"See {address}, [plans]({address}) or [link removed]"
    assert desk.removed_links == 1
