"""CPUs near a port: a worker polls its ports from their own NUMA node."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_list", "cpus_near", "numa_node", "settle"]

_NODES = Path("/sys/devices/system/node")


def cpu_list(text: str) -> set[int]:
    """CPUs of a kernel list such as ``0-3,8,10-11``."""
    cpus: set[int] = set()
    for span in text.strip().split(","):
        first, _, last = span.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def numa_node(device: Path) -> int:
    """NUMA node of a device, by its directory in sysfs; -1 if it is unknown."""
    try:
        return int((device / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


def cpus_near(sockets: Iterable[int], nodes: Path = _NODES) -> set[int] | None:
    """CPUs of the NUMA node that all ports share.

    Parameters
    ----------
    sockets : iterable of int
        The ports' nodes; negative if the driver does not know it.
    nodes : Path
        The kernel's description of the nodes.

    Returns
    -------
    set of int or None
        None if the machine has a single node, or if the ports are on several nodes or on unknown ones.
    """
    known = {socket for socket in sockets if socket >= 0}
    if len(known) != 1 or not (nodes / "node1").is_dir():
        return None
    try:
        return cpu_list((nodes / f"node{known.pop()}" / "cpulist").read_text()) or None
    except (OSError, ValueError):
        return None


def settle(sockets: Iterable[int], allowed: set[int]) -> None:
    """Bind the calling thread to those of the `allowed` CPUs that are near its ports, or to all if none is."""
    near = (cpus_near(sockets) or allowed) & allowed
    if near and near != os.sched_getaffinity(0):
        os.sched_setaffinity(0, near)
