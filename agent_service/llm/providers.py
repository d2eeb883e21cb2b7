"""One setting picks the provider; every provider hands out SDK models, bound to one turn."""

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from agents import Model, ModelProvider, set_tracing_disabled

from agent_service.llm.asking import Candidate
from agent_service.llm.breaker import Breaker
from agent_service.llm.extractive import MODEL_NAME, ExtractiveModel
from agent_service.llm.hosted import HostedModel
from agent_service.llm.patience import Patience
from agent_service.llm.streaming import StreamToSink
from agent_service.llm.transport import Endpoint
from agent_service.ports import Briefing, EvidenceRouter, SentenceSelector, TokenSink, Vitals

NO_KEY = "none"
"""Sent to an address that has no key of its own: the openai package wants one, servers without keys take any."""


def never_trace() -> None:
    """Switch the SDK's tracing off for the process: with a key set it would upload prompts and answers."""
    set_tracing_disabled(True)


class OfflineProvider(ModelProvider):
    """The extractive model, whatever name the roster gives."""

    def __init__(self, model: ExtractiveModel, briefing: Briefing, sink: TokenSink) -> None:
        self._model = StreamToSink(model, sink, briefing, name=MODEL_NAME)

    def get_model(self, model_name: str | None) -> Model:  # noqa: ARG002 - there is one
        """The turn's model."""
        return self._model


class HostedProvider(ModelProvider):
    """Models of an OpenAI-compatible server by name."""

    def __init__(self, make: Callable[[str], Model], default_model: str) -> None:
        self._make = make
        self._default_model = default_model

    def get_model(self, model_name: str | None) -> Model:
        """The named model, else the default one."""
        return self._make(model_name or self._default_model)


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
    """Makes the hosted provider of each turn, over one pool of connections for each address."""

    def __init__(  # noqa: PLR0913 - settings, all of them
        self,
        *,
        api_key: str,
        base_url: str | None,
        api: str,
        default_model: str,
        timeout_s: float,
        fallback_models: Sequence[str] = (),
        fallback_base_url: str | None = None,
        fallback_api_key: str | None = None,
        vitals: Vitals | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            api_key: of the provider.
            base_url: its address; None: OpenAI's.
            api: "responses" or "chat_completions".
            default_model: asked where the roster names none.
            timeout_s: for an answer to begin, and between two reads.
            fallback_models: asked in this order where the wanted model gives no answer.
            fallback_base_url: where they are; None: at the same address.
            fallback_api_key: their key; None: the same one at the same host, none at another.
            vitals: told which model does not work.
            patience: how long to wait between requests.
        """
        self.default_model = default_model
        self._api = api
        self._vitals = vitals
        self._patience = patience or Patience()
        self._endpoint = Endpoint(api_key=api_key, base_url=base_url, timeout_s=timeout_s)
        self._fallback_models = tuple(fallback_models)
        self._fallback_endpoint = self._endpoint
        if fallback_base_url or fallback_api_key:
            same_host = not fallback_base_url or urlsplit(fallback_base_url).netloc == self._endpoint.netloc
            self._fallback_endpoint = Endpoint(
                api_key=fallback_api_key or (api_key if same_host else NO_KEY),
                base_url=fallback_base_url or base_url,
                timeout_s=timeout_s,
            )
        self._candidates: dict[tuple[Endpoint, str], Candidate] = {}

    def for_turn(self, briefing: Briefing, sink: TokenSink) -> ModelProvider:
        """A provider that reads this turn's limits and writes to its sink."""

        def make(name: str) -> Model:
            return HostedModel(self._api, self._in_order(name), briefing, sink, self._patience)

        return HostedProvider(make, self.default_model)

    def _in_order(self, name: str) -> list[Candidate]:
        """The wanted model and then its fallbacks, nobody twice."""
        wanted = [(self._endpoint, name), *((self._fallback_endpoint, each) for each in self._fallback_models)]
        return [self._candidate(*each) for each in dict.fromkeys(wanted)]

    def _candidate(self, endpoint: Endpoint, name: str) -> Candidate:
        """A model at an address: all turns share its breaker."""
        known = self._candidates.get((endpoint, name))
        if known is None:
            member = name if endpoint is self._endpoint else f"{name} at {endpoint.netloc}"
            breaker = Breaker(lambda ok: self._tell(member, ok=ok), self._patience.clock)
            known = self._candidates[endpoint, name] = Candidate(name, endpoint, breaker)
        return known

    def _tell(self, member: str, *, ok: bool) -> None:
        if self._vitals is not None:
            self._vitals.tell("model", member, ok=ok)

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
        if self._fallback_endpoint is not self._endpoint:
            await self._fallback_endpoint.close()
