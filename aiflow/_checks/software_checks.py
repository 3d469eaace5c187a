"""Versions: aiflow, DPDK and its drivers, the kernel, Python."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator

from aiflow._checks.finding import Finding, better, broken, ok
from aiflow._checks.host import Host

__all__ = ["dpdk", "kernel", "keys"]

_LEAST_KERNEL = (5, 10)  # Debian 11's; memfd, AF_XDP with need_wakeup, clone3 are older
_DPDK_RANGE = (22, 11), (25, 11)
_NEEDED = ("net_memif", "net_ring", "net_af_packet")


def kernel(host: Host) -> Iterator[Finding]:
    """The kernel's version."""
    release = host.read("/proc/sys/kernel/osrelease")
    if _version(release) < _LEAST_KERNEL:
        text = f"Linux {release or 'of unknown version'} is older than aiflow is tested with (5.10)"
        if host.in_container:
            yield better(f"{text}. Update the kernel of the container's host")
        else:
            yield better(text, "apt-get install linux-image-amd64", as_root=True)
    else:
        yield ok(f"Linux {release}, Python {platform.python_version()}")


def dpdk(host: Host) -> Iterator[Finding]:
    """The version of DPDK, and the drivers that every aiflow uses."""
    build = host.build
    where = "inside the package" if build["dpdk_from"] == "wheel" else "of the system"
    missing = [driver for driver in _NEEDED if driver not in build["drivers"]]
    least, most = _DPDK_RANGE
    if missing:
        text = f"DPDK {build['dpdk']}, {where}, has no driver {', '.join(missing)}: build DPDK with it, or install it"
        yield broken(text, "apt-get install dpdk-dev" if where == "of the system" else "", as_root=True)
    elif not least <= _version(build["dpdk"]) <= most:
        yield better(f"DPDK {build['dpdk']}, {where}: aiflow is tested with 22.11 to 25.11")
    else:
        yield ok(f"DPDK {build['dpdk']}, {where}, with {len(build['drivers'])} network drivers")


def keys(host: Host) -> Iterator[Finding]:
    """Keys of frames, of which this aiflow has none."""
    del host
    yield ok("none: frames are neither encrypted nor authenticated. Use a trusted network segment")


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
