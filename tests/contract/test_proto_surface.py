"""What the committed protocol offers, said by its descriptors and by buf, and that the generated code is of it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from answerdesk.v1 import agent_service_pb2, conversation_pb2, error_reason_pb2, knowledge_service_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from agent_service import server
from agent_service.vitals import PARTS
from tests.conftest import ROOT, tool
from tests.support import protos

FILES = (agent_service_pb2, conversation_pb2, error_reason_pb2, knowledge_service_pb2)

SERVICES = {
    "answerdesk.v1.AgentService": {
        "Chat": ("ChatRequest", "stream ChatResponse"),
        "WatchTurn": ("WatchTurnRequest", "stream WatchTurnResponse"),
        "StopTurn": ("StopTurnRequest", "StopTurnResponse"),
        "ListAgents": ("ListAgentsRequest", "ListAgentsResponse"),
    },
    "answerdesk.v1.KnowledgeService": {
        "Search": ("SearchRequest", "SearchResponse"),
        "IngestDocuments": ("stream IngestDocumentsRequest", "stream IngestDocumentsResponse"),
        "ListDocuments": ("ListDocumentsRequest", "ListDocumentsResponse"),
        "GetDocument": ("GetDocumentRequest", "GetDocumentResponse"),
        "DeleteDocument": ("DeleteDocumentRequest", "DeleteDocumentResponse"),
    },
}
"""DESIGN.md, "Contract: gRPC"."""


def descriptors(with_comments: Path) -> list[FileDescriptorProto]:
    """The files of the protocol with their comments, compiled anew."""
    out = with_comments / "set.binpb"
    names = sorted(str(path.relative_to(protos.PROTOS)) for path in protos.PROTOS.glob("answerdesk/**/*.proto"))
    arguments = [f"--proto_path={protos.PROTOS}", "--include_source_info", f"--descriptor_set_out={out}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments, *names], check=True, timeout=60)
    return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def uncommented(file: FileDescriptorProto) -> Iterator[str]:
    """Messages, fields, oneofs, enums, values, services and methods without a comment before them."""
    names = {
        (4,): "message", (5,): "enum", (6,): "service", (4, 2): "field", (4, 8): "oneof", (4, 3): "message",
        (4, 4): "enum", (5, 2): "value", (6, 2): "method", (4, 4, 2): "value", (4, 3, 2): "field",
    }  # fmt: skip
    for location in file.source_code_info.location:
        kind = names.get(tuple(location.path[::2]))
        if kind and len(location.path) % 2 == 0 and not location.leading_comments.strip():
            yield f"{file.name}:{location.span[0] + 1}: {kind}"


def test_the_services_have_the_methods_of_the_design() -> None:
    found = {
        service.full_name: {
            method.name: (
                "stream " * method.client_streaming + method.input_type.name,
                "stream " * method.server_streaming + method.output_type.name,
            )
            for method in service.methods
        }
        for module in FILES
        for service in module.DESCRIPTOR.services_by_name.values()
    }

    assert found == SERVICES


def test_the_server_says_these_names_and_those_of_health_and_reflection() -> None:
    assert set(server.SERVICES) == set(SERVICES)
    assert {server.PART.format(part) for part in PARTS} == {"answerdesk.model", "answerdesk.tools"}
    assert health.SERVICE_NAME == "grpc.health.v1.Health"
    assert reflection.SERVICE_NAME == "grpc.reflection.v1alpha.ServerReflection"


def test_every_part_of_the_protocol_has_a_comment(tmp_path: Path) -> None:
    files = descriptors(tmp_path)

    assert len(files) == len(FILES)
    assert [place for file in files for place in uncommented(file)] == []


def test_the_check_for_comments_would_see_a_missing_one(tmp_path: Path) -> None:
    (file,) = (each for each in descriptors(tmp_path) if each.name.endswith("conversation.proto"))
    location = next(each for each in file.source_code_info.location if each.leading_comments and len(each.path) == 4)
    location.leading_comments = ""

    assert len(list(uncommented(file))) == 1


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.DESCRIPTOR.name.rpartition("/")[2])
def test_every_enum_begins_with_an_unspecified_value(module: type[agent_service_pb2]) -> None:  # type: ignore[valid-type]
    for enum in module.DESCRIPTOR.enum_types_by_name.values():  # type: ignore[attr-defined]
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


def test_tenant_and_groups_are_in_the_contract_from_the_start() -> None:
    assert set(conversation_pb2.Access.DESCRIPTOR.fields_by_name) == {"tenant", "groups"}
    for message in (knowledge_service_pb2.Document, knowledge_service_pb2.DocumentInfo):
        access = message.DESCRIPTOR.fields_by_name["access"].message_type
        assert access is not None
        assert access.full_name == "answerdesk.v1.Access"


def test_a_citation_carries_what_the_design_lists() -> None:
    fields = conversation_pb2.Citation.DESCRIPTOR.fields_by_name

    assert set(fields) >= {
        "marker", "answer_span", "document_id", "version", "title", "uri", "heading", "source_span", "page", "quote"
    }  # fmt: skip


def test_a_trace_says_who_wrote_and_what_was_done_again_and_taken_out() -> None:
    fields = conversation_pb2.Trace.DESCRIPTOR.fields_by_name

    assert {name: fields[name].number for name in ("model", "retries", "removed_links")} == {
        "model": 11, "retries": 12, "removed_links": 13
    }  # fmt: skip


def test_events_are_numbered_and_of_one_kind_each() -> None:
    response = agent_service_pb2.ChatResponse.DESCRIPTOR

    assert set(response.fields_by_name) - {field.name for field in response.oneofs_by_name["event"].fields} == {
        "turn_id", "sequence"
    }  # fmt: skip
    assert response.fields_by_name["sequence"].type == FieldDescriptor.TYPE_UINT64


def test_who_watches_a_turn_gets_the_same_bytes_as_who_asked() -> None:
    """Replicas hand events to each other as ChatResponse and serve them to those who watch, too."""
    chat, watch = agent_service_pb2.ChatResponse.DESCRIPTOR, agent_service_pb2.WatchTurnResponse.DESCRIPTOR

    assert [(f.number, f.name, f.type, f.message_type) for f in chat.fields] == [
        (f.number, f.name, f.type, f.message_type) for f in watch.fields
    ]


def test_only_the_message_of_a_chat_is_needed() -> None:
    minimal = agent_service_pb2.ChatRequest(message="why?")

    assert agent_service_pb2.ChatRequest.FromString(minimal.SerializeToString()) == minimal
    assert not [f.name for f in agent_service_pb2.ChatRequest.DESCRIPTOR.fields if f.is_required]


# --- generated code ---


def test_the_generated_code_is_what_the_protos_say() -> None:
    assert protos.differences() == []


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    copy = tmp_path / "gen"
    shutil.copytree(protos.GENERATED, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_generated_code_that_was_edited_is_reported(copied: Path) -> None:
    edited = copied / "answerdesk/v1/agent_service_pb2.pyi"
    edited.write_text(edited.read_text() + "\n# by hand\n")

    assert protos.differences(copied) == ["answerdesk/v1/agent_service_pb2.pyi"]


def test_generated_code_that_is_missing_or_too_much_is_reported(copied: Path) -> None:
    (copied / "answerdesk/v1/conversation_pb2.py").unlink()
    (copied / "answerdesk/v1/extra_pb2.py").write_text("")

    assert protos.differences(copied) == ["answerdesk/v1/conversation_pb2.py", "answerdesk/v1/extra_pb2.py"]


def test_a_proto_that_was_changed_without_generating_is_reported(tmp_path: Path) -> None:
    changed = tmp_path / "protos"
    shutil.copytree(protos.PROTOS / "answerdesk", changed / "answerdesk")
    proto = changed / "answerdesk/v1/agent_service.proto"
    proto.write_text(proto.read_text().replace("message Token {", "message Token {\n  // New.\n  bool new = 2;"))

    found = protos.differences(protos=changed)

    assert "answerdesk/v1/agent_service_pb2.py" in found
    assert "answerdesk/v1/agent_service_pb2.pyi" in found


def test_a_proto_that_does_not_compile_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "protos/answerdesk/v1/broken.proto"
    broken.parent.mkdir(parents=True)
    broken.write_text("this is no proto")

    with pytest.raises(RuntimeError, match="protoc ended with exit code"):
        protos.generate(tmp_path / "out", tmp_path / "protos")
    assert "broken.proto" in capfd.readouterr().err


def test_the_check_command_ends_with_zero_where_nothing_drifted() -> None:
    assert protos.main("check") == 0


# --- buf ---


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = tool("buf")
    assert program is not None
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.needs("buf")
@pytest.mark.parametrize("arguments", [("lint",), ("format", "--diff", "--exit-code")], ids=lambda a: a[0])
def test_buf_finds_nothing_to_say(arguments: tuple[str, ...]) -> None:
    done = buf(*arguments)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
