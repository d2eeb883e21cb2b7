"""Documents and search."""

import httpx
import pytest

from edge_api.auth.schemas import OWN_ISSUER, Principal, UserId
from edge_api.auth.tokens import OwnTokens
from tests.integration.edge.conftest import SECRET, Edge
from tests.support.scripted_agent import PRICE, ScriptedAgent

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_document_is_read_whole_without_who_may_read_it(http: httpx.AsyncClient) -> None:
    response = await http.get("/api/documents/doc-plans")

    document = response.json()
    assert response.status_code == 200
    assert document["text"][10:] == PRICE
    assert (document["title"], document["uri"], document["collection"]) == ("Plans", "billing/plans.md", "billing")
    assert document["ingested_at"] == "2025-06-15T15:06:40Z"
    assert "secret-group" not in response.text


async def test_a_version_that_is_not_current_is_404(http: httpx.AsyncClient) -> None:
    current = await http.get("/api/documents/doc-plans", params={"version": "0123456789abcdef"})
    old = await http.get("/api/documents/doc-plans", params={"version": "ffffffffffffffff"})

    assert current.status_code == 200
    assert (old.status_code, old.json()["code"]) == (404, "unknown_document")


async def test_an_unknown_document_is_404_in_the_agents_words(http: httpx.AsyncClient) -> None:
    problem = (await http.get("/api/documents/nothing")).json()

    assert problem["detail"] == "there is no document nothing"
    assert problem["instance"] == "/api/documents/nothing"


async def test_a_search_passes_on_what_was_asked(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    response = await http.get("/api/search?q=enterprise%20price&collection=billing&collection=policy&top_k=3")

    found = response.json()
    assert found["passages"][0]["text"] == PRICE
    assert (found["support"], found["duration_ms"]) == (0.5, 2.5)
    request = agent.searches[0]
    assert (request.query, list(request.collections), request.top_k) == ("enterprise price", ["billing", "policy"], 3)


async def test_a_search_has_defaults(http: httpx.AsyncClient, agent: ScriptedAgent) -> None:
    await http.get("/api/search", params={"q": "x"})

    assert (list(agent.searches[0].collections), agent.searches[0].top_k) == ([], 8)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "q"),
        ("q=", "q"),
        ("q=%20", "q"),
        (f"q={'x' * 8_001}", "q"),
        ("q=x&top_k=0", "top_k"),
        ("q=x&top_k=51", "top_k"),
        ("q=x&top_k=many", "top_k"),
        ("q=x&" + "&".join(["collection=a"] * 17), "collection"),
    ],
    ids=lambda value: value[:20],
)
async def test_a_wrong_search_is_422_and_says_where(http: httpx.AsyncClient, query: str, field: str) -> None:
    response = await http.get(f"/api/search?{query}")

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].startswith(field)


async def test_an_edge_that_cannot_vouch_stores_nothing_for_groups(edge: Edge, agent: ScriptedAgent) -> None:
    """The agent would take the writer for its operator, who may write for every group."""
    writer = Principal(UserId("u"), OWN_ISSUER, "u", scopes=frozenset({"documents:write"}))
    headers = {"Authorization": f"Bearer {OwnTokens(SECRET, ttl_s=60).issue(writer)}"}
    body = {"uri": "a.md", "collection": "policy", "text": "# A", "groups": ["hr"]}

    response = await edge.anonymous.post("/api/documents", json=body, headers=headers)

    assert (response.status_code, response.json()["code"]) == (502, "agent_refused")
