"""One setting picks the provider; every provider hands out SDK models, bound to one turn."""

from collections.abc import Callable

from agents import (
    Model,
    ModelProvider,
    OpenAIResponsesModel,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, Timeout

from agent_service.llm.chat import ChatModel
from agent_service.llm.extractive import MODEL_NAME, ExtractiveModel
from agent_service.llm.streaming import StreamToSink
from agent_service.ports import Briefing, EvidenceRouter, SentenceSelector, TokenSink


def never_trace() -> None:
    """Switch the SDK's tracing off for the process: with a key set it would upload prompts and answers."""
    set_tracing_disabled(True)


class OfflineProvider(ModelProvider):
    """The extractive model, whatever name the roster gives."""

    def __init__(self, model: ExtractiveModel, briefing: Briefing, sink: TokenSink) -> None:
        self._model = StreamToSink(model, sink, briefing)

    def get_model(self, model_name: str | None) -> Model:  # noqa: ARG002 - there is one
        """The turn's model."""
        return self._model


class HostedProvider(ModelProvider):
    """Models of an OpenAI-compatible server by name."""

    def __init__(self, make: Callable[[str], Model], default_model: str, briefing: Briefing, sink: TokenSink) -> None:
        self._make = make
        self._default_model = default_model
        self._briefing = briefing
        self._sink = sink

    def get_model(self, model_name: str | None) -> Model:
        """The named model, else the default one."""
        return StreamToSink(self._make(model_name or self._default_model), self._sink, self._briefing)


class OfflineModels:
    """Makes the offline provider of each turn."""

    def __init__(self, router: EvidenceRouter, selector: SentenceSelector, *, delay_s: float) -> None:
        self._router = router
        self._selector = selector
        self._delay_s = delay_s
        self.default_model = MODEL_NAME

    def for_turn(self, briefing: Briefing, sink: TokenSink) -> ModelProvider:
        """A provider that reads this turn's table and writes to its sink."""
        model = ExtractiveModel(briefing, self._router, self._selector, delay_s=self._delay_s)
        return OfflineProvider(model, briefing, sink)

    async def close(self) -> None:
        """Nothing to release."""


class HostedModels:
    """Makes the hosted provider of each turn, over one HTTP client."""

    def __init__(self, *, api_key: str, base_url: str | None, api: str, default_model: str, timeout_s: float) -> None:
        """`api`: "responses" or "chat_completions". `timeout_s`: for connecting, and between two reads."""
        # Retries are 0: one layer retries, and a repeated request must never repeat text already sent.
        self._client = AsyncOpenAI(
            api_key=api_key, base_url=base_url, max_retries=0, timeout=Timeout(timeout_s, connect=min(5.0, timeout_s))
        )
        self._api = api
        self.default_model = default_model

    def for_turn(self, briefing: Briefing, sink: TokenSink) -> ModelProvider:
        """A provider that reads this turn's limits and writes to its sink."""
        return HostedProvider(self._model, self.default_model, briefing, sink)

    def _model(self, name: str) -> Model:
        if self._api == "responses":
            return OpenAIResponsesModel(model=name, openai_client=self._client)
        return ChatModel(model=name, openai_client=self._client)

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._client.close()
