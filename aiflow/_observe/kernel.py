"""What the kernel says of another process of this user: its threads' CPU time, their states, and its CPU limit."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["CpuLimit", "Thread", "cpu_limit", "states", "threads_of"]


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


class CpuLimit(NamedTuple):
    """A limit of a cgroup on CPU time.

    Attributes
    ----------
    cores : float or None
        None: there is none.
    throttled_us : int
        Time in which threads of the cgroup had to wait because of it, so far.
    """

    cores: float | None
    throttled_us: int


def threads_of(pid: int) -> dict[int, Thread]:
    """CPU time of each thread of a process, by its number; without those that end meanwhile."""
    found = {}
    for task in _tasks(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            run, delay, *_ = (task / "schedstat").read_text().split()
            found[int(task.name)] = Thread(int(run), int(delay))
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


def cpu_limit(pid: int) -> CpuLimit:
    """The smallest CPU limit among the cgroups of a process (version 2, or 1)."""
    cores, throttled = None, 0
    for directory in _cgroups(pid):
        with contextlib.suppress(OSError, ValueError):
            if (directory / "cpu.max").exists():
                quota, period = (directory / "cpu.max").read_text().split()
            else:
                quota = (directory / "cpu.cfs_quota_us").read_text().strip().replace("-1", "max")
                period = (directory / "cpu.cfs_period_us").read_text()
            if quota == "max":
                continue
            limit = int(quota) / int(period)
            if cores is None or limit < cores:
                cores, throttled = limit, _throttled_us(directory)
    return CpuLimit(cores, throttled)


def _throttled_us(directory: Path) -> int:
    fields = dict(line.split() for line in (directory / "cpu.stat").read_text().splitlines())
    return int(fields.get("throttled_usec", int(fields.get("throttled_time", 0)) // 1000))


def _cgroups(pid: int) -> list[Path]:
    """Directories of the process's cgroups for CPU time, its own first, as far as they are mounted here."""
    found: list[Path] = []
    with contextlib.suppress(OSError, ValueError):
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for mount in mounts:
                dash = mount.index("-")
                if number == "0":
                    fits = mount[dash + 1] == "cgroup2"
                else:
                    fits = (
                        mount[dash + 1] == "cgroup"
                        and "cpu" in controllers.split(",")
                        and "cpu" in mount[dash + 3].split(",")
                    )
                if fits:
                    root = Path(mount[4])
                    inside = os.path.relpath(path, mount[3])
                    own = root / inside if not inside.startswith("..") else root
                    found += [each for each in (own, *own.parents) if each.is_relative_to(root)]
    return found
