"""What the kernel says of another process of this user: the CPU time and the states of its threads."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["States", "Thread", "inner_numbers", "threads_of"]


class Thread(NamedTuple):
    """CPU time of one thread, in ns.

    Attributes
    ----------
    run : int
        It ran for this long, …
    delay : int
        … and was ready to run without a CPU for this long, because of other threads or a limit of its cgroup.
    """

    run: int
    delay: int


def threads_of(pid: int) -> dict[int, Thread]:
    """CPU time of each thread of a process, by its number; without those that end meanwhile."""
    found = {}
    for task in _tasks(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            run, delay, *_ = (task / "schedstat").read_text().split()
            found[int(task.name)] = Thread(int(run), int(delay))
    return found


def inner_numbers(pid: int) -> dict[int, int]:
    """The number that each thread has for its own process → the number for us: a container's are others."""
    found = {}
    for task in _tasks(pid):
        with contextlib.suppress(OSError, ValueError):
            status = (task / "status").read_text()
            numbers = next((line for line in status.splitlines() if line.startswith("NSpid:")), task.name)
            found[int(numbers.split()[-1])] = int(task.name)
    return found


class States:
    """The states of the threads of a process, for many looks: their files stay open, which takes half the CPU time.

    Parameters
    ----------
    pid : int
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._files: list[int] = []
        self.renew()

    def renew(self) -> None:
        """Notice threads that came since."""
        self.close()
        for task in _tasks(self._pid):
            with contextlib.suppress(OSError):
                self._files.append(os.open(task / "stat", os.O_RDONLY | os.O_CLOEXEC))

    def now(self) -> set[bytes]:
        """R, S, or D for a wait that the disk has to end: those that a thread is in."""
        found = set()
        for file in self._files:
            with contextlib.suppress(OSError):  # it has ended
                found.add(os.pread(file, 100, 0).rpartition(b")")[2][1:2])
        return found

    def close(self) -> None:
        """Idempotent."""
        while self._files:
            os.close(self._files.pop())


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []
