"""From the bytes of an HTTP body to an answer: server-sent events, or one JSON object from a server that cannot stream.

Nothing here knows of HTTP, so tests can cut a stream anywhere and break it in any way.
"""

from typing import Protocol

import msgspec

from agent_service.llm.answer import Answer
from agent_service.llm.failures import broke_off, not_understood
from agent_service.llm.sse import EventParser, OversizedEventError

MAX_ANSWER_BYTES = 16 * 2**20
"""Longest body, in bytes: some 60,000 tokens at the 270 bytes that an event of the Responses API has."""

NONSENSE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding anything but the JSON of our types can raise."""


class Decoder(Protocol):
    """One API's events. Both methods raise `NoAnswerError` for what the provider reports, and NONSENSE for nonsense."""

    answer: Answer

    def event(self, data: bytes) -> None:
        """Take an event's data into the answer."""
        ...

    def body(self, data: bytes) -> None:
        """Take a body that is no stream of events: a whole response."""
        ...


class AnswerReader:
    """Reads one answer."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._parser = EventParser()
        self._size = 0
        self._began = False
        self._body: bytearray | None = None

    @property
    def answer(self) -> Answer:
        """What has come so far."""
        return self._decoder.answer

    def feed(self, piece: bytes) -> str:
        """The text in a piece of the body; empty where it holds none.

        Raises:
            NoAnswerError: the provider reports a failure, or it makes no sense, or is too long.
        """
        self._size += len(piece)
        if self._size > MAX_ANSWER_BYTES:
            raise not_understood()
        if not self._began:
            piece = piece.lstrip()
            if not piece:
                return ""
            self._began = True
            # No line of an event stream begins like this.
            self._body = bytearray() if piece.startswith(b"{") else None
        if self._body is not None:
            self._body += piece
            return ""
        try:
            for data in self._parser.feed(piece):
                if self.answer.over:
                    break
                self._decoder.event(data)
        except (*NONSENSE, OversizedEventError) as err:
            raise not_understood() from err
        return self.answer.take()

    def end(self) -> str:
        """The body has ended, or the answer is over: the text that was held back until now.

        Raises:
            NoAnswerError: the answer is not whole.
        """
        if self._body is not None:
            try:
                self._decoder.body(bytes(self._body))
            except NONSENSE as err:
                raise not_understood() from err
        elif not self.answer.over:
            self._last_event()
        if not self.answer.whole:
            raise broke_off()
        return self.answer.take()

    def _last_event(self) -> None:
        """An event without its closing line may be whole, or it is where the stream was cut."""
        try:
            for data in self._parser.end():
                self._decoder.event(data)
        except NONSENSE:
            return
        except OversizedEventError as err:
            raise not_understood() from err


def decoded_error(body: bytes) -> tuple[object, object]:
    """Code and type of the error in a body; None for what it does not have, as in a page of HTML."""
    try:
        envelope = msgspec.json.decode(body)
    except NONSENSE:
        return None, None
    return code_and_type(envelope)


def code_and_type(envelope: object) -> tuple[object, object]:
    """Code and type of an error in any of the envelopes that are about: under `error`, or bare."""
    error = envelope.get("error", envelope) if isinstance(envelope, dict) else None
    if not isinstance(error, dict):
        return None, None
    code, kind = error.get("code"), error.get("type")
    return (code if isinstance(code, str | int) else None), (kind if isinstance(kind, str) else None)
