"""Stops asking a model that fails again and again, and finds out by single requests when it is back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent_service.llm.failures import Kind, NoAnswerError

FAILURES_TO_OPEN = 5
"""Failed requests in a row, of all turns, until a model is taken for down."""

OPEN_S = 30.0
"""How long a model that is down is left alone before one request finds out."""


class Breaker:
    """For one model at one address. Closed: all may ask. Open: nobody. Half-open: one at a time, until one succeeds."""

    def __init__(self, notice: Callable[[bool], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`notice`: told False when the breaker opens, True when it closes."""
        self._notice = notice
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count how the request inside ends.

        Only success and faults that pass (`NoAnswerError.passes`) count; a refused request and a caller that leaves say
        nothing about the model.

        Raises:
            NoAnswerError: the model is not to be asked now. Or that of the request.
        """
        probes = self._enter()
        try:
            yield
        except NoAnswerError as fault:
            if fault.passes:
                self._failed(probes=probes)
            raise
        else:
            self._succeeded()
        finally:
            if probes:
                self._probing = False

    def _enter(self) -> bool:
        """Whether the request that begins is a probe."""
        if self._open_until is None:
            return False
        left_s = self._open_until - self._clock()
        if left_s > 0 or self._probing:
            raise NoAnswerError(Kind.DOWN, "the model is not available", asked=False, retry_after_s=left_s)
        self._probing = True
        return True

    def _failed(self, *, probes: bool) -> None:
        self._failures += 1
        if probes:
            self._open_until = self._clock() + OPEN_S
        elif self._open_until is None and self._failures >= FAILURES_TO_OPEN:
            self._open_until = self._clock() + OPEN_S
            self._notice(False)  # noqa: FBT003 - the name says what

    def _succeeded(self) -> None:
        self._failures = 0
        if self._open_until is not None:
            self._open_until = None
            self._notice(True)  # noqa: FBT003
