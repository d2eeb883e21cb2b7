"""The embedded store under kill -9: a child process writes, is killed at random moments, and its directory reopened.

As a program (`python -m tests.faults.test_store_crash DIRECTORY FIRST`) this file is that child.
"""

import asyncio
import contextlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_service.errors import StartupError
from agent_service.retrieval.stores.edge import EdgeStore
from agent_service.types import SearchQuery
from tests.support.documents import CALLER, ENCODER, Sample, document_id, sample

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
ROUNDS = 12
NAMES = 5


def step(number: int) -> tuple[str, Sample | None]:
    """What the child does as its `number`th write: put a new version of a document, or delete it (None)."""
    name = f"guide {number % NAMES}"
    if number % 13 == 12:
        return name, None
    passages = (f"alpha word{number} part{part} " for part in range(number * 7 % 60 + 1))
    return name, sample(name, *passages, version=str(number))


async def write(directory: Path, first: int) -> None:
    """Write for ever; print the number of each write once it has returned."""
    store = await EdgeStore.open(directory)
    print("open", flush=True)  # noqa: T201
    number = first
    while True:
        name, version = step(number)
        if version is None:
            await store.delete(document_id(name), CALLER)
        else:
            await version.put(store)
        print(number, flush=True)  # noqa: T201
        number += 1


@contextlib.contextmanager
def writer(directory: Path, first: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.faults.test_store_crash", str(directory), str(first)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def lines(child: subprocess.Popen[str]) -> Iterator[str]:
    assert child.stdout is not None
    return (line.strip() for line in child.stdout if line.endswith("\n"))


def kill_within(child: subprocess.Popen[str], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    child.kill()
    child.wait()


async def check(store: EdgeStore, expected: dict[str, list[Sample | None]]) -> None:
    """Is each document one of those that it may be, whole, and nothing else to be found?"""
    current = {}
    for name, possible in expected.items():
        info = await store.info(document_id(name), CALLER)
        versions = {each.info.version if each else None: each for each in possible}
        assert (info.version if info else None) in versions, name
        found = versions[info.version if info else None]
        assert await store.document(document_id(name), CALLER) == (found.document if found else None)
        assert await store.passages_of(document_id(name), CALLER) == (found.bare if found else [])
        if found:
            current[found.id] = found.info.version
    hits = await store.search(SearchQuery(ENCODER.terms("alpha"), CALLER, limit=100))
    assert {hit.passage.document_id: hit.passage.version for hit in hits}.items() <= current.items()
    assert all(current[hit.passage.document_id] == hit.passage.version for hit in hits)
    infos = await store.page(CALLER)
    assert {info.id: info.version for info in infos} == current
    assert (await store.term_statistics((), CALLER)).passages == sum(info.passages for info in infos)


@pytest.mark.timeout(300)
async def test_kill_at_random_moments_loses_nothing_and_leaves_no_half(tmp_path: Path) -> None:
    chance = random.Random()
    state: dict[str, Sample | None] = {f"guide {n}": None for n in range(NAMES)}
    first = 0
    for _ in range(ROUNDS):
        with writer(tmp_path, first) as child:
            acknowledged = lines(child)
            assert next(acknowledged) == "open"
            for _ in range(chance.randrange(25)):
                state.update([step(int(next(acknowledged)))])
                first += 1
            kill_within(child, chance.uniform(0, 0.05))
            for line in acknowledged:
                state.update([step(int(line))])
                first += 1

        # The write after the last acknowledged one may have happened or not; where it did, the child need not repeat.
        name, unsure = step(first)
        store = await EdgeStore.open(tmp_path)
        try:
            await check(store, {each: [known, unsure] if each == name else [known] for each, known in state.items()})
        finally:
            await store.close()
    assert first > ROUNDS


@pytest.mark.timeout(300)
async def test_kill_while_the_store_is_made_leaves_a_directory_that_opens(tmp_path: Path) -> None:
    chance = random.Random()
    for number in range(6):
        directory = tmp_path / str(number)
        with writer(directory) as child:
            kill_within(child, chance.uniform(0.2, 1.5))

        store = await EdgeStore.open(directory)
        try:
            guide = await sample("another", "omega").put(store)
            assert await store.passages_of(guide.id, CALLER) == guide.bare
        finally:
            await store.close()


async def test_second_process_on_a_directory_is_refused_clearly(tmp_path: Path) -> None:
    with writer(tmp_path) as child:
        assert next(lines(child)) == "open"

        message = f"{tmp_path} is in use by process {child.pid}; stop it, or set AGENT_DATA_DIR"
        with pytest.raises(StartupError, match=re.escape(message)):
            await EdgeStore.open(tmp_path)

    store = await EdgeStore.open(tmp_path)
    with pytest.raises(StartupError, match="is in use by process"):
        await EdgeStore.open(tmp_path)
    await store.close()
    await (await EdgeStore.open(tmp_path)).close()


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), int(sys.argv[2])))
