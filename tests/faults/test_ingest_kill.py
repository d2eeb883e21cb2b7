"""kill -9 of the agent service while it ingests: what it acknowledged is there, nothing is half there."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from answerdesk.v1 import knowledge_service_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2_grpc as pb_grpc

from tests.support.processes import Pair, clean_environment, is_ready_within

pytestmark = pytest.mark.faults

ROUNDS = 5
DOCUMENTS = 60
SECTIONS = 12


def write_documents(folder: Path, generation: int) -> None:
    """Documents of several passages, each of which names its document and generation."""
    target = folder / "handbook"
    target.mkdir(parents=True, exist_ok=True)
    for number in range(DOCUMENTS):
        sections = [
            f"## Part {part}\n\nKeeper{number} wrote d{number}g{generation}p{part}. {'Filler text. ' * 30}\n"
            for part in range(SECTIONS)
        ]
        (target / f"d{number}.md").write_text(f"# Document {number}\n\n" + "\n".join(sections))


def kill_after(agent: Pair, acknowledged: int, folder: Path) -> list[str]:
    """Ingest, kill the agent with SIGKILL once so many documents were acknowledged. Returns all acknowledged URIs."""
    target = agent.agent_target
    uris: list[str] = []
    enough = threading.Event()

    def documents() -> Iterator[pb.IngestDocumentsRequest]:
        for path in sorted((folder / "handbook").iterdir()):
            document = pb.Document(uri=f"handbook/{path.name}", collection="handbook", text=path.read_text())
            yield pb.IngestDocumentsRequest(document=document)

    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        try:
            for answer in stub.IngestDocuments(documents(), timeout=60):
                uris.append(answer.uri)
                if len(uris) == acknowledged:
                    agent.agent.signal(signal.SIGKILL)
                    enough.set()
        except grpc.RpcError:
            assert enough.is_set()
    agent.agent.wait()
    return uris


def stored(target: str) -> dict[str, pb.GetDocumentResponse]:
    """Every document with its text, by URI."""
    found: dict[str, pb.GetDocumentResponse] = {}
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        token = ""
        while True:
            page = stub.ListDocuments(pb.ListDocumentsRequest(page_size=200, page_token=token), timeout=10)
            for info in page.documents:
                found[info.uri] = stub.GetDocument(pb.GetDocumentRequest(id=info.id), timeout=10)
            token = page.next_page_token
            if not token:
                return found


def searched(target: str, query: str) -> list[str]:
    """The texts of what a search finds."""
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.KnowledgeServiceStub(channel)
        reply = stub.Search(pb.SearchRequest(query=query, top_k=50), timeout=10)
        return [passage.text for passage in reply.passages]


def start(pair: Pair) -> None:
    pair.agent.start()
    assert is_ready_within(lambda: _serving(pair.agent_target))


def _serving(target: str) -> bool:
    try:
        with grpc.insecure_channel(target) as channel:
            stub = pb_grpc.KnowledgeServiceStub(channel)
            stub.ListDocuments(pb.ListDocumentsRequest(page_size=1), timeout=2)
    except grpc.RpcError:
        return False
    return True


def test_kill_9_while_ingesting_loses_nothing_acknowledged_and_leaves_nothing_half(tmp_path: Path) -> None:
    pair = Pair(tmp_path, documents=None)
    folder = tmp_path / "docs"
    checked = 0
    try:
        start(pair)
        for generation in range(ROUNDS):
            write_documents(folder, generation)
            acknowledged = kill_after(pair, 3 + 11 * generation, folder)
            start(pair)

            there = stored(pair.agent_target)
            assert acknowledged
            for uri in acknowledged:
                assert there[uri].text == (folder / uri).read_text(), uri
            for uri, document in there.items():
                checked += 1
                number = re.search(r"d(\d+)\.md", uri)
                assert number is not None
                current = re.search(r"d\d+g(\d+)p", document.text)
                assert current is not None
                texts = "\n".join(searched(pair.agent_target, f"keeper{number.group(1)}"))
                marks = {m.groups() for m in re.finditer(rf"\bd{number.group(1)}g(\d+)p(\d+)\b", texts)}
                generations = {mark[0] for mark in marks}
                assert generations <= {current.group(1)}, f"{uri} shows {generations}"
                assert {mark[1] for mark in marks} == {str(part) for part in range(SECTIONS)}, uri
    finally:
        pair.stop()
    assert checked >= ROUNDS * 3


def test_kill_9_of_the_ingesting_command_leaves_the_serving_agent_whole(tmp_path: Path) -> None:
    pair = Pair(tmp_path, documents=None)
    folder = tmp_path / "docs"
    write_documents(folder, 0)
    try:
        start(pair)
        command = [sys.executable, "-m", "agent_service", "ingest", str(folder)]
        environment = clean_environment() | dict(pair.agent.environment)
        ingesting = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert is_ready_within(lambda: len(stored(pair.agent_target)) > 3)
        ingesting.kill()
        ingesting.wait()

        for uri, document in stored(pair.agent_target).items():
            assert document.text == (folder / uri).read_text()
            assert document.document.passages >= SECTIONS
    finally:
        pair.stop()
