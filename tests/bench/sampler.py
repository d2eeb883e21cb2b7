"""What a process has used, read from /proc: CPU of all its threads, memory; and how well the machine runs just now."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CALIBRATION_ROUNDS = 7
CALIBRATION_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Used:
    """CPU time. Seconds.

    Attributes:
        cpu_s: the scheduler's own count, in nanoseconds at its source; of the threads that are still there.
        kernel_share: which part of it was spent in the kernel, from the clock's ticks. 0 to 1.
    """

    cpu_s: float
    user_ticks: int
    kernel_ticks: int

    def __sub__(self, earlier: "Used") -> Self:
        return type(self)(
            self.cpu_s - earlier.cpu_s,
            self.user_ticks - earlier.user_ticks,
            self.kernel_ticks - earlier.kernel_ticks,
        )

    @property
    def kernel_share(self) -> float:
        """See the class."""
        ticks = self.user_ticks + self.kernel_ticks
        return self.kernel_ticks / ticks if ticks else 0.0


def used(pid: int, proc: Path = PROC) -> Used:
    """What a process has used by now."""
    nanoseconds = 0
    for task in (proc / str(pid) / "task").iterdir():
        try:
            nanoseconds += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    # The name, in parentheses, may hold spaces; user and kernel ticks are the 12th and 13th field after it.
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return Used(nanoseconds / 1e9, int(fields[11]), int(fields[12]))


def memory_mib(pid: int, proc: Path = PROC) -> float:
    """What a process holds in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", (proc / str(pid) / "status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def busy_s(core: int, proc: Path = PROC) -> float:
    """How long a core has worked by now, for whomever; with what the host has taken from it."""
    for line in (proc / "stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) * TICK_S
    raise ValueError(f"/proc/stat does not know core {core}")


def calibrate(core: int) -> float:
    """CPU time of a piece of work that is always the same, on this core: more than usual says that others disturb.

    Returns:
        Microseconds: the median of some rounds.
    """
    rounds: list[float] = []
    with pinned(core):
        for _ in range(CALIBRATION_ROUNDS):
            begun_s, total = time.process_time(), 0
            for number in range(CALIBRATION_STEPS):
                total += number & 7
            rounds.append(time.process_time() - begun_s)
    return sorted(rounds)[CALIBRATION_ROUNDS // 2] * 1e6


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread on one core, and what is started meanwhile for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the services and where the tools run. The same core where there is only one."""

    services: int
    tools: int

    @classmethod
    def of_this_machine(cls) -> Self:
        """The first two that we may use."""
        mine = sorted(os.sched_getaffinity(0))
        return cls(mine[0], mine[1] if len(mine) > 1 else mine[0])

    @property
    def are_apart(self) -> bool:
        """Whether the tools leave the services alone."""
        return self.services != self.tools
