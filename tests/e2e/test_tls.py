"""A pair with TLS both ways: the edge asks, the operator ingests and searches, and nobody else is let in."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import make_authority, make_certificate
from tests.support.processes import ROOT, SAMPLES, clean_environment, running_pair

pytestmark = pytest.mark.e2e


def agent_command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent_service", *arguments],
        cwd=ROOT,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_pair_with_tls_both_ways_answers_and_its_operator_gets_in(tmp_path: Path) -> None:
    authority = make_authority()
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    agent_cert, agent_key = make_certificate(authority, ("agent.internal",)).write(tmp_path, "agent")
    edge_cert, edge_key = make_certificate(authority, ("edge.internal",)).write(tmp_path, "edge")
    settings = {
        "AGENT_TLS_CERT": str(agent_cert),
        "AGENT_TLS_KEY": str(agent_key),
        "AGENT_TLS_CLIENT_CA": str(ca),
        "EDGE_AGENT_TLS_CA": str(ca),
        "EDGE_AGENT_TLS_CERT": str(edge_cert),
        "EDGE_AGENT_TLS_KEY": str(edge_key),
        "EDGE_AGENT_TLS_NAME": "agent.internal",
    }

    with running_pair(tmp_path, settings) as pair:
        question = {"message": "What does the Enterprise plan cost?"}
        reply = httpx.post(f"{pair.url}/api/chat", json=question, headers=pair.guest(), timeout=30, trust_env=False)
        environment = {**pair.agent.environment}
        ingested = agent_command(environment, "ingest", str(SAMPLES))
        found = agent_command(environment, "search", "Enterprise plan")
        outside = {name: value for name, value in environment.items() if not name.startswith("AGENT_TLS_")}
        refused = agent_command(outside, "search", "Enterprise plan", "--target", pair.agent_target)

    assert reply.status_code == 200, reply.text
    assert reply.json()["citations"]
    assert ingested.returncode == 0, ingested.stderr
    assert "unchanged" in ingested.stderr, "by the serving agent, which has loaded them"
    assert found.returncode == 0, found.stderr
    assert "plans" in found.stdout.lower()
    assert refused.returncode == 2
    assert "no agent service answers there without TLS" in refused.stderr
