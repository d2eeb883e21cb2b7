"""A real browser for tests: Chromium, which reports whom it asked and what it complained about."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import ConsoleMessage, Error, Page, Request, WebSocket, async_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

PUBLIC_NAME = "answerdesk.test"
"""A host name that is not localhost and leads there: pages may do otherwise where they believe to be at home."""

# No sandbox: CI runs as root. The rest: nothing is asked behind the page's back, and no other name is found.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-proxy-server",
    f"--host-resolver-rules=MAP {PUBLIC_NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)

STEP_TIMEOUT_MS = 20_000


def binary() -> Path | None:
    """The installed browser; None without one."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return None if found is None else Path(found)


@dataclass
class Tab:
    """One page of a browser, and what it has done so far.

    Attributes:
        page: the page, to be told what to do.
        origin: where the page is at home, such as "http://127.0.0.1:8000".
        requests: every address asked for, in order, whether or not anybody answered.
        complaints: console errors, violations of the Content-Security-Policy among them, and uncaught exceptions.
    """

    page: Page
    origin: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def foreign_requests(self) -> list[str]:
        """Those to another origin."""
        return [url for url in self.requests if _origin(url) != self.origin]

    def __post_init__(self) -> None:
        """Watch from the first request on."""
        self.page.context.on("request", self._asked)
        self.page.on("websocket", self._asked)
        self.page.on("console", self._said)
        self.page.on("pageerror", self._failed)

    def _asked(self, request: Request | WebSocket) -> None:
        # The others stay inside the page.
        if urlsplit(request.url).scheme in {"http", "https", "ws", "wss"}:
            self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _failed(self, error: Error) -> None:
        self.complaints.append(str(error))


@asynccontextmanager
async def open_tab(url: str) -> AsyncIterator[Tab]:
    """An empty tab of a fresh browser; `page.goto("/docs")` is taken from `url`.

    A test that uses it is a coroutine marked `needs("chromium")`.
    """
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=binary(), args=ARGUMENTS)
        try:
            context = await browser.new_context(base_url=url)
            context.set_default_timeout(STEP_TIMEOUT_MS)
            yield Tab(await context.new_page(), _origin(url))
        finally:
            await browser.close()


async def authorize(page: Page, username: str, password: str) -> None:
    """Log in at an open `/docs`, as a person does."""
    dialog = page.locator(".modal-ux")
    await page.get_by_role("button", name="Authorize").click()
    await dialog.get_by_label("username:").fill(username)
    await dialog.get_by_label("password:").fill(password)
    await dialog.get_by_role("button", name="Apply given OAuth2 credentials").click()
    await dialog.get_by_role("button", name="Remove authorization").wait_for()
    await dialog.locator(".btn-done").click()


async def execute(page: Page, path: str) -> str:
    """Run the GET of a path at an open `/docs`. Returns the status that the page shows."""
    operation = page.locator(".opblock-get", has=page.locator(f'[data-path="{path}"]'))
    await operation.locator(".opblock-summary-control").click()
    await operation.get_by_role("button", name="Execute").click()
    return (await operation.locator(".live-responses-table tbody .response-col_status").inner_text()).strip()


def _origin(url: str) -> str:
    scheme, host, *_ = urlsplit(url)
    # The page's own server is at home by way of a WebSocket, too.
    return f"{scheme.replace('ws', 'http', 1)}://{host}"
