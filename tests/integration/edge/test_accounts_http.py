"""Accounts as a browser and a program meet them: registering, signing in, guests, the refresh cookie, signing out."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
import pytest_asyncio

from edge_api.auth import passwords
from tests.integration.edge.conftest import Edge, StartEdge, client_of, running_edge
from tests.support.scripted_agent import scripted_agent

pytestmark = pytest.mark.asyncio(loop_scope="module")

COOKIE = "answerdesk_refresh"
PASSWORD = "a long sentence of hers"
ALLOWED = "http://localhost:3000"
DAY_S, MONTH_S = 86_400, 2_592_000
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id", "retryable"}


class Visitor:
    """A client of one edge that keeps no cookie by itself: httpx would not send a `Secure` one over http."""

    def __init__(self, edge: Edge, http: httpx.AsyncClient) -> None:
        self.edge = edge
        self._http = http

    async def post(self, name: str, cookie: str | None = None, **options: Any) -> httpx.Response:
        """A request to an account endpoint."""
        headers = list(options.pop("headers", {}).items())
        if cookie is not None:
            headers.append(("Cookie", f"{COOKIE}={cookie}"))
        response = await self._http.post(f"/api/auth/{name}", headers=headers, **options)
        self._http.cookies.clear()
        return response

    async def me(self, response: httpx.Response) -> httpx.Response:
        """Who the token of a reply is of."""
        headers = {"Authorization": f"Bearer {response.json()['access_token']}"}
        return await self._http.get("/api/auth/me", headers=headers)

    async def register(self, username: str | None = None, password: str = PASSWORD) -> httpx.Response:
        """A new account."""
        response = await self.post("register", json={"username": username or name(), "password": password})
        assert response.status_code == 201, response.text
        return response

    async def guest_cookie(self) -> str:
        """The refresh token of a new guest."""
        return cookie_of(await self.post("guest"))

    async def is_good(self, cookie: str) -> bool:
        """Whether a refresh token is taken; it is used up by this."""
        response = await self.post("refresh", cookie)
        assert response.status_code in {200, 401}, response.text
        return response.status_code == 200


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def visitor() -> AsyncIterator[Visitor]:
    with pytest.MonkeyPatch.context() as patch:
        # What a hash costs is not shown here, and half a second for each would add up.
        patch.setattr(passwords, "TIME_COST", 1)
        patch.setattr(passwords, "MEMORY_KIB", 1_024)
        async with scripted_agent() as agent, running_edge(agent.target) as edge, client_of(edge.port) as http:
            yield Visitor(edge, http)


def name() -> str:
    return f"ada-{uuid.uuid4()}"


def cookie_of(response: httpx.Response) -> str:
    assert response.status_code < 300, response.text
    value: str = morsel(response).value
    return value


def morsel(response: httpx.Response) -> Any:
    """The one cookie that a reply sets."""
    (header,) = response.headers.get_list("set-cookie")
    (found,) = SimpleCookie(header).values()
    assert found.key == COOKIE
    return found


def attributes(response: httpx.Response) -> dict[str, str]:
    """Those of the one cookie that a reply sets, names in lower case."""
    (header,) = response.headers.get_list("set-cookie")
    return {key.strip().lower(): value for key, _, value in (part.partition("=") for part in header.split(";")[1:])}


def check_tokens(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body.keys() == {"access_token", "token_type", "expires_in"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    given = attributes(response)
    seconds = int(given.pop("max-age"))
    assert given == {"secure": "", "httponly": "", "samesite": "strict", "path": "/api/auth"}
    assert 0 < seconds <= MONTH_S
    assert len(morsel(response).value) >= 43
    assert morsel(response).value not in response.text


def check_problem(response: httpx.Response, status: int, code: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() >= MEMBERS
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert "set-cookie" not in response.headers


def without_request_id(response: httpx.Response) -> dict[str, Any]:
    return {key: value for key, value in response.json().items() if key != "request_id"}


# Registering


@pytest.mark.parametrize("field", ["username", "email"])
async def test_registering_signs_in_under_either_name_of_the_field(visitor: Visitor, field: str) -> None:
    chosen = f"{name()}@example.com"

    response = await visitor.post("register", json={field: chosen, "password": PASSWORD})

    check_tokens(response, 201)
    assert attributes(response)["max-age"] == str(MONTH_S)
    me = (await visitor.me(response)).json()
    assert (me["username"], me["issuer"], me["tenant"]) == (chosen, "answerdesk", "default")
    assert (me["scopes"], me["groups"], me["guest"]) == (["chat"], [], False)
    assert me["subject"] == me["user_id"]
    assert (await visitor.post("login", data={"username": chosen, "password": PASSWORD})).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"username": None},
        {"username": ""},
        {"username": "ab"},
        {"username": "   "},
        {"username": " ada-with-space"},
        {"username": "ada\nwith\nlines"},
        {"username": "ada\u0000nul"},
        {"username": "ada\u200bhidden"},
        {"username": "x" * 255},
        {"username": "\ufdfa" * 254},
        {"username": 12_345},
        {"username": ["ada", "bob"]},
        {"password": None},
        {"password": ""},
        {"password": "1234567"},
        {"password": " " * 12},
        {"password": "\t\n" * 6},
        {"password": "x" * 257},
        {"password": 12_345_678},
        {"scopes": ["admin"]},
        {"scope": "admin"},
        {"tenant": "acme"},
        {"groups": ["staff"]},
        {"guest": False},
        {"id": "1"},
    ],
    ids=str,
)
async def test_a_registration_that_breaks_a_rule_is_422_and_makes_no_account(
    visitor: Visitor, changes: dict[str, Any]
) -> None:
    body = {"username": name(), "password": PASSWORD} | changes

    response = await visitor.post("register", json={key: value for key, value in body.items() if value is not None})

    check_problem(response, 422, "invalid_request")
    assert response.json()["errors"]
    assert PASSWORD not in response.text
    if isinstance(body["username"], str) and body["username"].startswith("ada-") and isinstance(body["password"], str):
        login = await visitor.post("login", data={"username": body["username"], "password": body["password"] or "x"})
        assert login.status_code in {401, 422}


async def test_a_password_that_is_refused_is_not_repeated(visitor: Visitor) -> None:
    for password in ("plant3d", "planted" * 40):
        response = await visitor.post("register", json={"username": name(), "password": password})

        assert response.status_code == 422
        assert "plant" not in response.text


async def test_the_name_is_no_password(visitor: Visitor) -> None:
    chosen = name()
    for password in (chosen, chosen.upper()):
        response = await visitor.post("register", json={"username": chosen, "password": password})

        check_problem(response, 422, "invalid_request")


async def test_names_and_passwords_may_have_their_shortest_and_longest(visitor: Visitor) -> None:
    for username, password in ((uuid.uuid4().hex[:3], "x7!kQp2z"), (f"{name():x<254}", "long " * 51 + "x")):
        response = await visitor.post("register", json={"username": username, "password": password})

        check_tokens(response, 201)
        login = await visitor.post("login", data={"username": username, "password": password})
        assert login.status_code == 200


@pytest.mark.parametrize("change", [str, str.upper, str.title, lambda text: text.replace("a", "\uff41")])
async def test_a_taken_name_is_409_also_where_it_only_looks_alike(visitor: Visitor, change: Any) -> None:
    chosen = name()
    await visitor.register(chosen)

    response = await visitor.post("register", json={"username": change(chosen), "password": "another sentence"})

    check_problem(response, 409, "username_taken")
    assert (await visitor.post("login", data={"username": chosen, "password": PASSWORD})).status_code == 200


async def test_of_many_who_want_a_name_at_once_one_gets_it(visitor: Visitor) -> None:
    chosen = name()
    async with client_of(visitor.edge.port) as http:
        body = {"username": chosen, "password": PASSWORD}
        replies = await asyncio.gather(*(http.post("/api/auth/register", json=body) for _ in range(8)))

    assert sorted(each.status_code for each in replies) == [201] + [409] * 7


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b'{"username": "ada\\ud800", "password": "a long sentence"}', "application/json", 422),
        (b'{"username": "ada-ada", "password": "a long sentence\\ud800"}', "application/json", 422),
        (b"", "application/json", 422),
        (b'{"username": "ada-ada", "password": "a long sentence"}', "text/plain", 415),
        (b"username=ada-ada&password=a+long+sentence", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_registration_is_json_or_nothing(visitor: Visitor, body: bytes, kind: str, status: int) -> None:
    response = await visitor.post("register", content=body, headers={"Content-Type": kind})

    assert response.status_code == status, response.text
    assert response.json().keys() >= MEMBERS


# Signing in


async def test_signing_in_takes_the_oauth2_form_in_any_case_of_the_name(visitor: Visitor) -> None:
    chosen = name()
    await visitor.register(chosen)
    form = {"username": chosen.upper(), "password": PASSWORD, "client_id": "swagger", "client_secret": "x"}
    for more in ({}, {"grant_type": "password"}, {"scope": "chat"}):
        response = await visitor.post("login", data=form | more)

        check_tokens(response, 200)
        assert attributes(response)["max-age"] == str(MONTH_S)
        assert (await visitor.me(response)).json()["username"] == chosen


async def test_an_unknown_name_and_a_wrong_password_are_told_apart_by_nobody(visitor: Visitor) -> None:
    chosen = name()
    await visitor.register(chosen)
    forms = [
        {"username": chosen, "password": f"{PASSWORD}x"},
        {"username": chosen, "password": PASSWORD.upper()},
        {"username": chosen, "password": f" {PASSWORD}"},
        {"username": name(), "password": PASSWORD},
        {"username": "'; --", "password": PASSWORD},
        {"username": "\x00", "password": PASSWORD},
    ]
    replies = [await visitor.post("login", data=form) for form in forms]

    for response in replies:
        check_problem(response, 401, "invalid_credentials")
        assert without_request_id(response) == without_request_id(replies[0])
        assert set(response.headers) == set(replies[0].headers)


async def test_a_guest_cannot_sign_in_by_name(visitor: Visitor) -> None:
    me = (await visitor.me(await visitor.post("guest"))).json()
    for username in (me["user_id"], "None", "null"):
        response = await visitor.post("login", data={"username": username, "password": "null"})

        check_problem(response, 401, "invalid_credentials")


@pytest.mark.parametrize(
    "options",
    [
        {"json": {"username": "ada", "password": PASSWORD}},
        {"content": b"", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": b"\xff\xfe&&==", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"a=1&" * 5_000, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"files": {"username": ("a.txt", b"ada"), "password": (None, PASSWORD)}},
        {"data": {"username": "ada"}},
        {"data": {"password": PASSWORD}},
        {"data": {"username": "", "password": PASSWORD}},
        {"data": {"username": "ada", "password": ""}},
        {"data": {"username": "x" * 255, "password": PASSWORD}},
        {"data": {"username": "ada", "password": "x" * 257}},
        {"data": {"username": "ada", "password": PASSWORD, "grant_type": "client_credentials"}},
    ],
    ids=str,
)
async def test_a_sign_in_of_another_form_is_refused(visitor: Visitor, options: dict[str, Any]) -> None:
    response = await visitor.post("login", **options)

    assert response.status_code in {415, 422}, response.text
    check_problem(response, response.status_code, response.json()["code"])
    assert PASSWORD not in response.text


async def test_a_form_that_is_too_large_is_413(visitor: Visitor) -> None:
    response = await visitor.post("login", data={"username": "ada", "password": "x" * 1_048_577})

    check_problem(response, 413, "body_too_large")


# Guests


async def test_every_guest_is_somebody_else_for_a_day(visitor: Visitor) -> None:
    first, second = [await visitor.post("guest") for _ in range(2)]

    for response in (first, second):
        check_tokens(response, 201)
        assert DAY_S - 5 <= int(attributes(response)["max-age"]) <= DAY_S
        me = (await visitor.me(response)).json()
        assert (me["guest"], me["username"], me["scopes"], me["issuer"]) == (True, None, ["chat"], "answerdesk")
    ids = {(await visitor.me(response)).json()["user_id"] for response in (first, second)}
    assert len(ids) == 2


async def test_a_guest_is_gone_after_a_day_however_often_they_refresh(start_edge: StartEdge) -> None:
    async with start_edge() as edge, client_of(edge.port) as http:
        visitor = Visitor(edge, http)
        cookie = await visitor.guest_cookie()
        edge.clock.pass_s(DAY_S - 300)
        refreshed = await visitor.post("refresh", cookie)
        assert refreshed.status_code == 200
        assert refreshed.json()["expires_in"] <= 300
        assert int(attributes(refreshed)["max-age"]) <= 300

        edge.clock.pass_s(301)

        check_problem(await visitor.me(refreshed), 401, "token_expired")
        check_problem(await visitor.post("refresh", cookie_of(refreshed)), 401, "invalid_refresh_token")


# The refresh cookie


async def test_a_refresh_gives_new_tokens_for_the_same_user(visitor: Visitor) -> None:
    for first in (await visitor.register(), await visitor.post("guest")):
        second = await visitor.post("refresh", cookie_of(first))

        check_tokens(second, 200)
        assert cookie_of(second) != cookie_of(first)
        assert second.json()["access_token"] != first.json()["access_token"]
        assert (await visitor.me(second)).json() == (await visitor.me(first)).json()
        third = await visitor.post("refresh", cookie_of(second))
        check_tokens(third, 200)


@pytest.mark.parametrize("cookie", [None, "", "nonsense", "x" * 129, "x" * 5_000, "%00", '"', "\xff\xfe"])
async def test_a_refresh_without_a_good_cookie_is_401(visitor: Visitor, cookie: str | None) -> None:
    headers = {} if cookie is None else {b"Cookie": f"{COOKIE}={cookie}".encode("latin-1")}

    check_problem(await visitor.post("refresh", headers=headers), 401, "invalid_refresh_token")


async def test_a_refresh_token_is_taken_from_its_cookie_only(visitor: Visitor) -> None:
    cookie = await visitor.guest_cookie()
    ways: list[dict[str, Any]] = [
        {"headers": {"Authorization": f"Bearer {cookie}"}},
        {"params": {COOKIE: cookie}},
        {"json": {"refresh_token": cookie}},
        {"data": {COOKIE: cookie, "refresh_token": cookie}},
        {"headers": {"Cookie": f"refresh={cookie}"}},
    ]
    for options in ways:
        check_problem(await visitor.post("refresh", **options), 401, "invalid_refresh_token")

    assert await visitor.is_good(cookie)


async def test_an_access_token_is_no_refresh_token(visitor: Visitor) -> None:
    token = (await visitor.post("guest")).json()["access_token"]

    check_problem(await visitor.post("refresh", token), 401, "invalid_refresh_token")


async def test_a_cookie_that_was_used_before_ends_the_whole_sign_in_and_no_other(visitor: Visitor) -> None:
    chosen = name()
    first = cookie_of(await visitor.register(chosen))
    elsewhere = cookie_of(await visitor.post("login", data={"username": chosen, "password": PASSWORD}))
    second = cookie_of(await visitor.post("refresh", first))
    third = cookie_of(await visitor.post("refresh", second))

    check_problem(await visitor.post("refresh", first), 401, "invalid_refresh_token")

    for cookie in (third, second, first):
        check_problem(await visitor.post("refresh", cookie), 401, "invalid_refresh_token")
    assert await visitor.is_good(elsewhere)


async def test_of_many_refreshes_at_once_one_wins_at_most(visitor: Visitor) -> None:
    cookie = await visitor.guest_cookie()
    async with client_of(visitor.edge.port) as http:
        headers = {"Cookie": f"{COOKIE}={cookie}"}
        replies = await asyncio.gather(*(http.post("/api/auth/refresh", headers=headers) for _ in range(6)))

    assert sorted(each.status_code for each in replies) == [200] + [401] * 5
    (won,) = [each for each in replies if each.status_code == 200]
    assert not await visitor.is_good(cookie_of(won)), "a used token came again: its family is revoked"


async def test_signing_out_ends_the_sign_in_and_removes_the_cookie(visitor: Visitor) -> None:
    chosen = name()
    first = cookie_of(await visitor.register(chosen))
    elsewhere = cookie_of(await visitor.post("login", data={"username": chosen, "password": PASSWORD}))
    second = cookie_of(await visitor.post("refresh", first))

    response = await visitor.post("logout", second)

    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["cache-control"] == "no-store"
    given = attributes(response)
    given.pop("expires", None)
    assert given == {"secure": "", "httponly": "", "samesite": "strict", "path": "/api/auth", "max-age": "0"}
    assert morsel(response).value == ""
    for cookie in (second, first):
        check_problem(await visitor.post("refresh", cookie), 401, "invalid_refresh_token")
    assert await visitor.is_good(elsewhere)


@pytest.mark.parametrize("cookie", [None, "", "nonsense", "x" * 5_000])
async def test_signing_out_without_a_sign_in_is_no_error(visitor: Visitor, cookie: str | None) -> None:
    response = await visitor.post("logout", cookie)

    assert response.status_code == 204
    assert attributes(response)["max-age"] == "0"


async def test_no_error_of_an_account_endpoint_sets_a_cookie_or_may_be_kept(visitor: Visitor) -> None:
    for response in (
        await visitor.post("refresh"),
        await visitor.post("login", data={"username": "ada", "password": "wrong wrong"}),
    ):
        assert "set-cookie" not in response.headers
        assert "public" not in response.headers.get("cache-control", "")


# Where the request comes from


def own_origins(visitor: Visitor) -> list[str | None]:
    return [None, f"http://127.0.0.1:{visitor.edge.port}", ALLOWED]


FOREIGN = [
    "https://evil.example",
    "null",
    "https://localhost:3000",
    "http://localhost:3001",
    "http://localhost",
    "http://127.0.0.1:3000",
    "http://localhost:3000.evil.example",
    "http://localhost:30000",
    "http://evil.example/http://localhost:3000",
    "https://evil.example#localhost",
    "https://evil.example?http://localhost:3000",
    "http://localhost:3000@evil.example",
    "http://localhost:3000/",
    "http://xlocalhost:3000",
    "file://",
    "http://127.0.0.1",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}@evil.example",
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}",
    "http://evil.example, http://127.0.0.1:{port}",
    "",
]


@pytest.mark.parametrize("ending", ["refresh", "logout"])
async def test_our_own_pages_and_programs_may_use_the_cookie(visitor: Visitor, ending: str) -> None:
    for origin in own_origins(visitor):
        cookie = await visitor.guest_cookie()
        headers = {"Origin": origin} if origin else {}

        response = await visitor.post(ending, cookie, headers=headers)

        assert response.status_code == (200 if ending == "refresh" else 204), origin
        allowed = response.headers.get("access-control-allow-origin")
        assert allowed == (ALLOWED if origin == ALLOWED else None)


@pytest.mark.parametrize("ending", ["refresh", "logout"])
@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_page_of_another_origin_is_403_and_changes_nothing(visitor: Visitor, origin: str, ending: str) -> None:
    cookie = await visitor.guest_cookie()
    headers = {"Origin": origin.format(port=visitor.edge.port)}

    response = await visitor.post(ending, cookie, headers=headers)

    check_problem(response, 403, "foreign_origin")
    assert [name for name in response.headers if name.startswith("access-control-")] == []
    assert await visitor.is_good(cookie)


@pytest.mark.parametrize("ending", ["refresh", "logout"])
async def test_one_good_origin_does_not_make_up_for_a_bad_one(visitor: Visitor, ending: str) -> None:
    cookie = await visitor.guest_cookie()
    url = f"http://127.0.0.1:{visitor.edge.port}/api/auth/{ending}"
    pair = [("Origin", ALLOWED), ("Origin", "https://evil.example")]
    async with client_of(visitor.edge.port) as http:
        for origins in (pair, pair[::-1]):
            response = await http.post(url, headers=[("Cookie", f"{COOKIE}={cookie}"), *origins])

            assert (response.status_code, response.json()["code"]) == (403, "foreign_origin")
    assert await visitor.is_good(cookie)


@pytest.mark.parametrize("beginning", ["register", "login", "guest"])
async def test_a_foreign_page_signs_nobody_in(visitor: Visitor, beginning: str) -> None:
    """Its victim would go on in an account that the page's owner can read."""
    account = {"username": name(), "password": "a sentence of the attacker"}
    await visitor.post("register", json=account)
    bodies: dict[str, dict[str, Any]] = {
        "register": {"json": account | {"username": name()}},
        "login": {"data": account},
        "guest": {},
    }

    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        response = await visitor.post(beginning, headers=headers, **bodies[beginning])

        check_problem(response, 403, "foreign_origin")
        assert "set-cookie" not in response.headers


