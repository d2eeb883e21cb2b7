"""What can go wrong with one request to a provider, and what may be done about it.

Nothing that a provider says is repeated here: its messages may hold prompts, keys and names of its own making.
"""

import email.utils
import math
import time
from collections.abc import Mapping
from enum import Enum

from agent_service.errors import AgentServiceError, ModelFailedError, ModelRateLimitedError, ModelUnavailableError

RETRY_AFTER_BOUNDS_S = (1.0, 600.0)
"""What callers are told at least and at most, in seconds: less is a busy loop, more is a guess."""

FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})
LIMIT_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "insufficient_quota"})
OUTAGE_CODES = frozenset({"server_error", "internal_error", "internal_server_error", "overloaded_error"})


class Kind(Enum):
    """What a fault says about the model."""

    LIMITED = "rate limited"
    DOWN = "unavailable"
    WRONG = "failed"
    FILTERED = "refused by a content filter"


class NoAnswerError(Exception):
    """A request that got no answer. Stays inside `llm`: the last one becomes an error of the service."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        again: bool = False,
        elsewhere: bool = True,
        asked: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        """Describe it.

        Args:
            kind: what it is.
            message: for the caller to read, in words of our own.
            again: the same model may be asked again.
            elsewhere: another model may have an answer.
            asked: a request was made; False: a breaker was open.
            retry_after_s: how long the provider wants to be left alone; None: it did not say.
        """
        super().__init__(message)
        self.kind = kind
        self.again = again
        self.elsewhere = elsewhere
        self.asked = asked
        self.retry_after_s = retry_after_s

    @property
    def passes(self) -> bool:
        """Whether it says how the model is, and that it may be well later."""
        return self.kind in {Kind.LIMITED, Kind.DOWN}

    def error(self) -> AgentServiceError:
        """What the caller is told."""
        low, high = RETRY_AFTER_BOUNDS_S
        retry_after_s = min(high, max(low, self.retry_after_s or low))
        if self.kind is Kind.LIMITED:
            return ModelRateLimitedError(str(self), retry_after_s=retry_after_s)
        if self.kind is Kind.DOWN:
            return ModelUnavailableError(str(self), retry_after_s=retry_after_s)
        return ModelFailedError(str(self))


def broke_off() -> NoAnswerError:
    """The answer ended before its end."""
    return NoAnswerError(Kind.DOWN, "the model's answer broke off", again=True)


def no_answer() -> NoAnswerError:
    """Nobody there, or silent for too long."""
    return NoAnswerError(Kind.DOWN, "the model's provider did not answer", again=True)


def not_understood() -> NoAnswerError:
    """The answer is none of the API's. The same model would say the same again; another one may not."""
    return NoAnswerError(Kind.WRONG, "the model's answer could not be understood")


def refused(status: int, code: str = "", headers: Mapping[str, str] | None = None) -> NoAnswerError:
    """A request that was answered with an HTTP status other than 200.

    The statuses that are tried again are those of the openai package: 408, 409, 429 and 500 upwards, unless the
    provider overrules that with `x-should-retry`. A request that is wrong in itself (400, 413, 422) is wrong for
    another model, too; one that found no model, no access or no such address (300 to 399, 401, 403, 404) is not.

    Args:
        status: the status.
        code: of the error in the body, where it has one.
        headers: the answer's headers.
    """
    headers = headers or {}
    if code in FILTER_CODES:
        return NoAnswerError(Kind.FILTERED, "the model's provider filtered the request")
    wish = headers.get("x-should-retry", "")
    again = wish == "true" or (wish != "false" and (status in {408, 409, 429} or status >= 500))
    # Who has no money left does not get any by asking again.
    again = again and code != "insufficient_quota"
    told = retry_after_s(headers)
    if status == 429:
        return NoAnswerError(Kind.LIMITED, "the model's provider limits requests", again=again, retry_after_s=told)
    if again or status in {408, 409} or status >= 500:
        return NoAnswerError(Kind.DOWN, "the model's provider failed", again=again, retry_after_s=told)
    elsewhere = status in {401, 403, 404} or status < 400
    return NoAnswerError(
        Kind.WRONG, f"the model's provider refused the request with status {status}", elsewhere=elsewhere
    )


def reported(code: object, kind: object = None) -> NoAnswerError:
    """A failure that a provider reports inside an answer under status 200.

    Args:
        code: the error's code; proxies put the status in here that they had from behind.
        kind: the error's type.
    """
    if isinstance(code, int) or (isinstance(code, str) and code.isascii() and code.isdigit()):
        status = int(str(code)[:4])
        return refused(status if 400 <= status < 600 else 400)
    if code in FILTER_CODES:
        return refused(400, str(code))
    if code in LIMIT_CODES or kind in LIMIT_CODES:
        return refused(429, str(code))
    if code in OUTAGE_CODES or kind in OUTAGE_CODES:
        return refused(500)
    return NoAnswerError(Kind.WRONG, "the model's provider reported a failure", elsewhere=False)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long a provider wants to be left alone, in seconds; None where it says nothing that makes sense.

    `retry-after-ms`, else `Retry-After` as a number of seconds or as an HTTP date.
    """
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / per_second
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        seconds = when.timestamp() - time.time()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return max(0.0, seconds)
