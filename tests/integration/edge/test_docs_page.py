"""/docs on a real socket, asked by hand and by a browser, over an API with nothing but a login."""

import asyncio
import gzip
import re
import socket
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from importlib import resources
from typing import Annotated, Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm

from edge_api.docs_page import add_docs
from tests.support.browser import PUBLIC_NAME, authorize, execute, open_tab

bearer = OAuth2PasswordBearer("/api/auth/login")


def api() -> FastAPI:
    """Two operations as the edge has them: the password form, and something behind it."""
    app = FastAPI(
        title="Tiny", docs_url=None, redoc_url=None, swagger_ui_oauth2_redirect_url=None, redirect_slashes=False
    )

    @app.post("/api/auth/login")
    async def login(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, str]:
        if (form.username, form.password) != ("ada", "correct horse"):
            raise HTTPException(401)
        return {"access_token": "token-of-ada", "token_type": "bearer"}

    @app.get("/api/sessions")
    async def sessions(token: Annotated[str, Depends(bearer)]) -> dict[str, Any]:
        if token != "token-of-ada":
            raise HTTPException(401)
        return {"sessions": []}

    add_docs(app)
    return app


@pytest.fixture
async def port() -> AsyncIterator[int]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api(), http="httptools", lifespan="off", log_config=None))
    served = asyncio.create_task(server.serve([sock]))
    yield sock.getsockname()[1]
    server.should_exit = True
    await served


@pytest.fixture
async def http(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
        yield http


class Page(HTMLParser):
    """What a page loads, and the scripts and styles that stand in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.addresses += [value for name, value in attrs if name in {"src", "href"} and value]
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._tag in {"script", "style"} and data.strip():
            self.inline.append(data)


async def addresses(http: httpx.AsyncClient) -> dict[str, str]:
    """The page's assets by file name."""
    found = Page((await http.get("/docs")).text).addresses
    return {re.sub(r".*/|\?.*", "", address): f"/{address}" for address in found}


async def test_the_page_names_itself_and_forbids_everything_foreign_and_inline(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")

    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Answerdesk</title>" in answer.text
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    assert Page(answer.text).inline == []


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("swagger-ui.css", "text/css; charset=utf-8"),
        ("favicon-32x32.png", "image/png"),
    ],
)
async def test_assets_are_the_package_s_files(http: httpx.AsyncClient, name: str, media_type: str) -> None:
    address = (await addresses(http))[name]

    answer = await http.get(address)

    assert answer.content == (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_an_asset_is_kept_forever_under_its_own_version_only(http: httpx.AsyncClient) -> None:
    address = (await addresses(http))["swagger-ui.css"]

    kept = await http.get(address)
    of_another_release = await http.get(address[:-1] + "x")
    without_version = await http.get("/docs/assets/swagger-ui.css")

    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert of_another_release.headers["cache-control"] == without_version.headers["cache-control"] == "no-cache"
    assert of_another_release.content == kept.content


async def test_an_asset_that_did_not_change_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/docs/assets/init.js")

    again = await http.get("/docs/assets/init.js", headers={"If-None-Match": first.headers["etag"]})
    changed = await http.get("/docs/assets/init.js", headers={"If-None-Match": 'W/"other"'})

    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert changed.status_code == 200


async def test_text_is_compressed_for_whoever_takes_it(http: httpx.AsyncClient) -> None:
    plain = await http.get("/docs/assets/swagger-ui-bundle.js", headers={"Accept-Encoding": "identity"})

    async with http.stream(
        "GET", "/docs/assets/swagger-ui-bundle.js", headers={"Accept-Encoding": "br, gzip"}
    ) as answer:
        sent = b"".join([part async for part in answer.aiter_raw()])

    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(sent) == plain.content
    assert len(sent) < len(plain.content) / 3


async def test_images_are_sent_as_they_are(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs/assets/favicon-32x32.png", headers={"Accept-Encoding": "gzip"})

    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/init.js", "/docs/assets/swagger-ui-bundle.js"])
async def test_head_has_the_headers_of_get_and_no_body(http: httpx.AsyncClient, path: str) -> None:
    get, head = await http.get(path), await http.head(path)

    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}


@pytest.mark.parametrize("path", ["/docs/assets/", "/docs/assets/__init__.py", "/docs/assets/..%2fmain.py"])
async def test_other_files_of_the_package_are_not_served(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


async def test_the_description_of_the_api_leaves_them_out(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]

    assert set(paths) == {"/api/auth/login", "/api/sessions"}


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("host", ["127.0.0.1", PUBLIC_NAME])
async def test_a_person_logs_in_and_tries_an_operation(port: int, host: str) -> None:
    async with open_tab(f"http://{host}:{port}") as tab:
        await tab.page.goto("/docs")
        await authorize(tab.page, "ada", "correct horse")
        status = await execute(tab.page, "/api/sessions")

    assert status == "200"
    assert f"http://{host}:{port}/api/sessions" in tab.requests
    assert tab.foreign_requests == []
    assert tab.complaints == []


@pytest.mark.needs("chromium")
async def test_a_browser_reports_what_the_policy_stops(port: int) -> None:
    """That nobody complains proves something only if this holds; likewise the next one."""
    async with open_tab(f"http://127.0.0.1:{port}") as tab:
        await tab.page.goto("/docs")
        await tab.page.evaluate(
            """() => {
                const image = document.createElement("img");
                image.src = "https://validator.swagger.io/validator";
                const style = document.createElement("style");
                style.textContent = "body { color: red }";
                document.body.append(image, style);
                return fetch("https://example.com/").catch(() => null);
            }"""
        )

    complaints = " ".join(tab.complaints)
    assert [name for name in ("img-src", "style-src", "connect-src") if name not in complaints] == []


@pytest.mark.needs("chromium")
async def test_a_browser_reports_foreign_requests(port: int) -> None:
    async with open_tab(f"http://127.0.0.1:{port}") as tab:
        await tab.page.goto("/openapi.json")
        await tab.page.evaluate("() => fetch('https://example.com/away').catch(() => null)")

    assert tab.foreign_requests == ["https://example.com/away"]
