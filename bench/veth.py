"""A pair of kernel interfaces that are wired to each other, for the cases over af_packet and af_xdp. Root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from aiflow._ports.packet_ring import packet_ring


def missing() -> str:
    """Why there can be none, or an empty string."""
    return "" if os.geteuid() == 0 else "it takes root to make network interfaces"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def pair() -> Iterator[tuple[str, str]]:
    """Names of two interfaces with an MTU of 1500, up; they go at the end."""
    ends = f"afb{os.getpid() % 10**8}a", f"afb{os.getpid() % 10**8}b"
    _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    try:
        for end in ends:
            # no frame that nobody sent: no router solicitation, no duplicate address detection
            subprocess.run(["sysctl", "-qw", f"net.ipv6.conf.{end}.disable_ipv6=1"], capture_output=True, timeout=30)
            _ip("link", "set", "dev", end, "up")
        yield ends
    finally:
        _ip("link", "delete", ends[0])


def vdev(driver: str, interface: str) -> str:
    """Arguments with which aiflow opens this driver on such an interface, for testpmd."""
    if driver == "af_xdp":
        return f"net_af_xdp0,iface={interface},start_queue=0,queue_count=1"
    ring = packet_ring(1514)
    return (
        f"net_af_packet0,iface={interface},qpairs=1,qdisc_bypass=0,blocksz={ring.block_bytes},"
        f"framesz={ring.frame_bytes},framecnt={ring.nb_frames}"
    )
