"""Log lines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from edge_api.telemetry import JsonFormatter, configure_logging, request_id_var, stack_of

QUESTION = "what is my salary"


@pytest.fixture
def restored_root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers, root.level = handlers, level
    root.setLevel(level)


def test_a_record_is_one_line_of_json_with_the_request_id(restored_root: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging("INFO", stream)
    token = request_id_var.set("r-1")
    try:
        logging.getLogger("somewhere").warning("line\n%s", "end", extra={"status": 200})
    finally:
        request_id_var.reset(token)

    (line,) = stream.getvalue().splitlines()
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("+00:00")
    assert parsed == {
        "level": "warning",
        "logger": "somewhere",
        "message": "line\nend",
        "request_id": "r-1",
        "status": 200,
    }


def test_a_line_outside_a_request_has_no_request_id() -> None:
    record = logging.LogRecord("x", logging.INFO, "p", 1, "m", None, None)

    assert "request_id" not in json.loads(JsonFormatter().format(record))


def test_an_exception_is_its_type_and_stack_and_never_its_text() -> None:
    try:
        try:
            raise KeyError(QUESTION)
        except KeyError as err:
            raise ValueError(QUESTION) from err
    except ValueError as err:
        record = logging.LogRecord("x", logging.ERROR, "p", 1, "m", None, (ValueError, err, err.__traceback__))

    line = json.loads(JsonFormatter().format(record))

    assert "builtins.ValueError" in line["exception"]
    assert "caused by" in line["exception"]
    assert "builtins.KeyError" in line["exception"]
    assert "test_telemetry.py" in line["exception"]
    assert QUESTION not in json.dumps(line)


def test_a_chain_is_followed_only_so_far_and_not_where_it_was_cut() -> None:
    error: Exception = ValueError()
    for _ in range(20):
        following = ValueError()
        following.__context__ = error
        error = following
    assert stack_of(error).count("ValueError") == 5

    error.__suppress_context__ = True
    assert stack_of(error).count("ValueError") == 1


@pytest.mark.parametrize("name", ["aiosqlite", "httpx", "psycopg.pool", "sqlalchemy.engine.Engine"])
def test_libraries_that_log_values_are_quiet_at_every_level(restored_root: logging.Logger, name: str) -> None:
    stream = io.StringIO()
    configure_logging("DEBUG", stream)

    logging.getLogger(name).debug("INSERT %s", QUESTION)
    logging.getLogger(name).info("GET https://user:password@issuer.test/jwks")
    logging.getLogger(name).warning("it is away")

    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "it is away"
