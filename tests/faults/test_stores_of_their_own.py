"""Two agents with embedded stores of the same documents: a change that only one of them would see is refused."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from answerdesk.v1 import knowledge_service_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_grpc

from tests.support.cluster import DOCUMENTS, Cluster
from tests.support.processes import ROOT, clean_environment
from tests.support.tokens import internal_token

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60), pytest.mark.needs("postgres", "redis")]

USERNAME, PASSWORD = "writer", "a quokka eats at noon"


def found(target: str, token: str) -> dict[str, str]:
    """The documents there by URI, each with its version."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = pb.ListDocumentsRequest(page_size=200)
        reply = pb_grpc.KnowledgeServiceStub(channel).ListDocuments(request, timeout=10, metadata=bearer(token))
        return {document.uri: document.version for document in reply.documents}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def one_document() -> Iterator[pb.IngestDocumentsRequest]:
    document = pb.Document(uri="billing/new.md", collection="billing", text="# New\n\nThis is news.\n")
    yield pb.IngestDocumentsRequest(document=document)


@pytest.mark.parametrize("agent", [0, 1])
def test_changes_over_grpc_are_refused_and_say_what_to_do(cluster: Cluster, agent: int) -> None:
    token = internal_token(cluster.signing_key, subject="ada")
    before = [found(target, token) for target in cluster.targets]
    with grpc.insecure_channel(cluster.targets[agent], options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        documents = stub.ListDocuments(pb.ListDocumentsRequest(page_size=1), timeout=10, metadata=bearer(token))
        with pytest.raises(grpc.RpcError) as ingested:
            list(stub.IngestDocuments(one_document(), timeout=10, metadata=bearer(token)))
        request = pb.DeleteDocumentRequest(id=documents.documents[0].id)
        with pytest.raises(grpc.RpcError) as deleted:
            stub.DeleteDocument(request, timeout=10, metadata=bearer(token))

    refusals: list[Any] = [ingested.value, deleted.value]
    for refused in refusals:
        assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "AGENT_QDRANT_URL" in refused.details()
        assert "--load" in refused.details()
    assert set(before[0]) == set(DOCUMENTS)
    assert before[0] == before[1]
    assert [found(target, token) for target in cluster.targets] == before


def test_the_ingest_command_says_why_it_fails(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "billing").mkdir()
    (tmp_path / "billing" / "new.md").write_text("# New\n\nThis is news.\n")
    command = [sys.executable, "-m", "agent_service", "ingest", str(tmp_path), "--target", cluster.targets[1]]
    token = {"AGENT_TOKEN": internal_token(cluster.signing_key, subject="ada")}
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment() | token, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert "AGENT_QDRANT_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_upload_through_the_edge_is_refused_with_409(cluster: Cluster) -> None:
    headers = writer(cluster)
    document = {"uri": "billing/new.md", "collection": "billing", "text": "# New\n\nThis is news.\n"}
    replies = [
        httpx.post(f"{url}/api/documents", json=document, headers=headers, timeout=20, trust_env=False)
        for url in cluster.urls
    ]

    assert [reply.status_code for reply in replies] == [409, 409], [reply.text for reply in replies]
    for reply in replies:
        problem = reply.json()
        assert (problem["code"], problem["retryable"]) == ("store_not_shared", False)
        assert problem["detail"]


def writer(cluster: Cluster) -> dict[str, str]:
    """The headers of an account that may write documents."""
    scopes = ["--scope", "chat", "--scope", "documents:write"]
    command = [sys.executable, "-m", "edge_api", "users", "add", USERNAME, *scopes]
    environment = clean_environment() | dict(cluster.edges[0].environment)
    added = subprocess.run(
        command, cwd=ROOT, env=environment, input=PASSWORD, capture_output=True, text=True, timeout=60, check=False
    )
    assert added.returncode == 0, added.stdout + added.stderr
    form = {"username": USERNAME, "password": PASSWORD}
    reply = httpx.post(f"{cluster.urls[0]}/api/auth/login", data=form, timeout=30, trust_env=False)
    assert reply.status_code == 200, reply.text
    return {"Authorization": f"Bearer {reply.json()['access_token']}"}
