"""What is read from /proc, on a tree of files like it."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.bench.sampler import Used, busy_s, memory_mib, used

PID = 7


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / str(PID)
    for thread, nanoseconds in (("7", 1_500_000_000), ("8", 250_000_000)):
        (folder / "task" / thread).mkdir(parents=True)
        (folder / "task" / thread / "schedstat").write_text(f"{nanoseconds} 99 5\n")
    # A name with a parenthesis and a space; then 11 fields, user ticks, kernel ticks.
    (folder / "stat").write_text(f"{PID} (a) b) S {' '.join('0' * 10)} 120 40 0 0\n")
    (folder / "status").write_text("Name:\ta\nVmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\n")
    (tmp_path / "stat").write_text("cpu  9 9 9 9\ncpu0 100 0 50 900 30 5 5 40 0 0\ncpu1 1 0 0 0 0 0 0 0 0 0\n")
    return tmp_path


def test_cpu_is_that_of_all_threads(proc: Path) -> None:
    assert used(PID, proc) == Used(1.75, 120, 40)
    assert used(PID, proc).kernel_share == 0.25


def test_a_thread_that_ends_meanwhile_is_passed_over(proc: Path) -> None:
    (proc / str(PID) / "task" / "9").mkdir()

    assert used(PID, proc).cpu_s == 1.75


def test_a_difference_is_of_each_figure() -> None:
    spent = Used(3.0, 30, 20) - Used(1.0, 20, 10)

    assert (spent.cpu_s, spent.kernel_share) == (2.0, 0.5)
    assert (spent - spent).kernel_share == 0


def test_memory_is_what_is_resident(proc: Path) -> None:
    assert memory_mib(PID, proc) == 2


def test_a_core_is_busy_with_all_but_waiting(proc: Path) -> None:
    assert busy_s(0, proc) == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))
    with pytest.raises(ValueError, match="core 5"):
        busy_s(5, proc)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_our_own_work_is_seen() -> None:
    before, begun_s = used(os.getpid()), time.thread_time()
    while time.thread_time() - begun_s < 0.05:
        pass

    assert (used(os.getpid()) - before).cpu_s >= 0.04
