"""`buf breaking` against the last accepted contract: passes here, and would not pass a contract that breaks clients."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, tool

pytestmark = pytest.mark.needs("buf")

BASELINE = ROOT / "protos/baseline.binpb"
CONVERSATION = "protos/answerdesk/v1/conversation.proto"
AGENT = "protos/answerdesk/v1/agent_service.proto"
KNOWLEDGE = "protos/answerdesk/v1/knowledge_service.proto"


def breaking(project: Path) -> subprocess.CompletedProcess[str]:
    program = tool("buf")
    assert program is not None
    return subprocess.run(
        [program, "breaking", "--against", str(BASELINE)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the contract that may be broken."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos/answerdesk", tmp_path / "protos/answerdesk")
    return tmp_path


def edit(project: Path, file: str, pattern: str, replacement: str) -> None:
    path = project / file
    text, times = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert times == 1, f"{pattern} is there {times} times"
    path.write_text(text)


def test_the_contract_breaks_no_client_of_the_accepted_one() -> None:
    done = breaking(ROOT)

    assert (done.returncode, done.stdout) == (0, "")


def test_an_unchanged_copy_passes(project: Path) -> None:
    done = breaking(project)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_new_field_passes(project: Path) -> None:
    edit(project, AGENT, r"^  string content = 1;\n}", "  string content = 1;\n  // New.\n  bool new = 2;\n}")

    done = breaking(project)

    assert (done.returncode, done.stdout) == (0, "")


def removed_field(project: Path) -> str:
    edit(project, CONVERSATION, r"^  string quote = 10;\n", "")
    return "Citation"


def renamed_field(project: Path) -> str:
    edit(project, CONVERSATION, r"^  string quote = 10;", "  string words = 10;")
    return "quote"


def changed_type(project: Path) -> str:
    edit(project, KNOWLEDGE, r"^  uint32 page_size = 2;", "  string page_size = 2;")
    return "page_size"


def changed_number(project: Path) -> str:
    edit(project, AGENT, r"^  OnDisconnect on_disconnect = 6;", "  OnDisconnect on_disconnect = 26;")
    return "ChatRequest"


def removed_value(project: Path) -> str:
    edit(project, CONVERSATION, r"^  OUTCOME_REFUSED = 3;\n", "")
    return "Outcome"


def removed_method(project: Path) -> str:
    edit(project, AGENT, r"^  rpc ListAgents\(ListAgentsRequest\) returns \(ListAgentsResponse\);\n", "")
    return "ListAgents"


def no_longer_streamed(project: Path) -> str:
    edit(project, AGENT, r"returns \(stream ChatResponse\)", "returns (ChatResponse)")
    return "Chat"


BREAKS: list[Callable[[Path], str]] = [
    removed_field, renamed_field, changed_type, changed_number, removed_value, removed_method, no_longer_streamed
]  # fmt: skip


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda change: change.__name__)
def test_a_contract_that_breaks_clients_is_refused_and_the_place_is_named(
    project: Path, break_it: Callable[[Path], str]
) -> None:
    place = break_it(project)

    done = breaking(project)

    assert done.returncode != 0
    assert place in done.stdout
