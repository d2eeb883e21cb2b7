"""Readers that stop reading: the processes' memory stays bounded, the others are not held up, and reading goes on."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import grpc
import h11
import httpx
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import agent_service_pb2_grpc as pb_grpc
from google.protobuf.duration_pb2 import Duration

from tests.support.cluster import Cluster, memory_mib
from tests.support.cluster_client import FrameParser, NumberedReader, answer, becomes_true
from tests.support.cluster_model import Script
from tests.support.tokens import internal_token

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150), pytest.mark.needs("postgres", "redis")]

STALL_S = 60
READERS = 100
WATCHES = 20
# Nearly as long as a turn's log may be.
WORDS, WORD_BYTES, PACE_MS = 200, 1_000, 50

GROWTH_MIB = 24
"""Of one process, for all stalled readers together: what a copy of the text for each would take (20), and far less than
its frames, events and JSON would. Measured: 13."""

TINY_SEGMENT = 100
"""Loopback's own segments let the kernel take megabytes for a reader that takes nothing; with these it takes some
30 KiB, and the writer really has to wait."""


class StalledReader:
    """A browser on a connection of its own that begins to read a turn, and then takes nothing more."""

    def __init__(self, reader: NumberedReader, edge: str) -> None:
        self.reader = reader
        self.was_cut = False
        self._edge = urlsplit(edge)
        self._socket = socket.socket()
        self._http = h11.Connection(h11.CLIENT)
        self._frames = FrameParser()

    async def begin(self, headers: dict[str, str]) -> None:
        """Ask for the stream, and read until something of it came."""
        loop = asyncio.get_running_loop()
        self._socket.settimeout(0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, TINY_SEGMENT)
        async with asyncio.timeout(20):
            await loop.sock_connect(self._socket, (self._edge.hostname, self._edge.port))
            target = f"/api/chat/{self.reader.session_id}/stream?turn_id={self.reader.turn_id}"
            request = h11.Request(method="GET", target=target, headers=[("Host", "edge"), *headers.items()])
            await loop.sock_sendall(self._socket, self._http.send(request) or b"")
            await loop.sock_sendall(self._socket, self._http.send(h11.EndOfMessage()) or b"")
            while not self.reader.log.last:
                received = await loop.sock_recv(self._socket, 256)
                assert received, "the stream ended at once"
                self._take(received)

    async def read_on(self) -> None:
        """Read what is still in the pipe, until the end of the stream, complete or cut."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(20):
                while more := await loop.sock_recv(self._socket, 65_536):
                    self._take(more)
                    if self.reader.log.complete is not None:
                        break
        self.was_cut = self.reader.log.complete is None

    def close(self) -> None:
        self._socket.close()

    def _take(self, received: bytes) -> None:
        self._http.receive_data(received)
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                assert event.status_code == httpx.codes.OK
            elif isinstance(event, h11.Data):
                for frame in self._frames.feed(bytes(event.data)):
                    self.reader.log.take(frame)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return


async def stalled_watch(target: str, turn_id: str, token: str, until: asyncio.Event) -> int:
    """Watch over gRPC, take one event and then nothing until told to. Returns how many events came in all."""
    # A channel of its own: streams of one channel share what may be under way.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        request = pb.WatchTurnRequest(turn_id=turn_id)
        metadata = (("authorization", f"Bearer {token}"),)
        call = pb_grpc.AgentServiceStub(channel).WatchTurn(request, timeout=STALL_S + 60, metadata=metadata)
        came = 0
        async for event in call:
            came += 1
            assert event.sequence == came
            if came == 1:
                await until.wait()
        return came


async def most_memory(cluster: Cluster, seconds: float) -> dict[str, float]:
    """The most that each process holds in this time. MiB."""
    most: dict[str, float] = {}
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for name, process in cluster.processes.items():
            most[name] = max(most.get(name, 0.0), memory_mib(process))
        await asyncio.sleep(1)
    return most


async def test_readers_that_stop_reading_for_a_minute_cost_little_and_go_on(
    cluster: Cluster, figures: Callable[[str], None]
) -> None:
    script, watched = Script.of(WORDS, PACE_MS, WORD_BYTES), Script.of(WORDS, PACE_MS, WORD_BYTES)
    ada = internal_token(cluster.signing_key, subject="ada")
    go_on = asyncio.Event()
    async with cluster.person() as http, asyncio.TaskGroup() as group:
        headers = {"Authorization": http.headers["Authorization"]}
        # Warm: what a first answer of this size costs is not the stalled readers'.
        await NumberedReader(http, Script.of(WORDS, 1, WORD_BYTES).question).ask(cluster.urls[0])
        before = {name: memory_mib(process) for name, process in cluster.processes.items()}
        healthy = NumberedReader(http, script.question)
        following = group.create_task(timed(healthy, cluster.urls[0]))
        await becomes_true(lambda: bool(healthy.log.start), 10)
        stalled = [
            StalledReader(NumberedReader.of(http, healthy), cluster.urls[number % 2]) for number in range(READERS)
        ]
        async with asyncio.TaskGroup() as begun:
            for each in stalled:
                begun.create_task(each.begin(headers))
        chat = await begin_chat(cluster.targets[0], watched, ada)
        watches = [
            group.create_task(stalled_watch(cluster.targets[number % 2], chat, ada, go_on)) for number in range(WATCHES)
        ]
        most = await most_memory(cluster, STALL_S)
        go_on.set()
        try:
            for each in stalled:
                await each.read_on()
        finally:
            for each in stalled:
                each.close()
        cut = [each.reader for each in stalled if each.was_cut]
        for reader in cut:
            await reader.finish([cluster.urls[1]])
        stored = await answer(http, cluster.urls[0], healthy.session_id, script)

    growth = {name: round(most[name] - before[name], 1) for name in most}
    held = {name: f"{before[name]:.0f}+{growth[name]:.0f}" for name in most}
    figures(
        f"{READERS} readers and {WATCHES} watches stalled for {STALL_S} s, {len(cut)} cut off and resumed; MiB held "
        f"before + more: {held}; a healthy reader beside them took {following.result():.1f} s of {script.duration_s} s"
    )
    assert {each.reader.text for each in stalled} == {script.answer} == {stored["content"]}
    assert {each.reader.status for each in stalled} == {"completed"}
    assert len({watch.result() for watch in watches}) == 1
    assert max(growth.values()) <= GROWTH_MIB
    assert following.result() <= script.duration_s + 5


async def timed(reader: NumberedReader, edge: str) -> float:
    """Read to the end. Returns how long that took. Seconds."""
    started_s = time.monotonic()
    await reader.ask(edge)
    assert reader.status == "completed"
    return time.monotonic() - started_s


async def begin_chat(target: str, script: Script, token: str) -> str:
    """Start a turn directly, and leave it with a grace in which it ends. Returns its id."""
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = pb.ChatRequest(
            message=script.question, agent="billing", on_disconnect=pb.ON_DISCONNECT_DETACH, grace=Duration(seconds=60)
        )
        metadata = (("authorization", f"Bearer {token}"),)
        async for event in pb_grpc.AgentServiceStub(channel).Chat(request, timeout=60, metadata=metadata):
            return event.turn_id
    raise AssertionError("the turn did not begin")
