"""Limits as callers meet them: requests of a user and an address, sign-ins, guests, and answers at once."""

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from edge_api.auth import passwords
from tests.integration.edge.conftest import Edge, StartEdge, client_of
from tests.integration.edge.streams import Stream, streaming
from tests.support.redis_server import RedisServer
from tests.support.scripted_agent import ScriptedAgent, answer, events, started

ORIGIN = "http://localhost:3000"
PASSWORD = "a long sentence of hers"
HEALTH = ("/livez", "/readyz", "/health")
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id", "retryable"}


@pytest.fixture(autouse=True)
def _quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are counted here; what one costs is not shown, and half a second each would add up."""
    monkeypatch.setattr(passwords, "TIME_COST", 1)
    monkeypatch.setattr(passwords, "MEMORY_KIB", 1_024)


def check_limited(response: httpx.Response, code: str = "rate_limited", *, at_most_s: int = 60) -> None:
    assert response.status_code == 429, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() >= MEMBERS
    assert (problem["status"], problem["code"], problem["retryable"]) == (429, code, True)
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.headers["retry-after"].isdecimal()
    assert 1 <= int(response.headers["retry-after"]) <= at_most_s
    assert problem["retry_after"] == int(response.headers["retry-after"])
    assert "www-authenticate" not in response.headers


async def statuses(http: httpx.AsyncClient, count: int, path: str = "/api/agents", **options: Any) -> list[int]:
    """Of some requests, one after the other."""
    return [(await http.get(path, **options)).status_code for _ in range(count)]


async def attempts(http: httpx.AsyncClient, forwarded: Sequence[str | None], username: str = "") -> list[int]:
    """Of attempts to sign in with a wrong password, each under a name of its own where none is given."""
    found = []
    for each in forwarded:
        headers = {} if each is None else {"X-Forwarded-For": each}
        form = {"username": username or f"user-{uuid.uuid4()}", "password": "wrong wrong"}
        found.append((await http.post("/api/auth/login", data=form, headers=headers)).status_code)
    return found


# Requests of a user


async def test_the_request_after_the_last_one_of_a_minute_is_429(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="5/minute") as edge:
        assert await statuses(edge.http, 5) == [200] * 5

        refused = await edge.http.get("/api/agents", headers={"Origin": ORIGIN})

        check_limited(refused)
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert "retry-after" in refused.headers["access-control-expose-headers"].lower()


async def test_another_origin_is_refused_without_cors_headers(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="1/minute") as edge:
        await statuses(edge.http, 1)

        refused = await edge.http.get("/api/agents", headers={"Origin": "https://evil.example"})

        check_limited(refused)
        assert [name for name in refused.headers if name.startswith("access-control-")] == []


async def test_all_operations_of_a_user_count_together(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    async with start_edge(rate_limit="5/minute") as edge:
        found = [
            await edge.http.get("/api/agents"),
            await edge.http.post("/api/chat", json={"message": "x"}),
            await edge.http.get("/api/sessions"),
            await edge.http.get("/api/search?q=x"),
            await edge.http.get("/api/auth/me"),
        ]
        assert [each.status_code for each in found] == [200] * 5
        agent.forget()

        for method, path in (
            ("POST", "/api/chat"),
            ("POST", "/chat"),
            ("GET", "/api/sessions"),
            ("GET", "/sessions/x"),
        ):
            body = {"message": "x"} if method == "POST" else None
            check_limited(await edge.http.request(method, path, json=body))
            streamed = await edge.http.request(method, path, json=body, headers={"Accept": "text/event-stream"})
            check_limited(streamed)
    assert agent.calls == []


async def test_what_is_refused_is_not_stored(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="2/second") as edge:
        replies = await asyncio.gather(*(edge.http.post("/api/chat", json={"message": "x"}) for _ in range(8)))
        stored = sum(each.status_code == 200 for each in replies)
        assert {each.status_code for each in replies} == {200, 429}
        await asyncio.sleep(1.1)

        sessions = (await edge.http.get("/api/sessions")).json()["sessions"]

        assert len(sessions) == stored


async def test_other_users_of_the_same_address_are_not_touched(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="5/minute") as edge:
        assert await statuses(edge.http, 7) == [200] * 5 + [429] * 2

        others = [await edge.guest(), await edge.guest()]

        for headers in others:
            assert await statuses(edge.anonymous, 6, headers=headers) == [200] * 5 + [429]


async def test_a_user_is_counted_over_all_tokens_and_addresses(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="5/minute", trusted_proxies=("127.0.0.1",)) as edge:
        name = f"ada-{uuid.uuid4()}"
        form = {"username": name, "password": PASSWORD}
        registered = await edge.anonymous.post("/api/auth/register", json=form)
        signed_in = await edge.anonymous.post("/api/auth/login", data=form)
        tokens = [each.json()["access_token"] for each in (registered, signed_in)]

        found = [
            (
                await edge.anonymous.get(
                    "/api/agents",
                    headers={"Authorization": f"Bearer {tokens[n % 2]}", "X-Forwarded-For": f"198.51.100.{n}"},
                )
            ).status_code
            for n in range(7)
        ]

        assert found == [200] * 5 + [429] * 2


async def test_after_the_stated_time_it_goes_on(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="2/second") as edge:
        found = await asyncio.gather(*(edge.http.get("/api/agents") for _ in range(6)))
        refused = [each for each in found if each.status_code == 429]
        assert refused
        for each in refused:
            check_limited(each, at_most_s=1)

        await asyncio.sleep(int(refused[0].headers["retry-after"]))

        assert (await edge.http.get("/api/agents")).status_code == 200


@pytest.mark.needs("redis")
async def test_edges_over_one_redis_count_together(start_edge: StartEdge, redis: RedisServer) -> None:
    redis.flush()
    url = SecretStr(redis.url)
    async with (
        start_edge(rate_limit="5/minute", redis_url=url) as one,
        start_edge(rate_limit="5/minute", redis_url=url) as other,
        client_of(other.port) as http,
    ):
        http.headers["Authorization"] = one.http.headers["Authorization"]
        found = [(await edge.get("/api/agents")).status_code for _ in range(3) for edge in (one.http, http)]

        assert found == [200] * 5 + [429]
        check_limited(await one.http.get("/api/agents"))
        assert await statuses(other.http, 1) == [200], "the other edge's own guest is somebody else"


async def test_edges_without_redis_count_for_themselves(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="2/minute") as one, start_edge(rate_limit="2/minute") as other:
        headers = {"Authorization": one.http.headers["Authorization"]}

        assert await statuses(one.http, 3) == [200, 200, 429]
        assert await statuses(other.anonymous, 3, headers=headers) == [200, 200, 429]


# Requests of an address


async def test_an_address_is_limited_with_good_tokens_bad_ones_and_none(start_edge: StartEdge) -> None:
    # One more for the guest that every edge here begins with.
    async with start_edge(rate_limit="1000/minute", address_rate_limit="7/minute") as edge:
        assert await statuses(edge.http, 2) == [200] * 2
        assert await statuses(edge.anonymous, 2) == [401] * 2
        assert await statuses(edge.anonymous, 2, headers={"Authorization": "Bearer garbage"}) == [401] * 2

        check_limited(await edge.http.get("/api/agents"))
        check_limited(await edge.anonymous.get("/api/agents"))
        check_limited(await edge.anonymous.post("/api/auth/refresh"))


async def test_health_is_never_limited(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="1/minute", address_rate_limit="1/minute") as edge:
        assert 429 in await statuses(edge.http, 3)

        for path in HEALTH:
            assert await statuses(edge.anonymous, 20, path) == [200] * 20
            assert await statuses(edge.http, 2, path) == [200] * 2


# Signing in


async def test_the_eleventh_attempt_of_an_address_is_429(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="60/minute") as edge:
        assert await attempts(edge.anonymous, [None] * 10) == [401] * 10

        refused = await edge.anonymous.post(
            "/api/auth/login", data={"username": "ada", "password": "wrong wrong"}, headers={"Origin": ORIGIN}
        )

        check_limited(refused)
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert await statuses(edge.http, 1) == [200], "who is signed in goes on"


async def test_attempts_at_one_name_count_together_over_all_addresses(start_edge: StartEdge) -> None:
    rates = {"rate_limit": "60/minute", "account_rate_limit": "10/minute"}
    async with start_edge(trusted_proxies=("127.0.0.1",), **rates) as edge:
        name = f"ada-{uuid.uuid4()}"
        await edge.anonymous.post("/api/auth/register", json={"username": name, "password": PASSWORD})
        addresses = [f"198.51.100.{n}" for n in range(12)]

        assert await attempts(edge.anonymous, addresses[:5], name) == [401] * 5
        # The same name in another spelling.
        assert await attempts(edge.anonymous, addresses[5:10], name.upper()) == [401] * 5
        assert await attempts(edge.anonymous, addresses[10:], name) == [429] * 2
        assert await attempts(edge.anonymous, addresses[10:]) == [401] * 2, "other names are not touched"


async def test_a_limited_sign_in_is_refused_also_with_the_right_password(start_edge: StartEdge) -> None:
    rates = {"rate_limit": "60/minute", "account_rate_limit": "3/minute"}
    async with start_edge(trusted_proxies=("127.0.0.1",), **rates) as edge:
        form = {"username": f"ada-{uuid.uuid4()}", "password": PASSWORD}
        proxied = {"X-Forwarded-For": "203.0.113.9"}
        await edge.anonymous.post("/api/auth/register", json=form, headers=proxied)
        assert await attempts(edge.anonymous, [f"198.51.100.{n}" for n in range(3)], form["username"]) == [401] * 3

        refused = await edge.anonymous.post("/api/auth/login", data=form, headers=proxied)

        check_limited(refused)
        assert "set-cookie" not in refused.headers


async def test_one_address_alone_does_not_keep_an_owner_from_signing_in(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="60/minute", trusted_proxies=("127.0.0.1",)) as edge:
        form = {"username": f"ada-{uuid.uuid4()}", "password": PASSWORD}
        proxied = {"X-Forwarded-For": "203.0.113.9"}
        await edge.anonymous.post("/api/auth/register", json=form, headers=proxied)
        assert (await attempts(edge.anonymous, ["198.51.100.1"] * 12, form["username"]))[-2:] == [429] * 2

        assert (await edge.anonymous.post("/api/auth/login", data=form, headers=proxied)).status_code == 200


async def test_bodies_that_are_refused_count_too(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="60/minute", login_rate_limit="3/minute") as edge:
        replies = [await edge.anonymous.post("/api/auth/register", content=b"{") for _ in range(4)]

        assert [each.status_code for each in replies] == [415, 415, 415, 429]


async def test_registering_is_limited_like_signing_in(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="60/minute", login_rate_limit="2/minute") as edge:
        bodies = [{"username": f"ada-{uuid.uuid4()}", "password": PASSWORD} for _ in range(3)]

        replies = [await edge.anonymous.post("/api/auth/register", json=body) for body in bodies]

        assert [each.status_code for each in replies] == [201, 201, 429]
        check_limited(replies[2])


# Whose address it is


async def test_without_trusted_proxies_the_forwarded_header_helps_nobody(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="60/minute") as edge:
        rotating = [f"198.51.100.{n}" for n in range(12)]

        assert await attempts(edge.anonymous, rotating) == [401] * 10 + [429] * 2


async def test_a_proxy_that_is_not_the_trusted_one_helps_nobody(start_edge: StartEdge) -> None:
    trusted = ("10.0.0.1", "192.168.0.0/16", "::1")
    async with start_edge(rate_limit="60/minute", login_rate_limit="3/minute", trusted_proxies=trusted) as edge:
        assert await attempts(edge.anonymous, [f"198.51.100.{n}" for n in range(5)]) == [401] * 3 + [429] * 2


async def test_the_address_that_a_trusted_proxy_tells_counts(start_edge: StartEdge) -> None:
    settings = {"rate_limit": "60/minute", "login_rate_limit": "3/minute", "trusted_proxies": ("127.0.0.1",)}
    async with start_edge(**settings) as edge:
        assert await attempts(edge.anonymous, ["198.51.100.1"] * 4) == [401] * 3 + [429]
        assert await attempts(edge.anonymous, ["198.51.100.2"] * 4) == [401] * 3 + [429]
        assert await attempts(edge.anonymous, ["198.51.100.1"]) == [429]


@pytest.mark.parametrize(
    "spoof", ["203.0.113.{n}", "203.0.113.{n}, 203.0.113.1{n}", "127.0.0.1, 203.0.113.{n}", "x{n}"]
)
async def test_what_a_client_puts_left_of_the_proxys_entry_does_not_count(start_edge: StartEdge, spoof: str) -> None:
    settings = {"rate_limit": "60/minute", "login_rate_limit": "3/minute", "trusted_proxies": ("127.0.0.1",)}
    async with start_edge(**settings) as edge:
        forwarded = [f"{spoof.format(n=n)}, 198.51.100.7" for n in range(5)]

        assert await attempts(edge.anonymous, forwarded) == [401] * 3 + [429] * 2
        assert await attempts(edge.anonymous, ["198.51.100.8"]) == [401]


async def test_two_forwarded_headers_are_read_as_one(start_edge: StartEdge) -> None:
    settings = {"rate_limit": "60/minute", "login_rate_limit": "3/minute", "trusted_proxies": ("127.0.0.1",)}
    async with start_edge(**settings) as edge:
        found = []
        for n in range(5):
            headers = [("X-Forwarded-For", f"203.0.113.{n}"), ("X-Forwarded-For", "198.51.100.7")]
            form = {"username": f"user-{uuid.uuid4()}", "password": "wrong wrong"}
            found.append((await edge.anonymous.post("/api/auth/login", data=form, headers=headers)).status_code)

        assert found == [401] * 3 + [429] * 2


async def test_trusted_proxies_in_a_row_are_looked_through(start_edge: StartEdge) -> None:
    trusted = ("127.0.0.1", "10.0.0.0/8")
    async with start_edge(rate_limit="60/minute", login_rate_limit="3/minute", trusted_proxies=trusted) as edge:
        forwarded = [f"203.0.113.{n}, 198.51.100.7, 10.0.{n}.1, 10.1.1.{n}" for n in range(5)]

        assert await attempts(edge.anonymous, forwarded) == [401] * 3 + [429] * 2


async def test_other_headers_for_the_same_thing_help_nobody(start_edge: StartEdge) -> None:
    settings = {"rate_limit": "60/minute", "login_rate_limit": "3/minute", "trusted_proxies": ("127.0.0.1",)}
    async with start_edge(**settings) as edge:
        found = []
        for n in range(5):
            names = ("Forwarded", "X-Real-IP", "X-Client-IP", "CF-Connecting-IP", "True-Client-IP")
            headers = {name: f"for=203.0.113.{n}" if name == "Forwarded" else f"203.0.113.{n}" for name in names}
            form = {"username": f"user-{uuid.uuid4()}", "password": "wrong wrong"}
            found.append((await edge.anonymous.post("/api/auth/login", data=form, headers=headers)).status_code)

        assert found == [401] * 3 + [429] * 2


async def test_one_household_of_ipv6_is_one_address(start_edge: StartEdge) -> None:
    settings = {"rate_limit": "60/minute", "login_rate_limit": "3/minute", "trusted_proxies": ("127.0.0.1",)}
    async with start_edge(**settings) as edge:
        assert await attempts(edge.anonymous, [f"2001:db8:1:2::{n}" for n in range(5)]) == [401] * 3 + [429] * 2
        assert await attempts(edge.anonymous, ["2001:db8:1:3::1"]) == [401]


@pytest.mark.parametrize(
    "odd", ["", ",", "unknown", "198.51.100.7:80", "[2001:db8::1]:443", "x" * 4_000, "\xff", "a, ,"]
)
async def test_no_forwarded_header_is_a_5xx(start_edge: StartEdge, odd: str) -> None:
    async with start_edge(rate_limit="60/minute", trusted_proxies=("127.0.0.1",)) as edge:
        headers = {b"X-Forwarded-For": odd.encode("latin-1")}

        assert (await edge.anonymous.get("/api/agents", headers=headers)).status_code == 401
        assert (await edge.http.get("/api/agents", headers=headers)).status_code == 200


# Guests


async def test_guests_are_made_more_slowly_than_requests_are_served(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="60/minute") as edge:
        # One was made at the start.
        made = [await edge.anonymous.post("/api/auth/guest") for _ in range(21)]

        assert [each.status_code for each in made] == [201] * 19 + [429] * 2
        check_limited(made[-1])
        assert await statuses(edge.http, 30) == [200] * 30


async def test_guests_are_counted_by_address(start_edge: StartEdge) -> None:
    settings = {"rate_limit": "60/minute", "guest_rate_limit": "2/minute", "trusted_proxies": ("127.0.0.1",)}
    async with start_edge(**settings) as edge:
        found = [
            (await edge.anonymous.post("/api/auth/guest", headers={"X-Forwarded-For": address})).status_code
            for address in ["198.51.100.1"] * 3 + ["198.51.100.2"] * 3
        ]

        assert found == [201, 201, 429] * 2


# Off


async def test_off_switches_every_limit_off(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    settings = {
        "rate_limit": "off",
        "address_rate_limit": "1/minute",
        "login_rate_limit": "1/minute",
        "guest_rate_limit": "1/minute",
        "max_user_turns": 1,
    }
    async with start_edge(**settings) as edge:
        assert await statuses(edge.http, 80) == [200] * 80
        assert await attempts(edge.anonymous, [None] * 4, "ada") == [401] * 4
        for _ in range(3):
            await edge.guest()
        async with held(edge, agent, 3) as (streams, go_on):
            go_on.set()
            for stream in streams:
                assert (await stream.rest())[-1].type == "complete"


async def test_one_limit_can_be_off_alone(start_edge: StartEdge) -> None:
    async with start_edge(rate_limit="3/minute", login_rate_limit="off", address_rate_limit="off") as edge:
        assert await attempts(edge.anonymous, [None] * 11, "ada") == [401] * 11
        assert await statuses(edge.http, 4) == [200] * 3 + [429]


# Answers at once


@contextlib.asynccontextmanager
async def held(edge: Edge, agent: ScriptedAgent, count: int) -> AsyncIterator[tuple[list[Stream], asyncio.Event]]:
    """Streams of one user that have started and go on when told so."""
    go_on = asyncio.Event()

    async def wait(_context: object) -> None:
        await go_on.wait()

    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            agent.turns.append([started(), wait, *events(*answer("x"))[1:]])
            stream = await stack.enter_async_context(streaming(edge.http))
            assert stream.response.status_code == 200
            await stream.until("event: start")
            streams.append(stream)
        # Called before the streams are closed, so that no failed test waits for them.
        stack.callback(go_on.set)
        yield streams, go_on


@pytest.mark.parametrize("path", ["/api/chat", "/chat"])
async def test_a_turn_beyond_the_users_own_is_429_until_one_has_ended(
    start_edge: StartEdge, agent: ScriptedAgent, path: str
) -> None:
    async with start_edge(rate_limit="1000/minute", max_user_turns=2) as edge, held(edge, agent, 2) as (streams, go_on):
        for accept in ("application/json", "text/event-stream"):
            headers = {"Origin": ORIGIN, "Accept": accept}
            refused = await edge.http.post(path, json={"message": "third"}, headers=headers)

            check_limited(refused, "too_many_turns")
            assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert len(agent.calls) == 2
        sessions = (await edge.http.get("/api/sessions")).json()["sessions"]
        assert len(sessions) == 2, "what was refused was not stored"

        guest = await edge.guest()
        reply = await edge.anonymous.post("/api/chat", json={"message": "x"}, headers=guest)
        assert reply.status_code == 200, "another user is not touched"

        go_on.set()
        assert (await streams[0].rest())[-1].type == "complete"

        # Stored before `complete` left: there is room at once.
        assert (await edge.http.post("/api/chat", json={"message": "again"})).status_code == 200


async def test_a_stream_that_was_left_makes_room(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    async with (
        start_edge(rate_limit="1000/minute", max_user_turns=1, disconnect_grace_s=0) as edge,
        held(edge, agent, 1) as (streams, _),
    ):
        check_limited(await edge.http.post("/api/chat", json={"message": "second"}), "too_many_turns")
        await streams[0].response.aclose()

        async with asyncio.timeout(10):
            found = 429
            while found == 429:
                await asyncio.sleep(0.05)
                found = (await edge.http.post("/api/chat", json={"message": "again"})).status_code
        assert found == 200


async def test_many_at_once_never_get_more_turns_than_allowed(start_edge: StartEdge, agent: ScriptedAgent) -> None:
    go_on = asyncio.Event()
    running, most = 0, 0

    async def count(_context: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1

    for _ in range(12):
        agent.turns.append([count, started(), *events(*answer("x"))[1:]])
    async with start_edge(rate_limit="1000/minute", max_user_turns=3) as edge:
        posts = [asyncio.create_task(edge.http.post("/api/chat", json={"message": "x"})) for _ in range(12)]
        refused = [await each for each in itertools.islice(asyncio.as_completed(posts), 9)]
        go_on.set()
        replies = await asyncio.gather(*posts)

    assert {each.status_code for each in refused} == {429}
    assert sorted(each.status_code for each in replies) == [200] * 3 + [429] * 9
    assert most == 3
