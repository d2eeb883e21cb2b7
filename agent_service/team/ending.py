"""What a turn leaves behind: of which kind its answer is, and how it came about."""

from agent_service.team.desk import TurnDesk
from agent_service.types import CheckedCitations, Outcome, Trace


def outcome_of(desk: TurnDesk, checked: CheckedCitations) -> Outcome:
    """Decided by what could be checked, never by a phrase: evidence is a valid quote, or a tool's result."""
    if desk.special_outcome is not None:
        return desk.special_outcome
    return Outcome.ANSWERED if checked.citations or checked.rests_on_results else Outcome.NO_EVIDENCE


def trace_of(desk: TurnDesk, checked: CheckedCitations) -> Trace:
    """How the answer came about, as far as it has come."""
    context = desk.context
    if desk.request.agent is not None:
        chosen = "asked directly"
    elif len(desk.agents) > 1:
        chosen = f"handed over by {desk.agents[-2]}"
    elif desk.request.state.agent == desk.agent:
        chosen = "holds the conversation"
    else:
        chosen = "is the entry of the team" if context else "no specialist's documents bear on the question"
    return Trace(
        agent=desk.agent,
        strategy=desk.strategy,
        reason=f"{chosen}; {context.reason}" if context else chosen,
        considered=context.considered if context else (),
        used=tuple(sorted({citation.marker for citation in checked.citations})),
        cache_hit=context.cache_hit if context else False,
        stages=tuple(desk.stages),
        dropped_markers=checked.dropped + desk.dropped_markers,
        agents=tuple(desk.agents),
        support=context.support if context else 0.0,
        model=desk.model,
        retries=desk.retries,
        removed_links=desk.removed_links,
    )
