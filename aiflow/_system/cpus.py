"""Which CPUs are near a port: a worker polls its ports from their own NUMA node."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpus_near", "settle"]

_NODES = Path("/sys/devices/system/node")


def _cpu_list(text: str) -> set[int]:
    """CPUs of a kernel list such as ``0-3,8,10-11``."""
    cpus: set[int] = set()
    for span in text.strip().split(","):
        first, _, last = span.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def cpus_near(sockets: Iterable[int], nodes: Path = _NODES) -> set[int] | None:
    """CPUs of the one NUMA node that all ports are on.

    Parameters
    ----------
    sockets : iterable of int
        The ports' nodes; negative where a driver does not know.
    nodes : Path
        Where the kernel describes the nodes.

    Returns
    -------
    set of int or None
        None when the machine has one node, or the ports are on several, or on none that is known.
    """
    known = {socket for socket in sockets if socket >= 0}
    if len(known) != 1 or not (nodes / "node1").is_dir():
        return None
    try:
        return _cpu_list((nodes / f"node{known.pop()}" / "cpulist").read_text()) or None
    except (OSError, ValueError):
        return None


def settle(sockets: Iterable[int], allowed: set[int]) -> None:
    """Keep the calling thread on CPUs near its ports, out of those it was allowed; else on all of these."""
    near = (cpus_near(sockets) or allowed) & allowed
    if near and near != os.sched_getaffinity(0):
        os.sched_setaffinity(0, near)
