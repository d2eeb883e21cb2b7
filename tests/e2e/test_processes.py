"""How the two processes start, fail and end, as those who run them see it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.processes import ROOT, Pair, Process, clean_environment, free_port, is_ready_within

pytestmark = pytest.mark.e2e


def agent(tmp_path: Path, *arguments: str, **settings: str) -> Process:
    environment = {"AGENT_DATA_DIR": str(tmp_path / "data"), **settings}
    return Process(["-m", "agent_service", *arguments], environment, tmp_path / f"agent{free_port()}.log")


def run_agent(tmp_path: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    process = agent(tmp_path, *arguments, **settings).start()
    return process.wait(60), process.output()


def test_a_second_agent_on_the_same_data_directory_is_refused(pair: Pair, tmp_path: Path) -> None:
    data_dir = pair.agent.environment["AGENT_DATA_DIR"]

    code, output = run_agent(tmp_path, "serve", AGENT_DATA_DIR=data_dir, AGENT_LISTEN=f"127.0.0.1:{free_port()}")

    assert code == 2
    assert str(pair.agent.popen.pid) in output
    assert "AGENT_DATA_DIR" in output
    assert "Traceback" not in output


def test_a_second_agent_on_the_same_port_is_refused(pair: Pair, tmp_path: Path) -> None:
    code, output = run_agent(tmp_path, "serve", AGENT_LISTEN=pair.agent_target)

    assert code == 2
    assert f"AGENT_LISTEN={pair.agent_target}" in output
    assert "Traceback" not in output


def test_a_second_edge_on_the_same_port_is_refused(pair: Pair, tmp_path: Path) -> None:
    environment = {"EDGE_PORT": str(pair.edge_port), "EDGE_DATA_DIR": str(tmp_path / "edge")}
    edge = Process(["-m", "edge_api", "serve"], environment, tmp_path / "edge.log").start()

    assert edge.wait(60) == 2
    assert "EDGE_PORT" in edge.output()
    assert "Traceback" not in edge.output()


@pytest.mark.parametrize(
    ("module", "settings", "says"),
    [
        ("agent_service", {"AGENT_LISTN": "127.0.0.1:1"}, "did you mean AGENT_LISTEN?"),
        ("agent_service", {"AGENT_MAX_TURNS": "many"}, "AGENT_MAX_TURNS"),
        ("agent_service", {"AGENT_MODEL_PROVIDER": "openai"}, "OPENAI_API_KEY"),
        ("agent_service", {"AGENT_ROSTER": "/nowhere/roster.toml"}, "AGENT_ROSTER"),
        ("edge_api", {"EDGE_PROT": "1"}, "EDGE_PORT"),
        ("edge_api", {"EDGE_PORT": "many"}, "EDGE_PORT"),
        ("edge_api", {"EDGE_CORS_ORIGINS": "*"}, "EDGE_CORS_ORIGINS"),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path: Path, module: str, settings: dict[str, str], says: str) -> None:
    environment = {"AGENT_DATA_DIR": str(tmp_path / "data"), **settings}
    process = Process(["-m", module, "serve"], environment, tmp_path / "log").start()

    assert process.wait(60) == 2
    assert says in process.output()
    assert "Traceback" not in process.output()


def test_an_agent_that_goes_and_comes_back_needs_no_restart_of_the_edge(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    try:
        pair.edge.start()
        with httpx.Client(base_url=pair.url, timeout=30) as http:
            assert is_ready_within(lambda: http.get("/livez").status_code == 200)
            http.headers.update(pair.guest())
            down = http.post("/api/chat", json={"message": "Do you comply with GDPR?"})
            ready = http.get("/readyz")
            pair.agent.start()
            pair.wait_ready()
            up = http.post("/api/chat", json={"message": "Do you comply with GDPR?"})
            pair.agent.signal(signal.SIGKILL)
            pair.agent.wait()
            gone = http.post("/api/chat", json={"message": "Do you comply with GDPR?"})
            pair.agent.start()
            pair.wait_ready()
            back = http.post("/api/chat", json={"message": "Do you comply with GDPR?"})
    finally:
        pair.stop()

    assert [down.status_code, up.status_code, gone.status_code, back.status_code] == [503, 200, 503, 200]
    assert int(down.headers["retry-after"]) >= 1
    assert down.headers["content-type"] == "application/problem+json"
    assert ready.status_code == 503
    assert "agent" in json.dumps(ready.json())


def test_sigterm_ends_both_with_exit_code_0(tmp_path: Path) -> None:
    pair = Pair(tmp_path, documents=None)
    try:
        pair.agent.start()
        pair.edge.start()
        pair.wait_ready()
        for process in (pair.edge, pair.agent):
            process.signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert "Traceback" not in process.output()
    finally:
        pair.stop()


def local_run(tmp_path: Path) -> tuple[Process, Pair]:
    """`make run` without make: what its recipe calls."""
    ports = Pair(tmp_path)
    environment = {
        "AGENT_DATA_DIR": str(tmp_path / "agent"),
        "AGENT_LISTEN": ports.agent_target,
        "EDGE_DATA_DIR": str(tmp_path / "edge"),
        "EDGE_PORT": str(ports.edge_port),
        "PYTHONUNBUFFERED": "1",
    }
    return Process(["-m", "deploy.local"], environment, tmp_path / "run.log").start(), ports


def test_make_run_is_ready_with_the_samples_and_ctrl_c_stops_both(tmp_path: Path) -> None:
    run, ports = local_run(tmp_path)
    try:
        assert is_ready_within(lambda: f"Answerdesk is ready at {ports.url}" in run.output())
        found = httpx.get(f"{ports.url}/api/search", params={"q": "GDPR"}, headers=ports.guest()).json()
        run.signal(signal.SIGINT)
        run.signal(signal.SIGTERM)
        code = run.wait(30)
    finally:
        run.stop()

    assert found["passages"]
    assert code == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{ports.url}/livez")


def test_make_run_ends_with_an_error_when_a_service_dies(tmp_path: Path) -> None:
    run, ports = local_run(tmp_path)
    try:
        assert is_ready_within(ports.ready)
        children = subprocess.run(
            ["pgrep", "-P", str(run.popen.pid), "-f", "agent_service"], capture_output=True, text=True, check=True
        )
        subprocess.run(["kill", "-9", children.stdout.split()[0]], check=True)
        code = run.wait(30)
    finally:
        run.stop()

    assert code == 1
    assert "The agent service ended" in run.output()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{ports.url}/livez")


@pytest.mark.alone
def test_a_warm_start_is_ready_within_eight_seconds(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    try:
        for process in (pair.agent, pair.edge):
            process.start()
        pair.wait_ready()
        pair.stop()
        started = time.monotonic()
        for process in (pair.agent, pair.edge):
            process.start()
        pair.wait_ready()
        seconds = time.monotonic() - started
    finally:
        pair.stop()

    assert seconds < 8


def test_ingest_streams_to_a_serving_agent_and_skips_what_did_not_change(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "handbook"
    folder.mkdir(parents=True)
    (folder / "lunch.md").write_text("# Lunch\n\nThe quokka canteen opens at noon.\n")
    target = {"AGENT_LISTEN": pair.agent_target}

    first = run_agent(tmp_path, "ingest", str(tmp_path / "docs"), **target)
    second = run_agent(tmp_path, "ingest", str(tmp_path / "docs"), **target)
    question = {"q": "quokka canteen", "collection": "handbook"}
    found = httpx.get(f"{pair.url}/api/search", params=question, headers=pair.guest()).json()

    assert first[0] == 0, first[1]
    assert "1 documents: 1 created" in first[1]
    assert "1 documents: 1 unchanged" in second[1]
    assert found["passages"][0]["title"] == "Lunch"


def test_ingest_opens_the_store_itself_when_no_agent_answers(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "handbook"
    folder.mkdir(parents=True)
    (folder / "lunch.md").write_text("# Lunch\n\nThe quokka canteen opens at noon.\n")
    (folder / "broken.md").write_bytes(b"\xff\xfe\xfa")
    nobody = {"AGENT_LISTEN": f"127.0.0.1:{free_port()}"}

    code, output = run_agent(tmp_path, "ingest", str(tmp_path / "docs"), **nobody)
    searched, printed = run_agent(tmp_path, "search", "quokka canteen", **nobody)

    assert code == 1, "a document that could not be read is said in the exit code"
    assert "1 created" in output
    assert "broken.md" in output
    assert searched == 0
    assert "Lunch" in printed


def test_check_roster_says_what_is_wrong(tmp_path: Path) -> None:
    roster = tmp_path / "roster.toml"
    roster.write_text('entry = "nobody"\n[[agents]]\nname = "a"\ndescription = "d"\ninstructions = "p.md"\n')

    code, output = run_agent(tmp_path, "check-roster", AGENT_ROSTER=str(roster))
    fine, listed = run_agent(tmp_path, "check-roster")

    assert code == 2
    assert "nobody" in output
    assert fine == 0
    assert "policy" in listed


def test_the_edge_extra_alone_imports_no_agent_part_and_the_agent_no_web_framework(tmp_path: Path) -> None:
    """Each service in an environment with nothing but its own locked dependencies."""
    probes = {
        "edge": ("edge_api.app", {"agents", "openai", "qdrant_client", "qdrant_edge", "numpy", "mcp"}),
        "agent": ("agent_service.commands", {"fastapi", "sqlalchemy"}),
    }
    for extra, (module, unwanted) in probes.items():
        venv = tmp_path / extra
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        python = str(venv / "bin" / "python")
        install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
        locked = ["--no-compile", "--require-hashes", "-r", str(ROOT / "requirements" / f"{extra}.txt")]
        subprocess.run([*install, *locked], check=True)
        code = f"import sys, {module}; print(sorted({unwanted!r} & set(sys.modules)))"
        path = f"{ROOT}:{ROOT / 'protos' / 'gen'}"
        environment = clean_environment() | {"PYTHONPATH": path}
        printed = subprocess.run(
            [python, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert printed.strip() == "[]", extra
