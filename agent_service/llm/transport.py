"""HTTP to one provider: the openai package says where to and with which headers, aiohttp carries it.

The openai package's own stack costs four to ten times as much for each token: docs/adr/0011-the-hosted-model.md.
"""

import asyncio
import ipaddress
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from openai import AsyncOpenAI
from yarl import URL

from agent_service.llm.failures import NoAnswerError, broke_off, no_answer, refused
from agent_service.llm.reader import decoded_error

READ_INTERVAL_S = 1 / 16
"""Least time between two reads of a fast model's answer, in seconds.

What comes meanwhile waits in the kernel and is read, parsed and handed on as one piece: of a model that writes 100
tokens a second, six. Sixteen times a second text still seems to flow; at 30 ms each token costs a third more.
"""

CONNECT_S = 5.0
"""Longest time that connecting may take."""

END_S = 0.05
"""How long a body may take to end after the answer's last event; if it does not, the connection is given up."""

MAX_ERROR_BYTES = 64 * 1024
MAX_CONNECTIONS = 2_000
IDLE_S = 30.0
DNS_S = 30

FAILURES = (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError)
"""Whatever can go wrong between here and there."""


class Endpoint:
    """The address of a provider with its key, and the connections to it."""

    def __init__(self, *, api_key: str, base_url: str | None, timeout_s: float) -> None:
        """`timeout_s`: for an answer to begin, and between two reads. No retries: `asking` has them."""
        self._client = AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0)
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        url = self._client.base_url
        self.netloc = url.netloc.decode()
        self.base_url = str(url)
        self.is_azure = url.host.endswith(".azure.com")
        self.is_openai = url.host == "api.openai.com" or self.is_azure
        self._proxy = _proxy(url.scheme, url.host)

    @asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator["Reading"]:
        """Send a request; inside the block its answer is read. Leaving the block early hangs up.

        Raises:
            NoAnswerError: no connection, no answer in time, or a status other than 2xx.
        """
        try:
            # The session's own time-outs leave out a server that takes no body, or drips its headers.
            async with asyncio.timeout(CONNECT_S + self._timeout_s):
                response = await self._open().post(
                    self._url(path), data=body, headers=self._headers(), proxy=self._proxy, allow_redirects=False
                )
        except (*FAILURES, ValueError) as err:
            # aiohttp refuses impossible headers and addresses with a ValueError.
            raise no_answer() from err
        try:
            if not 200 <= response.status < 300:
                raise await _refusal(response)
            yield Reading(response)
        finally:
            # Without effect where the body was read to its end: then the connection is back in the pool.
            response.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
        await self._client.close()

    def _open(self) -> aiohttp.ClientSession:
        # Made here because it belongs to the running loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=IDLE_S, ttl_dns_cache=DNS_S),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=min(CONNECT_S, self._timeout_s), sock_read=self._timeout_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _url(self, path: str) -> URL:
        """The address of a resource; a query of the base address (Azure's api-version) stays."""
        base = self._client.base_url
        url = base.copy_with(path=base.path + path).copy_merge_params(
            {name: str(value) for name, value in self._client.default_query.items()}
        )
        return URL(str(url), encoded=True)

    def _headers(self) -> dict[str, str]:
        given = {**self._client.default_headers, **self._client.auth_headers}
        headers = {name: value for name, value in given.items() if isinstance(value, str)}
        # Compression would hold text back, and could blow up.
        headers["Accept-Encoding"] = "identity"
        if self.is_azure:
            headers["api-key"] = self._client.api_key
        return headers


class Reading:
    """An answer's body on its way."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self._clock = asyncio.get_running_loop().time
        self._due = 0.0

    async def read(self) -> bytes:
        """What has come, as soon as there is anything; empty at the end.

        Raises:
            NoAnswerError: the connection broke, or was silent for too long.
        """
        try:
            return await self._content.readany()
        except FAILURES as err:
            raise broke_off() from err

    async def rest(self) -> None:
        """Leave the socket alone until READ_INTERVAL_S after the read before the last; call it after each read.

        A model that writes more slowly than that is never held up. What a faster one writes stays in the kernel, up
        to the size of its buffer; then the model has to wait, too.
        """
        now = self._clock()
        left = self._due - now
        self._due = max(now, self._due) + READ_INTERVAL_S
        protocol = self._response.connection.protocol if self._response.connection else None
        if left <= 0 or protocol is None or not protocol.is_connected():
            return
        protocol.pause_reading()
        await asyncio.sleep(left)
        # Meanwhile the connection may have gone.
        if protocol.is_connected():
            protocol.resume_reading()

    async def finish(self) -> None:
        """The answer is whole: read the body's end, if it comes at once, so that the connection can be used again."""
        try:
            async with asyncio.timeout(END_S):
                while not self._content.at_eof():
                    await self._content.readany()
        except FAILURES:
            return


async def _refusal(response: aiohttp.ClientResponse) -> NoAnswerError:
    """What a status other than 2xx means; the error's code is read from the body, where it comes at once."""
    body = b""
    try:
        async with asyncio.timeout(CONNECT_S):
            body = await response.content.read(MAX_ERROR_BYTES)
    except FAILURES:
        pass
    code, _ = decoded_error(body)
    headers: Mapping[str, str] = response.headers
    return refused(response.status, str(code or ""), headers)


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host, as the openai package would use it; never for this machine."""
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all") or ""
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    # aiohttp speaks no SOCKS.
    return proxy if proxy.startswith(("http://", "https://")) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
