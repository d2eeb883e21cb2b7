"""How frames are sent: heartbeats, and what happens to a reader that stops reading."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

HEADERS: Mapping[str, str] = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
HEARTBEAT = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of a stream: silence before a heartbeat, and how long one write may wait for the reader. Seconds."""

    heartbeat_s: float = 15.0
    stall_s: float = 30.0


DEFAULT_PACE = Pace()


class EventStream(StreamingResponse):
    """Sends frames as they come, one write each: no queue, so a slow reader holds the agent back.

    Silence is filled with comments; a reader that takes nothing for `stall_s` is cut off. Who watches for the
    client's disconnect is the turn's own dependency: it has to, before there is a response.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], *, pace: Pace) -> None:
        super().__init__(frames, headers=HEADERS)
        self._frames = frames
        self._pace = pace
        self._wrote_s = 0.0
        self._writing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - see the class
        """See the ASGI specification."""
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(None) as limit, aclosing(self._frames) as frames:
                await self._write(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                watch = asyncio.create_task(self._watch(send, limit))
                async for each in frames:
                    await self._write(send, {"type": "http.response.body", "body": each, "more_body": True})
        except TimeoutError:
            log.warning("a reader took nothing and was cut off", extra={"stall_s": self._pace.stall_s})
            return
        finally:
            if watch is not None:
                watch.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, message: dict[str, Any]) -> None:
        self._wrote_s, self._writing = asyncio.get_running_loop().time(), True
        await send(message)
        self._writing = False

    async def _watch(self, send: Send, limit: asyncio.Timeout) -> None:
        """Beat while nothing is written; end the stream where one write waits too long."""
        now_s = asyncio.get_running_loop().time
        while True:
            due_s = self._wrote_s + (self._pace.stall_s if self._writing else self._pace.heartbeat_s)
            if due_s > now_s():
                await asyncio.sleep(due_s - now_s())
            elif self._writing:
                break
            else:
                try:
                    async with asyncio.timeout(self._pace.stall_s):
                        await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})
                except TimeoutError:
                    break
                self._wrote_s = now_s()
        limit.reschedule(now_s())
