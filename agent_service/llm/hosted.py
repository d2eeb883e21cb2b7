"""The hosted model: any server that speaks OpenAI's Responses or Chat Completions, as a model of the Agents SDK.

It answers `Runner.run` only: the text of an answer goes to the turn's sink while the runner waits for the whole.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from agents import ModelResponse
from agents.agent_output import AgentOutputSchemaBase
from agents.handoffs import Handoff
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.model_settings import ModelSettings
from agents.models.interface import Model, ModelTracing
from agents.tool import Tool
from openai.types.responses.response_prompt_param import ResponsePromptParam

from agent_service.llm import chat_completions, responses
from agent_service.llm.asking import Asking, Candidate, Wire
from agent_service.llm.failures import NoAnswerError
from agent_service.llm.limits import limited
from agent_service.llm.patience import Patience
from agent_service.llm.request import ModelRequest
from agent_service.ports import Briefing, TokenSink


class HostedModel(Model):
    """One model with those that stand in for it, bound to a turn."""

    def __init__(
        self, api: str, candidates: Sequence[Candidate], briefing: Briefing, sink: TokenSink, patience: Patience
    ) -> None:
        """`api`: "responses" or "chat_completions". `candidates`: the model that is wanted, then its fallbacks."""
        self._api = api
        self._candidates = candidates
        self._briefing = briefing
        self._sink = sink
        self._patience = patience

    async def get_response(  # noqa: PLR0913, PLR0917 - the SDK's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,  # noqa: ARG002 - it is off
        *,
        previous_response_id: str | None,  # noqa: ARG002 - the provider keeps nothing
        conversation_id: str | None,  # noqa: ARG002
        prompt: ResponsePromptParam | None,  # noqa: ARG002
    ) -> ModelResponse:
        """The whole answer; its text has gone to the sink by then.

        Raises:
            ModelRateLimitedError: the provider, and whoever stands in for it, refuses for its rate limit.
            ModelUnavailableError: nobody could be reached, or they failed, or the answer broke off.
            ModelFailedError: the provider refused the request, or its answer made no sense.
        """
        settings = limited(model_settings, self._briefing)
        request = ModelRequest(system_instructions, input, settings, tools, output_schema, handoffs)
        asking = Asking(self._wire(request), self._sink, self._patience, self._briefing.deadline)
        answer = await asking.ask(self._candidates)
        if answer.outcome is not None:
            self._sink.ended(answer.outcome)
        try:
            output = answer.output()
        except NoAnswerError as fault:
            raise fault.error() from fault
        usage = answer.usage(len(asking.sent.decode()) if answer.count is None else 0)
        return ModelResponse(output=output, usage=usage, response_id=None)

    def _wire(self, request: ModelRequest) -> Wire:
        if self._api == "responses":
            return Wire(
                responses.PATH,
                lambda candidate: responses.body(request, candidate.name),
                responses.ResponsesDecoder,
            )
        return Wire(
            chat_completions.PATH,
            lambda candidate: chat_completions.body(
                request,
                candidate.name,
                base_url=candidate.endpoint.base_url,
                is_openai=candidate.endpoint.is_openai,
            ),
            chat_completions.ChatDecoder,
        )

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Not offered: the runner asks for whole responses, and the sink has the stream."""
        raise TypeError("HostedModel answers Runner.run, not Runner.run_streamed")
