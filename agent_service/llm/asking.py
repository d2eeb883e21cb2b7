"""One model call: requests to one model after another, until one answers or nothing is left to try.

This is the only layer that repeats a request, and it never does so once text has been written.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent_service.llm.answer import Answer
from agent_service.llm.breaker import Breaker
from agent_service.llm.failures import Kind, NoAnswerError
from agent_service.llm.patience import Patience
from agent_service.llm.reader import AnswerReader, Decoder
from agent_service.llm.transport import Endpoint
from agent_service.ports import TokenSink

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer."""

    name: str
    endpoint: Endpoint
    breaker: Breaker


@dataclass(frozen=True, slots=True)
class Wire:
    """How an API is spoken: its path, the body for a candidate, a decoder for each answer."""

    path: str
    body: Callable[[Candidate], bytes]
    decoder: Callable[[], Decoder]


class Asking:
    """One model call under way.

    Attributes:
        sent: the body of the last request.
    """

    def __init__(self, wire: Wire, sink: TokenSink, patience: Patience, deadline: float) -> None:
        self.sent = b""
        self._wire = wire
        self._sink = sink
        self._patience = patience
        self._deadline = deadline
        self._faults: list[NoAnswerError] = []
        self._wrote = False

    async def ask(self, candidates: Sequence[Candidate]) -> Answer:
        """The first answer that a candidate gives, asked in this order; its text has gone to the sink by then.

        Raises:
            AgentServiceError: nobody answered, or an answer failed after its text had begun. Where something
                passes by itself, the error says so, though another candidate may have failed for good.
        """
        for candidate in candidates:
            if self._faults and not (self._faults[-1].elsewhere and self._patience.clock() < self._deadline):
                break
            if (answer := await self._ask(candidate)) is not None:
                self._sink.asked(candidate.name, retries=sum(fault.asked for fault in self._faults))
                return answer
        told = next((fault for fault in self._faults if fault.passes), self._faults[0])
        raise told.error() from told

    async def _ask(self, candidate: Candidate) -> Answer | None:
        """A candidate's answer; None where it gave none."""
        self.sent = self._wire.body(candidate)
        failed = 0
        while True:
            try:
                with candidate.breaker.request():
                    return await self._request(candidate.endpoint)
            except NoAnswerError as caught:
                fault = caught
            log.warning("a model request failed", extra={"model": candidate.name, "failure": str(fault)})
            if self._wrote:
                raise fault.error() from fault
            self._faults.append(fault)
            failed += 1
            if not fault.again:
                return None
            wait_s = self._patience.wait_s(failed, fault.retry_after_s, self._deadline)
            if wait_s is None:
                return None
            await self._patience.sleep(wait_s)

    async def _request(self, endpoint: Endpoint) -> Answer:
        """One request, read to the end of its answer."""
        reader = AnswerReader(self._wire.decoder())
        try:
            async with endpoint.post(self._wire.path, self.sent) as reading:
                while not reader.answer.over and (piece := await reading.read()):
                    self._write(reader.feed(piece))
                    if self._wrote and not reader.answer.over:
                        await reading.rest()
                self._write(reader.end())
                await reading.finish()
        except NoAnswerError as fault:
            # What was said before the fault, in the same piece.
            self._write(reader.answer.take())
            if fault.kind is Kind.FILTERED:
                return Answer(refuses=True, whole=True, over=True)
            if not reader.answer.whole:
                raise
            # Only token counts and the end of the body were missing.
        return reader.answer

    def _write(self, text: str) -> None:
        if text:
            self._wrote = True
            self._sink.write(text)
