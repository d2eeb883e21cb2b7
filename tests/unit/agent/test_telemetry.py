"""Logs: one JSON object per line, with the id of the call, and from one place."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_service.telemetry import configure_logging, request_id_var

NOISY = ("httpx", "httpx2", "httpcore", "openai")
SDK = "openai.agents"


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in (*NOISY, SDK)}
    yield
    root.handlers = handlers
    root.setLevel(level)
    for name, noisy_level in levels.items():
        logging.getLogger(name).setLevel(noisy_level)


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("INFO", stream)
    return stream


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("agent_service.tests")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_of_json(stream: io.StringIO, log: logging.Logger) -> None:
    log.info("draining %d\nturns", 3)

    (line,) = lines(stream)
    at = datetime.fromisoformat(line.pop("time"))
    assert line == {"level": "info", "logger": "agent_service.tests", "message": "draining 3\nturns"}
    assert at.tzinfo is UTC or at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


def test_what_extra_gives_is_in_the_line(stream: io.StringIO, log: logging.Logger) -> None:
    log.info("listening", extra={"port": 50051, "path": Path("/srv"), "turns": None})

    (line,) = lines(stream)
    assert (line["port"], line["path"], line["turns"]) == (50051, "/srv", None)


def test_the_id_of_the_call_is_in_the_line(stream: io.StringIO, log: logging.Logger) -> None:
    token = request_id_var.set("r-1")
    try:
        log.info("inside")
    finally:
        request_id_var.reset(token)
    log.info("outside")

    inside, outside = lines(stream)
    assert inside["request_id"] == "r-1"
    assert "request_id" not in outside


def test_an_exception_is_logged_with_its_kind_and_places_and_without_its_text(
    stream: io.StringIO, log: logging.Logger
) -> None:
    try:
        raise LookupError("a bug")
    except LookupError:
        log.exception("unhandled")

    (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["exception"].endswith("builtins.LookupError")
    assert "test_telemetry.py:" in line["exception"]
    assert "a bug" not in json.dumps(line)


def test_text_that_is_not_ascii_stays_readable(stream: io.StringIO, log: logging.Logger) -> None:
    log.info("Café")

    assert "Café" in stream.getvalue()


def test_records_below_the_level_are_not_written(stream: io.StringIO, log: logging.Logger) -> None:
    log.debug("noise")

    assert lines(stream) == []


def test_configuring_twice_does_not_double_the_lines(log: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("INFO", first)
    configure_logging("WARNING", second)
    log.warning("once")

    assert lines(first) == []
    assert len(lines(second)) == 1


@pytest.mark.parametrize("name", [*NOISY, "httpx2._client", "openai._base_client"])
def test_clients_that_log_addresses_are_silent_below_a_warning(name: str) -> None:
    """At every level of ours: a base URL may carry a secret, and the openai client's debug lines hold prompts."""
    stream = io.StringIO()
    configure_logging("DEBUG", stream)

    logging.getLogger(name).info("HTTP Request: POST http://user:secret@host/v1")
    logging.getLogger(name).debug("Request options: prompt")
    logging.getLogger(name).warning("trouble")

    assert [line["message"] for line in lines(stream)] == ["trouble"]


def test_the_agents_sdk_does_not_log_what_a_provider_said() -> None:
    """Its error lines may quote a prompt."""
    stream = io.StringIO()
    configure_logging("DEBUG", stream)

    logging.getLogger(SDK).error("Error streaming response: prompt")

    assert stream.getvalue() == ""
