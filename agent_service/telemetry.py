"""Logs as JSON lines. No prompt, question, answer or secret is ever logged: only ids, names, counts and times."""

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the call being served; set by the rpc interceptor."""

MAX_CHAIN = 5
"""Causes followed from one exception."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, request_id, and what `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := request_id_var.get():
            line["request_id"] = request_id
        line.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD})
        if record.exc_info and record.exc_info[1]:
            line["exception"] = stack_of(record.exc_info[1])
        return json.dumps(line, default=str, ensure_ascii=False)


def stack_of(error: BaseException) -> str:
    """Types and stacks of an exception and its causes, without their texts, which may quote a question or a secret."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < MAX_CHAIN:
        kind = f"{type(cause).__module__}.{type(cause).__qualname__}"
        places = [f"{each.filename}:{each.lineno} {each.name}" for each in traceback.extract_tb(cause.__traceback__)]
        parts.append("\n".join([*places, kind]))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by\n".join(parts)


def configure_logging(level: str, stream: TextIO = sys.stderr) -> None:
    """Send every logger's records to `stream`, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # httpx2 logs every request's address at INFO, with what a base URL may carry.
    for noisy in ("httpx", "httpx2", "httpcore", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # They log the texts of errors, which may quote a prompt or a tool's result; ours have reason and kind.
    for talkative in ("openai.agents", "mcp"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
