"""What the kernel says of another process of this user: the CPU time and the states of its threads."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

__all__ = ["Thread", "inner_numbers", "states", "threads_of"]


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


def states(pid: int) -> dict[int, str]:
    """The state of each thread now, by its number: R, S, or D for a wait that the disk has to end."""
    found = {}
    for task in _tasks(pid):
        with contextlib.suppress(OSError, IndexError):
            found[int(task.name)] = (task / "stat").read_text().rpartition(")")[2].split()[0]
    return found


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []
