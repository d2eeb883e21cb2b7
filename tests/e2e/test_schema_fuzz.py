"""schemathesis over the description of the API: whatever it sends, the answers are those that are described.

The command line in a process of its own, as a person runs it, against a real pair and with a token of every scope.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import PASSWORD, edge_command, sign_in
from tests.support.processes import clean_environment, running_pair
from tests.support.tokens import key_pair

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CASES = 2_000
MOST_CASES_OF_AN_OPERATION = 130

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
)
"""All but two. `positive_data_acceptance`: no schema can say that a cursor was given out by this list, or that two ids
must be equal. `object_level_authorization`: it needs two accounts; test_isolation.py and the access matrix do this."""


@pytest.fixture(scope="module")
def signed_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An account with every scope, on a pair that answers at once."""
    private, public = key_pair()
    settings = {"EDGE_AGENT_SIGNING_KEY": private, "AGENT_VERIFY_KEY": public, "AGENT_OFFLINE_DELAY_S": "0"}
    with running_pair(tmp_path_factory.mktemp("fuzzed"), settings) as pair:
        scopes = [argument for scope in ("chat", "documents:write", "admin") for argument in ("--scope", scope)]
        edge_command(pair, "users", "add", "ada", *scopes, stdin=f"{PASSWORD}\n")
        with httpx.Client(base_url=pair.url, headers=sign_in(pair, "ada"), timeout=30, trust_env=False) as http:
            yield http
        assert "Traceback" not in pair.edge.output()
        assert "Traceback" not in pair.agent.output()


def schemathesis(folder: Path, http: httpx.Client, schema: str, *options: str) -> tuple[Mapping[str, Any], str]:
    """Run it. Returns its report, and what it printed."""
    report = folder / "report.json"
    command = [
        # One worker: in threads its reading of its own lambdas fails now and then ("AST constructor recursion depth
        # mismatch", CPython 3.11), and the operation goes untested.
        *(sys.executable, "-m", "schemathesis.cli", "run", schema, "--no-color", "--workers", "1"),
        *("--continue-on-failure", "--no-shrink", "--request-timeout", "30", "--generation-database", "none"),
        *("--header", f"Authorization: {http.headers['Authorization']}"),
        *("--report", "json", "--report-json-path", str(report)),
        *options,
    ]
    environment = clean_environment() | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=360, check=False
    )
    assert report.exists(), done.stdout + done.stderr
    return json.loads(report.read_text()), done.stdout


def test_nothing_that_schemathesis_sends_gets_an_answer_that_is_not_described(
    signed_in: httpx.Client, tmp_path: Path
) -> None:
    description = signed_in.get("/openapi.json").raise_for_status().json()
    operations = sum(len(methods) for methods in description["paths"].values())

    report, printed = schemathesis(
        tmp_path,
        signed_in,
        f"{signed_in.base_url}/openapi.json".replace("//openapi", "/openapi"),
        *("--checks", ",".join(CHECKS), "--max-examples", str(MOST_CASES_OF_AN_OPERATION)),
    )

    generated = report["test_cases"]["generated"]
    print(f"schemathesis: {generated} cases, {operations} operations, {report['running_time']:.0f} s")  # noqa: T201
    assert report["failures"] == [], printed
    assert report["errors"] == [], printed
    assert report["warnings"]["unresolvable_reference"] == [], printed
    assert report["complete"] is True
    assert report["exit_code"] == 0
    assert generated >= CASES
    assert report["operations"]["total"] == report["operations"]["tested"] == operations
    assert all(report["phases"][phase]["status"] == "success" for phase in ("examples", "coverage", "fuzzing"))


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        ("/api/agents", {"content": {"application/json": {"schema": {"type": "array"}}}}),
        ("/chat", {"content": {"text/event-stream": {"itemSchema": {"required": ["retry"]}}}}),
        ("/api/auth/me", {"content": {"text/html": {"schema": {"type": "string"}}}}),
    ],
)
def test_schemathesis_finds_a_lie_in_the_description(
    signed_in: httpx.Client, tmp_path: Path, path: str, lie: dict[str, Any]
) -> None:
    """The test above can fail."""
    description = signed_in.get("/openapi.json").raise_for_status().json()
    for operation in description["paths"][path].values():
        operation["responses"]["200"] = {"description": "A lie.", **lie}
    altered = tmp_path / "altered.json"
    altered.write_text(json.dumps(description))

    report, printed = schemathesis(
        tmp_path,
        signed_in,
        str(altered),
        *("--url", str(signed_in.base_url), "--include-path", path, "--phases", "examples,coverage,fuzzing"),
        *("--checks", ",".join(CHECKS), "--max-examples", "5"),
    )

    assert report["exit_code"] == 1, printed
    assert report["failures"], printed