async def test_a_foreign_page_learns_nothing_about_the_cookie(visitor: Visitor) -> None:
    headers = {"Origin": "https://evil.example"}
    good = await visitor.post("refresh", await visitor.guest_cookie(), headers=headers)
    bad = await visitor.post("refresh", "nonsense", headers=headers)

    assert without_request_id(good) == without_request_id(bad)


async def test_behind_a_proxy_that_ends_tls_only_https_pages_of_the_host_are_ours(start_edge: StartEdge) -> None:
    async with start_edge(trusted_proxies=("127.0.0.1",)) as edge, client_of(edge.port) as http:
        visitor = Visitor(edge, http)
        proxied = {"Host": "chat.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.7"}
        for origin, status in (
            ("https://chat.example.com", 200),
            ("http://chat.example.com", 403),
            ("https://chat.example.com:8443", 403),
            ("https://example.com", 403),
            ("https://chat.example.com.evil.example", 403),
        ):
            cookie = await visitor.guest_cookie()

            response = await visitor.post("refresh", cookie, headers=proxied | {"Origin": origin})

            assert response.status_code == status, origin


# Rules of the house


async def test_a_closed_registration_is_403_and_leaves_the_rest(start_edge: StartEdge) -> None:
    async with start_edge(registration="closed") as edge, client_of(edge.port) as http:
        visitor = Visitor(edge, http)

        response = await visitor.post("register", json={"username": name(), "password": PASSWORD})

        check_problem(response, 403, "registration_closed")
        check_tokens(await visitor.post("guest"), 201)


