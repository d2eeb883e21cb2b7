"""From settings to parts: the right store, the right models, and nothing that a bad setting leaves half open."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_service.errors import ModelUnavailableError, RetrievalUnavailableError, StartupError
from agent_service.retrieval.stores.edge import EdgeStore
from agent_service.retrieval.stores.server import ServerStore
from agent_service.settings import Settings
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    Completed,
    RequestId,
    SourceDocument,
    Token,
    TurnRequest,
    TurnStatus,
)
from agent_service.wiring import open_store, wire
from tests.support.answerers import here
from tests.support.openai_server import Reply, ScriptedOpenAI
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

LUNCH = SourceDocument("lunch.md", CollectionName("billing"), "", "# Lunch\n\nLunch costs 9 EUR.\n", Access("default"))


async def test_documents_are_kept_in_the_data_directory_by_default(tmp_path: Path) -> None:
    store = await open_store(Settings(data_dir=tmp_path))
    try:
        assert isinstance(store, EdgeStore)
        assert (tmp_path / "store").is_dir()
    finally:
        await store.close()


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
async def test_a_qdrant_url_moves_the_documents_to_a_server(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, qdrant_url=":memory:", offline_delay_s=0)
    store = await open_store(settings)
    parts = wire(settings, store)
    try:
        assert isinstance(store, ServerStore)
        await parts.pipeline.ingest(LUNCH)
        request = TurnRequest(RequestId("r"), "What does lunch cost?", Caller("ada", "default"))
        answer = [
            e.event.content async for e in here(parts.turns.chat(request, budget_s=10)) if isinstance(e.event, Token)
        ]
        assert "".join(answer) == "Lunch costs 9 EUR. [1]"
        assert not (tmp_path / "store").exists()
    finally:
        await parts.close()


async def test_a_qdrant_server_that_is_not_there_is_a_start_up_error_with_the_settings_name(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, qdrant_url=f"http://127.0.0.1:{free_port()}", retrieval_timeout_s=1)

    with pytest.raises((StartupError, RetrievalUnavailableError), match="AGENT_QDRANT_URL"):
        await open_store(settings)


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
async def test_a_key_and_a_base_url_are_all_that_a_hosted_model_needs(
    tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedOpenAI() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("AGENT_OPENAI_API", api)
        monkeypatch.setenv("AGENT_MODEL", "house-model")
        settings = Settings(data_dir=tmp_path)
        parts = wire(settings, await open_store(settings))
        try:
            await parts.pipeline.ingest(LUNCH)
            server.script(Reply.handoff("transfer_to_billing"), Reply.text("Lunch costs 9 EUR [1]."))
            request = TurnRequest(RequestId("r"), "What does lunch cost?", Caller("ada", "default"))
            events = [e.event async for e in here(parts.turns.chat(request, budget_s=10))]
        finally:
            await parts.close()

    answer = "".join(event.content for event in events if isinstance(event, Token))
    assert answer == "Lunch costs 9 EUR [1]."
    assert [call.body["model"] for call in server.requests] == ["house-model"] * 2
    assert "Lunch costs 9 EUR." in str(server.requests[1].body)


async def test_a_hosted_model_that_is_not_there_is_a_retryable_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    settings = Settings(data_dir=tmp_path)
    parts = wire(settings, await open_store(settings))
    try:
        await parts.pipeline.ingest(LUNCH)
        request = TurnRequest(RequestId("r"), "What does lunch cost?", Caller("ada", "default"))
        with pytest.raises(ModelUnavailableError) as raised:
            async for _ in parts.turns.chat(request, budget_s=10):
                pass
    finally:
        await parts.close()

    assert "sk-planted" not in str(raised.value)


@pytest.mark.needs("redis")
async def test_a_stop_through_another_replica_closes_the_connection_to_the_model_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis: RedisServer
) -> None:
    redis.flush()
    async with ScriptedOpenAI() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        settings = Settings(data_dir=tmp_path, redis_url=SecretStr(redis.url))
        other_settings = Settings(data_dir=tmp_path / "other", redis_url=SecretStr(redis.url))
        one = wire(settings, await open_store(settings))
        other = wire(other_settings, await open_store(other_settings))
        try:
            for parts in (one, other):
                await parts.turns.open()
            await one.pipeline.ingest(LUNCH)
            server.script(Reply.handoff("transfer_to_billing"), Reply.hang(after_pieces=2))
            request = TurnRequest(RequestId("r"), "What does lunch cost?", Caller("ada", "default"))
            following = here(one.turns.chat(request, budget_s=30))
            events = [await anext(following)]
            while not isinstance(events[-1].event, Token):
                events.append(await anext(following))

            stopped = await other.turns.stop(request.caller, events[0].turn_id)

            await server.wait_for_disconnect(1.0)
            rest = [event.event async for event in following]
        finally:
            for parts in (one, other):
                await parts.close()

    end = rest[-1]
    assert isinstance(end, Completed)
    assert (end.status, stopped.status) == (TurnStatus.STOPPED, TurnStatus.STOPPED)
    assert end.usage == stopped.usage
    assert stopped.usage.requests == 2
    assert stopped.usage.output_tokens > 0
    assert stopped.abort_ms < 1_000
    assert end.trace is not None
    assert end.trace.agent == "billing"
