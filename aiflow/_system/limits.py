"""What the process may have at most: limits of its cgroups and of its own (setrlimit)."""

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


def _cgroups(controller: str) -> Iterator[Path]:
    """Directories of the cgroups that limit this process in one resource, from its own upwards."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in (PROC / "mountinfo").read_text().splitlines()]
        for line in (PROC / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for mount in mounts:
                dash = mount.index("-")
                kind, options = mount[dash + 1], mount[dash + 3].split(",")
                if kind == "cgroup2" if number == "0" else kind == "cgroup" and controller in options:
                    if number != "0" and controller not in controllers.split(","):
                        continue
                    root = Path(mount[4])
                    inside = os.path.relpath(path, mount[3])  # what a container sees of it
                    place = root / inside if not inside.startswith("..") else root
                    yield from (directory for directory in (place, *place.parents) if directory.is_relative_to(root))


def _least(controller: str, *names: str) -> int | None:
    limits = []
    for directory in _cgroups(controller):
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((directory / name).read_text()))
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def memory_limit() -> int | None:
    """Bytes of memory that the process's cgroups grant; None: no limit but the machine's."""
    return _least("memory", "memory.max", "memory.limit_in_bytes")


def warn_of_memory(nbytes: int, stacklevel: int = 2) -> None:
    """Warn that a cgroup grants less than a program may come to use: the kernel ends processes beyond that."""
    limit = memory_limit()
    if limit is not None and nbytes > limit:
        warnings.warn(
            f"memory= and the ports' buffers may come to {nbytes >> 20} MiB, and the container's limit is "
            f"{limit >> 20} MiB (memory.max or memory.limit_in_bytes), beyond which the kernel ends the process: pass "
            "a smaller memory=, or raise that limit",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def hugepage_limit() -> int | None:
    """Bytes of hugepages (of the default size) that the process's cgroups grant; None: no limit but the machine's."""
    kib = 2048
    with contextlib.suppress(OSError, ValueError, IndexError):
        (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Hugepagesize"))
        kib = int(line.split()[1])
    size = f"{kib >> 20}GB" if kib >> 20 else f"{kib >> 10}MB"
    return _least("hugetlb", f"hugetlb.{size}.max", f"hugetlb.{size}.limit_in_bytes")


def file_limit() -> int | None:
    """Bytes that a file of the process's may have (ulimit -f); None: no limit. DPDK's hugepages are a file."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def address_space_left() -> int | None:
    """Bytes that the process may still map under its own limit (ulimit -v); None: no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    used = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return max(0, limit - used)


def address_space_words() -> str:
    """The process's own limits on its memory, for an error message; "" without one."""
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
