"""/docs of a running pair, used as a person does: register, Authorize, try an operation."""

from uuid import uuid4

import httpx
import pytest

from tests.support.browser import authorize, execute, open_tab
from tests.support.processes import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium")]


async def test_a_registered_user_logs_in_and_lists_their_sessions(pair: Pair) -> None:
    # The pair is shared, and a name can be taken once.
    account = {"username": f"ada-{uuid4().hex[:8]}", "password": "a quokka eats at noon"}
    async with httpx.AsyncClient(base_url=pair.url, timeout=30, trust_env=False) as http:
        registered = await http.post("/api/auth/register", json=account)
    assert registered.status_code == 201, registered.text

    async with open_tab(pair.url) as tab:
        await tab.page.goto("/docs")
        await authorize(tab.page, **account)
        status = await execute(tab.page, "/api/sessions")

    assert status == "200"
    assert tab.foreign_requests == []
    assert tab.complaints == []
