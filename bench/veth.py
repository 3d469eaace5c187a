"""A pair of kernel interfaces that are wired to each other, for the cases over af_packet and af_xdp. Root only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

from aiflow._ports.packet_ring import packet_ring


def missing() -> str:
    """Return why there can be none, or an empty string."""
    if importlib.util.find_spec("pyroute2") is None:
        return "pyroute2 is missing: pip install 'aiflow-dpdk[measure]'"
    return "" if os.geteuid() == 0 else "creating network interfaces needs root"


@contextlib.contextmanager
def pair() -> Iterator[tuple[str, str]]:
    """Yield the names of two interfaces with an MTU of 1500, up, and delete them at the end."""
    from aiflow.lab.namespaces import Namespace

    here = Namespace.of_this_thread()
    ends = f"afb{os.getpid() % 10**8}a", f"afb{os.getpid() % 10**8}b"
    here.veth(ends[0], here, ends[1], offloads=True)
    try:
        yield ends
    finally:
        here.unlink(ends[0])


def vdev(driver: str, interface: str) -> str:
    """Return the arguments with which aiflow opens this driver on such an interface, for testpmd."""
    if driver == "af_xdp":
        return f"net_af_xdp0,iface={interface},start_queue=0,queue_count=1"
    ring = packet_ring(1514)
    return (
        f"net_af_packet0,iface={interface},qpairs=1,qdisc_bypass=0,blocksz={ring.block_bytes},"
        f"framesz={ring.frame_bytes},framecnt={ring.nb_frames}"
    )
