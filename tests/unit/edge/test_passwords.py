"""Passwords: argon2id, off the event loop, a bounded number at a time."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher

from edge_api.auth.passwords import Passwords, Verified
from edge_api.errors import OverloadedError

PASSWORD = "correct horse battery staple"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords()
    yield passwords
    passwords.close()


class Gate:
    """Work that ends when a test says so."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.opened.wait(10)
        with self._lock:
            self.running -= 1
        return "done"


async def started(gate: Gate, running: int) -> None:
    async with asyncio.timeout(10):
        while gate.running < running:  # noqa: ASYNC110 - it is threads that count
            await asyncio.sleep(0.001)


async def test_a_password_verifies_against_its_own_hash_and_no_other(passwords: Passwords) -> None:
    stored = await passwords.hash(PASSWORD)

    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await passwords.verify(PASSWORD, stored) == Verified(ok=True)
    assert await passwords.verify(PASSWORD + " ", stored) == Verified(ok=False)
    assert await passwords.hash(PASSWORD) != stored


@pytest.mark.parametrize("password", ["", "\ud800", "\x00", "pä" * 4_000])
async def test_any_text_can_be_a_password(passwords: Passwords, password: str) -> None:
    assert (await passwords.verify(password, await passwords.hash(password))).ok


async def test_a_password_is_the_same_from_any_keyboard(passwords: Passwords) -> None:
    assert (await passwords.verify("Ko\u0308ln", await passwords.hash("K\u00f6ln"))).ok


async def test_a_hash_of_other_parameters_is_replaced_when_the_password_was_right(passwords: Passwords) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(PASSWORD)

    verified = await passwords.verify(PASSWORD, old)

    assert verified.ok
    assert verified.new_hash is not None
    assert await passwords.verify(PASSWORD, verified.new_hash) == Verified(ok=True)
    assert await passwords.verify("wrong", old) == Verified(ok=False)


async def test_nobody_is_never_right_and_takes_the_same_work(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    verify = passwords._hashes.verify_and_update

    def counting(password: bytes, stored: str) -> tuple[bool, str | None]:
        compared.append(stored)
        return verify(password, stored)

    monkeypatch.setattr(passwords._hashes, "verify_and_update", counting)

    assert await passwords.verify(PASSWORD, None) == Verified(ok=False)

    assert compared[0].startswith("$argon2id$v=19$m=65536,t=3,p=4$")


async def test_even_the_password_of_nobody_is_wrong(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_nobody", await passwords.hash(PASSWORD))

    assert await passwords.verify(PASSWORD, None) == Verified(ok=False)


async def test_no_more_than_the_workers_run_at_once_and_no_more_than_may_wait() -> None:
    passwords, gate = Passwords(workers=2, max_waiting=3), Gate()
    calls = [asyncio.create_task(passwords._run(gate)) for _ in range(5)]
    await started(gate, 2)

    with pytest.raises(OverloadedError):
        await passwords.hash(PASSWORD)

    gate.opened.set()
    assert await asyncio.gather(*calls) == ["done"] * 5
    assert gate.most == 2
    assert await passwords.hash(PASSWORD)
    passwords.close()


async def test_who_leaves_makes_room_only_when_the_work_has_ended() -> None:
    passwords, gate = Passwords(workers=1, max_waiting=1), Gate()
    working = asyncio.create_task(passwords._run(gate))
    await started(gate, 1)
    waiting = asyncio.create_task(passwords._run(gate))
    await asyncio.sleep(0)
    working.cancel()
    waiting.cancel()
    await asyncio.gather(working, waiting, return_exceptions=True)

    second = asyncio.create_task(passwords._run(gate))  # the place of who waited
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):  # the worker is still at it
        await passwords._run(gate)

    gate.opened.set()
    assert await second == "done"
    passwords.close()


@pytest.mark.alone
async def test_the_event_loop_goes_on_meanwhile(passwords: Passwords) -> None:
    beats = 0
    hashing = asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(4)))
    while not hashing.done():
        await asyncio.sleep(0.001)
        beats += 1

    assert beats >= 10


def test_close_ends_the_threads() -> None:
    async def use(passwords: Passwords) -> None:
        await passwords.hash(PASSWORD)

    # Others may run for tests that share theirs.
    before = set(threading.enumerate())
    passwords = Passwords()
    asyncio.run(use(passwords))
    made = [each for each in threading.enumerate() if each not in before and each.name.startswith("passwords")]
    passwords.close()

    assert made
    deadline_s = time.monotonic() + 10
    while any(each.is_alive() for each in made):
        assert time.monotonic() < deadline_s
