"""The commands of `python -m agent_service`, in this process, over a real embedded store and a real port."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_service import __main__ as main_module
from agent_service import commands
from agent_service.errors import StartupError
from agent_service.rpc.ingest_client import serving
from agent_service.settings import Settings
from agent_service.types import Access, CollectionName
from tests.support.processes import free_port
from tests.support.tokens import internal_token, key_pair

LUNCH = "# Lunch\n\nThe quokka canteen opens at noon.\n"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "handbook").mkdir(parents=True)
    (folder / "handbook" / "lunch.md").write_text(LUNCH)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", listen=f"127.0.0.1:{free_port()}", offline_delay_s=0, drain_s=0)


@asynccontextmanager
async def served(settings: Settings, load: commands.IngestOptions | None = None) -> AsyncIterator[None]:
    """The service in a task of this loop, ended by SIGTERM as an init system would."""
    task = asyncio.create_task(commands.run_server(settings, load))
    async with asyncio.timeout(30):
        while not await serving(settings.listen):
            assert not task.done(), task.exception()
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await task == 0


async def test_ingest_without_a_server_fills_the_store_and_search_finds_it(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = commands.IngestOptions([documents])

    assert await commands.ingest(settings, options, None) == 0
    assert await commands.ingest(settings, options, None) == 0
    assert await commands.search(settings, "When does the quokka canteen open?", 3, None) == 0

    printed = capsys.readouterr()
    assert "1 documents: 1 created" in printed.err
    assert "1 documents: 1 unchanged" in printed.err
    assert "handbook/lunch.md" in printed.out


async def test_ingest_and_search_go_to_a_serving_agent(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(settings):
        assert await commands.ingest(settings, commands.IngestOptions([documents]), None) == 0
        assert await commands.ingest(settings, commands.IngestOptions([documents]), settings.listen) == 0
        assert await commands.search(settings, "quokka canteen", 3, None) == 0
        assert await commands.search(settings, "zanzibar", 3, None) == 0
        assert await commands.search(settings, " ", 3, None) == 1

    printed = capsys.readouterr()
    assert "1 created" in printed.err
    assert "1 unchanged" in printed.err
    assert "handbook/lunch.md" in printed.out
    assert "Nothing found." in printed.out
    assert "INVALID_ARGUMENT: query" in printed.err


async def test_documents_named_at_start_are_loaded_before_the_service_is_ready(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(settings, commands.IngestOptions([documents])):
        async with asyncio.timeout(30):
            while await commands.search(settings, "quokka canteen", 1, None) or "Lunch" not in capsys.readouterr().out:
                pass


async def test_files_that_are_no_documents_are_reported_and_fail_the_command(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (documents / "handbook" / "broken.md").write_bytes(b"\xff\xfe\xfa")

    local = await commands.ingest(settings, commands.IngestOptions([documents]), None)
    async with served(settings):
        remote = await commands.ingest(settings, commands.IngestOptions([documents]), None)

    assert (local, remote) == (1, 1)
    assert capsys.readouterr().err.count("handbook/broken.md: ") == 2


async def test_documents_that_break_a_rule_are_reported_here_and_there(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = commands.IngestOptions([documents], CollectionName("NOT ALLOWED"))

    local = await commands.ingest(settings, bad, None)
    async with served(settings):
        remote = await commands.ingest(settings, bad, None)

    assert (local, remote) == (1, 1)
    assert capsys.readouterr().err.count("document.collection") == 2


async def test_a_serving_agent_takes_no_documents_for_another_tenant_from_a_local_caller(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(settings):
        code = await commands.ingest(settings, commands.IngestOptions([documents], access=Access("acme")), None)

    assert code == 1
    assert "document.access.tenant" in capsys.readouterr().err


ADVICE = 'To make one: export AGENT_TOKEN="$(python -m edge_api token --tenant '


async def test_with_a_token_documents_go_to_its_tenant_and_groups_and_are_found_with_it(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair()
    token = SecretStr(internal_token(private, subject="ada", tenant="acme", groups=["staff"]))
    settings = settings.model_copy(update={"verify_key": public})
    known = settings.model_copy(update={"token": token})
    options = commands.IngestOptions([documents], access=Access("acme", ("staff",)))

    async with served(settings):
        assert await commands.ingest(known, options, None) == 0
        assert await commands.search(known, "quokka canteen", 3, None) == 0
        assert "handbook/lunch.md" in capsys.readouterr().out
        assert await commands.search(settings, "quokka canteen", 3, None) == 0

    printed = capsys.readouterr()
    assert "Nothing found." in printed.out
    assert ADVICE not in printed.err


@pytest.mark.parametrize(
    ("given", "access", "problem", "advice"),
    [
        ({}, Access("acme"), "document.access.tenant: must be the caller's own tenant", "acme)"),
        ({}, Access("ac me", ("a b",)), "document.access.tenant", "'ac me' --group 'a b')"),
        ({"tenant": "acme"}, Access("acme", ("staff",)), "groups that the caller is in", "acme --group staff)"),
        ({"exp": 1}, Access("default"), "UNAUTHENTICATED: the token has expired", "default)"),
    ],
)
async def test_who_is_not_the_right_caller_is_told_how_to_become_it(
    settings: Settings,
    documents: Path,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, Any],
    access: Access,
    problem: str,
    advice: str,
) -> None:
    private, public = key_pair()
    settings = settings.model_copy(update={"verify_key": public})
    token = SecretStr(internal_token(private, **({"subject": "ada"} | given))) if given else None

    async with served(settings):
        known = settings.model_copy(update={"token": token})
        code = await commands.ingest(known, commands.IngestOptions([documents], access=access), None)

    assert code == 1
    printed = capsys.readouterr().err
    assert problem in printed
    assert printed.count(f'{ADVICE}{advice}"') == 1


async def test_a_search_with_a_token_that_is_not_taken_says_how_to_make_one(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(settings):
        known = settings.model_copy(update={"token": SecretStr("x.y.z")})
        assert await commands.search(known, "quokka", 3, None) == 1

    printed = capsys.readouterr().err
    assert "UNAUTHENTICATED: this service is not set up to verify tokens" in printed
    assert ADVICE in printed
    assert "x.y.z" not in printed


async def test_a_target_without_an_agent_is_an_error(settings: Settings, documents: Path) -> None:
    with pytest.raises(StartupError, match="no agent service answers"):
        await commands.ingest(settings, commands.IngestOptions([documents]), settings.listen)


async def test_many_problems_are_summed_up(
    settings: Settings, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(commands.SHOWN_PROBLEMS + 3):
        (documents / "handbook" / f"broken{number}.md").write_bytes(b"\xff")

    assert await commands.ingest(settings, commands.IngestOptions([documents]), None) == 1
    assert "... and 3 more" in capsys.readouterr().err


def test_check_roster_prints_the_team(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    assert main_module.main(["check-roster"]) == 0
    printed = capsys.readouterr().out
    assert "hybrid over billing" in printed
    assert "may call order_status, search_documents" in printed


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            '[[tools]]\nname = "x"\nfunction = "nowhere.at:all"',
            "tool 'x': function 'nowhere.at:all' cannot be imported",
        ),
        (
            '[[guardrails]]\nname = "x"\non = "input"\nfunction = "json:nothing"',
            "guardrail 'x': function 'json:nothing'",
        ),
        ('[[guardrails]]\nname = "x"\non = "output"\npattern = "("', "is no regular expression"),
        (
            (
                '[[mcp_servers]]\nname = "s"\nurl = "http://127.0.0.1:1/mcp"\nheaders = { A = "NOT_SET_ANYWHERE" }\n'
                '[[tools]]\nname = "t"\nmcp_server = "s"'
            ),
            "NOT_SET_ANYWHERE is not set",
        ),
    ],
)
def test_check_roster_finds_what_is_missing_around_it(
    tmp_path: Path, table: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    (tmp_path / "prompt.md").write_text("You answer.")
    roster = tmp_path / "roster.toml"
    agent = '[[agents]]\nname = "a"\ndescription = "A."\ninstructions = "prompt.md"\n'
    roster.write_text(f'entry = "a"\n{agent}tools = {["t"] if "mcp" in table else []}\n{table}\n')
    monkeypatch.setenv("AGENT_ROSTER", str(roster))

    assert main_module.main(["check-roster"]) == main_module.STARTUP_FAILED
    assert says in capsys.readouterr().err


def test_main_ingests_and_searches(
    tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("AGENT_LISTEN", f"127.0.0.1:{free_port()}")

    assert main_module.main(["ingest", str(documents), "--group", "staff", "--collection", "food"]) == 0
    assert main_module.main(["search", "quokka"]) == 0

    printed = capsys.readouterr()
    assert "1 created" in printed.err
    assert "Nothing found." in printed.out, "a local caller is in no group"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AGENT_LISTN", "x", "did you mean AGENT_LISTEN?"),
        ("AGENT_LISTEN", "nowhere", "AGENT_LISTEN: must be HOST:PORT"),
        ("AGENT_ROSTER", "/nowhere/roster.toml", "AGENT_ROSTER"),
    ],
)
def test_main_tells_what_keeps_it_from_starting(
    name: str, value: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    assert main_module.main(["check-roster"]) == main_module.STARTUP_FAILED
    assert says in capsys.readouterr().err


async def test_a_service_that_cannot_load_its_documents_does_not_start(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"--load .*nowhere"):
        await commands.run_server(settings, commands.IngestOptions([tmp_path / "nowhere"]))


async def test_a_search_of_a_target_without_an_agent_is_an_error(settings: Settings) -> None:
    with pytest.raises(StartupError, match="no agent service answers"):
        await commands.search(settings, "lunch", 3, settings.listen)


@pytest.mark.parametrize("top_k", ["0", "-1", "51", "many"])
def test_a_number_of_passages_out_of_range_is_refused(top_k: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main_module.main(["search", "lunch", "--top-k", top_k])

    assert "--top-k" in capsys.readouterr().err