async def test_without_guests_being_one_is_403_and_the_rest_is_left(start_edge: StartEdge) -> None:
    async with start_edge(guests="off") as edge, client_of(edge.port) as http:
        visitor = Visitor(edge, http)

        response = await visitor.post("guest")

        assert response.status_code == 403
        assert response.json().keys() >= MEMBERS
        assert "set-cookie" not in response.headers
        check_tokens(await visitor.post("register", json={"username": name(), "password": PASSWORD}), 201)


async def test_an_access_token_runs_out_and_a_refresh_helps(start_edge: StartEdge) -> None:
    async with start_edge() as edge, client_of(edge.port) as http:
        visitor = Visitor(edge, http)
        first = await visitor.register()
        edge.clock.pass_s(890)
        assert (await visitor.me(first)).status_code == 200

        edge.clock.pass_s(12)

        check_problem(await visitor.me(first), 401, "token_expired")
        second = await visitor.post("refresh", cookie_of(first))
        assert (await visitor.me(second)).status_code == 200


async def test_a_sign_in_that_nobody_used_for_its_time_is_over(start_edge: StartEdge) -> None:
    async with start_edge(refresh_token_ttl_s=1_000.0, access_token_ttl_s=60.0) as edge, client_of(edge.port) as http:
        visitor = Visitor(edge, http)
        registered = await visitor.register()
        assert (registered.json()["expires_in"], attributes(registered)["max-age"]) == (60, "1000")
        for _ in range(3):
            edge.clock.pass_s(900)
            registered = await visitor.post("refresh", cookie_of(registered))
            assert registered.status_code == 200

        edge.clock.pass_s(1_001)

        check_problem(await visitor.post("refresh", cookie_of(registered)), 401, "invalid_refresh_token")


async def test_what_people_type_is_never_in_the_log(visitor: Visitor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="edge_api")
    registered = await visitor.post("register", json={"username": name(), "password": "planted sentence"})
    cookie = cookie_of(registered)
    await visitor.post("refresh", cookie)
    await visitor.post("refresh", cookie)
    await visitor.post("login", data={"username": "planted-name", "password": "planted sentence"})

    ours = [str(record.__dict__) for record in caplog.records if record.name.startswith("edge_api")]
    assert ours
    for secret in ("planted", cookie, registered.json()["access_token"]):
        assert not [line for line in ours if secret in line]
