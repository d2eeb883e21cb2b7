"""How long an answer may be."""

from agents.model_settings import ModelSettings

from agent_service.ports import Briefing


def limited(settings: ModelSettings, briefing: Briefing | None) -> ModelSettings:
    """The agent's settings, with the caller's limit on tokens where that is lower."""
    allowed = briefing.max_output_tokens if briefing else None
    limits = [limit for limit in (settings.max_tokens, allowed) if limit is not None]
    return settings.resolve(ModelSettings(max_tokens=min(limits))) if limits else settings
