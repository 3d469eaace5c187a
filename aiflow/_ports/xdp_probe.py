"""AF_XDP: whether an interface, its driver and our permissions allow it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket

from aiflow import _build
from aiflow._ports import ethtool
from aiflow._system import threads
from aiflow._system.limits import CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, may
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["AF_XDP", "XDP_ROOM", "inspect_xdp", "quiet_xdp", "try_xdp_socket"]

AF_XDP = 44  # Python has no name for it

XDP_ROOM = 3712
"""Data room of an mbuf for AF_XDP, in bytes: with DPDK's headers and headroom (320) it fills a page of the umem."""

_XDP_FRAME = 3454  # bytes of that page for a frame, after the kernel's own 256
_WITHOUT_XDP = ("macvlan", "bridge", "dummy", "802.1Q VLAN Support", "vxlan")  # for kernels that do not tell


def try_xdp_socket(endpoint: Endpoint) -> None:
    """Raises PortError if this process cannot have an AF_XDP socket."""
    instead = f"use af_packet:{endpoint.target}"
    if not _build.has_driver("net_af_xdp"):
        raise PortError(
            f"{endpoint}: the DPDK of this aiflow has no AF_XDP driver (wheels come without it); {instead}, or install "
            "from source"
        )
    if not may(CAP_NET_ADMIN) or not (may(CAP_BPF) or may(CAP_SYS_ADMIN)):
        raise PortError(f"{endpoint}: XDP needs root (CAP_NET_ADMIN, CAP_BPF); {instead}")
    try:
        threads.unpatched("socket").socket(AF_XDP, socket.SOCK_RAW).close()
    except OSError as exc:
        raise PortError(f"{endpoint}: no AF_XDP socket can be opened here ({exc.strerror}); {instead}") from None


def inspect_xdp(endpoint: Endpoint, index: int, mtu: int, driver: str) -> list[str]:
    """Check what AF_XDP needs beyond af_packet; returns notes. Raises PortError."""
    name, instead = endpoint.target, f"use af_packet:{endpoint.target}"
    if mtu + ethtool.ETHERNET_HEADER > _XDP_FRAME:
        limit = _XDP_FRAME - ethtool.ETHERNET_HEADER
        raise PortError(
            f"{endpoint}: its MTU of {mtu} is more than XDP takes ({limit}); ip link set {name} mtu {limit}, or "
            f"{instead}, which carries jumbo frames"
        )
    if driver in _WITHOUT_XDP or ethtool.xdp_features(index) == 0:
        raise PortError(f"{endpoint}: its driver ({driver or 'unknown'}) has no XDP; {instead}")
    max_combined, receive, combined = ethtool.channels(name)
    if max_combined and not combined:
        raise PortError(f"{endpoint}: XDP needs a queue, and {driver or 'its driver'} has none for it; {instead}")
    if combined + receive > 1:
        fewer = "combined 1" if combined else "rx 1 (or `combined 1`, whichever its driver knows)"
        return [f"only queue 0 of {combined + receive} is read: ethtool -L {name} {fewer}"]
    return []


def quiet_xdp() -> None:
    """Stop libbpf and libxdp from printing failed first attempts, unless AIFLOW_LOG=debug."""
    if os.environ.get("AIFLOW_LOG") == "debug":
        return
    for library in ("libbpf", "libxdp"):
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(f"{library}.so.1"), f"{library}_set_print")(None)
