"""The scripted model in a thread of its own: for tests and clients of any kind, which find it running."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.openai_server import ScriptedOpenAI

START_S = 10.0


@contextmanager
def in_a_thread(server: ScriptedOpenAI) -> Iterator[str]:
    """Serve while the block runs; with its end every answer under way ends. Gives the base URL.

    Script the server before, or with a function that looks at the request: its queue is the thread's.
    """
    started = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with server:
            running.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="scripted model", daemon=True)
    thread.start()
    assert started.wait(START_S), "the scripted model did not start"
    loop, stop = running[0]
    try:
        yield server.base_url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
