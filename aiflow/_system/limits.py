"""Limits of this process: those of its cgroups, its own (setrlimit), and its capabilities."""

from __future__ import annotations

import contextlib
import os
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "address_space_left",
    "address_space_words",
    "cgroups",
    "file_limit",
    "hugepage_limit",
    "may",
    "may_have_priority",
    "memory_limit",
    "warn_of_memory",
]

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_BPF = 12, 21, 23, 39

PROC = Path("/proc/self")

_UNLIMITED = 1 << 60  # cgroup v1 writes the largest number of pages


def cgroups(controller: str, below: Path = Path("/")) -> Iterator[Path]:
    """Directories of the cgroups that limit one resource of this process, from its own cgroup upwards.

    Parameters
    ----------
    controller : str
        Such as ``memory``.
    below : Path, optional
        Where the host's files are.
    """
    with contextlib.suppress(OSError):
        proc = below / PROC.relative_to("/")
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
        for line in (proc / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for mount in mounts:
                dash = mount.index("-")
                kind, options = mount[dash + 1], mount[dash + 3].split(",")
                if kind == "cgroup2" if number == "0" else kind == "cgroup" and controller in options:
                    if number != "0" and controller not in controllers.split(","):
                        continue
                    root = below / mount[4].lstrip("/")
                    inside = os.path.relpath(path, mount[3])  # the part that a container sees
                    own = root / inside if not inside.startswith("..") else root
                    yield from (directory for directory in (own, *own.parents) if directory.is_relative_to(root))


def _least(controller: str, *names: str) -> int | None:
    limits = []
    for directory in cgroups(controller):
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((directory / name).read_text()))
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def memory_limit() -> int | None:
    """Bytes of memory that the process's cgroups allow; None without such a limit."""
    return _least("memory", "memory.max", "memory.limit_in_bytes")


def warn_of_memory(nbytes: int, stacklevel: int = 2) -> None:
    """Warn if a cgroup allows less memory than the program may use: the kernel kills processes beyond the limit."""
    limit = memory_limit()
    if limit is not None and nbytes > limit:
        warnings.warn(
            f"memory= and the ports' buffers may use {nbytes >> 20} MiB, but the container's limit is "
            f"{limit >> 20} MiB (memory.max or memory.limit_in_bytes). The kernel kills the process beyond it: pass a "
            "smaller memory=, or raise that limit",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def hugepage_limit() -> int | None:
    """Bytes of hugepages (of the default size) that the process's cgroups allow; None without such a limit."""
    kib = 2048
    with contextlib.suppress(OSError, ValueError, IndexError):
        (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Hugepagesize"))
        kib = int(line.split()[1])
    size = f"{kib >> 20}GB" if kib >> 20 else f"{kib >> 10}MB"
    return _least("hugetlb", f"hugetlb.{size}.max", f"hugetlb.{size}.limit_in_bytes")


def file_limit() -> int | None:
    """Largest file of the process in bytes (ulimit -f); None without limit. DPDK's hugepages are a file."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def address_space_left() -> int | None:
    """Bytes that the process may still map (ulimit -v); None without limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    used = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return max(0, limit - used)


def address_space_words() -> str:
    """The process's own memory limits for an error message; "" without limits."""
    words = ""
    if (left := address_space_left()) is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        words = f"; ulimit -v is {limit >> 10}, and {left >> 20} MiB are left"
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return words if limit == resource.RLIM_INFINITY else f"{words}; ulimit -d is {limit >> 10}"


def may(capability: int) -> bool:
    """Whether this thread has a capability (capabilities(7))."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/thread-self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def may_have_priority(priority: int) -> bool:
    """Whether this thread may give itself a real-time priority."""
    return may(CAP_SYS_NICE) or resource.getrlimit(resource.RLIMIT_RTPRIO)[0] >= priority
