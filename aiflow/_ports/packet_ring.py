"""af_packet: the geometry of its rings, the send buffers of its sockets, and their fan-out group."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "KERNEL_OVERHEAD",
    "PacketRing",
    "bound",
    "fanout_group",
    "packet_ring",
    "packet_sockets",
    "unacknowledged_frames",
    "widen_send_buffer",
]

KERNEL_OVERHEAD = 850
"""Bytes that the kernel charges to a packet socket's send buffer for each frame, beside the frame itself."""

_SO_SNDBUFFORCE = 32
_DEFAULT_SEND_BUFFER = 212992  # Linux's default
_SOCKADDR_LL = struct.Struct("HHi12x")  # family, protocol, interface
_PAGE = os.sysconf("SC_PAGESIZE")
_LARGEST_SLOT = 65280


@dataclass(frozen=True)
class PacketRing:
    """Geometry of an af_packet ring (Linux, Documentation/networking/packet_mmap)."""

    frame_bytes: int
    block_bytes: int
    nb_frames: int


def packet_ring(frame_size: int) -> PacketRing:
    """Ring geometry for frames of `frame_size` bytes.

    A slot also holds the kernel's header (66 bytes before a received frame) and a VLAN tag. All but 32 bytes of a slot
    must fit in an mbuf (65407). Slots are contiguous, so that a block holds a whole number of them.
    """
    needed = frame_size + 4 + 66
    slot = 2048
    while slot < needed:
        slot *= 2
    if slot > 32768:
        slot = _LARGEST_SLOT
    block = math.lcm(slot, _PAGE)
    block *= max(1, 65536 // block)
    per_block = block // slot
    nb_frames = max(64, min(1024, (4 << 20) // slot))
    return PacketRing(slot, block, nb_frames // per_block * per_block or per_block)


def fanout_group(index: int) -> int:
    """Number of the fan-out group that DPDK joins on an interface: see rte_eth_af_packet.c, get_fanout_group_id."""
    return (os.getpid() ^ index) & 0xFFFF


def packet_sockets(index: int) -> set[int]:
    """Descriptors of this process's packet sockets that are bound to an interface.

    DPDK does not tell its descriptors: search all of ours.
    """
    with contextlib.suppress(OSError):  # no descriptor is free to list them with
        return {fd for fd in map(int, os.listdir("/proc/self/fd")) if bound(fd) == index}
    return set()


def bound(fd: int) -> int:
    """Index of the interface that a packet socket is bound to; -1 if that is gone, or `fd` is no packet socket."""
    # By libc: a socket object would apply socket.setdefaulttimeout() to descriptors that other code owns.
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.create_string_buffer(_SOCKADDR_LL.size)
    length = ctypes.c_uint(len(address))
    if libc.getsockname(fd, address, ctypes.byref(length)) or length.value < 8:
        return -1
    family, _, index = _SOCKADDR_LL.unpack(address.raw)
    return int(index) if family == socket.AF_PACKET else -1


def widen_send_buffer(sockets: Iterable[int], nbytes: int) -> int:
    """Ask for send buffers of `nbytes`; returns the bytes that the kernel granted.

    DPDK leaves its sockets the system's default. Without CAP_NET_ADMIN the kernel grants at most twice
    net.core.wmem_max.
    """
    libc, granted = ctypes.CDLL(None, use_errno=True), _DEFAULT_SEND_BUFFER
    wanted, size = ctypes.c_int(nbytes // 2), ctypes.c_uint(4)  # the kernel doubles it
    for fd in sockets:
        for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):  # the first needs CAP_NET_ADMIN
            if not libc.setsockopt(fd, socket.SOL_SOCKET, option, ctypes.byref(wanted), size):
                break
        got = ctypes.c_int()
        if not libc.getsockopt(fd, socket.SOL_SOCKET, socket.SO_SNDBUF, ctypes.byref(got), ctypes.byref(size)):
            granted = got.value
    return granted


def unacknowledged_frames(frame_size: int, nb_frames: int, send_buffer: int) -> int:
    """Frames that an af_packet socket may have in flight before `tx_burst` blocks; see `KERNEL_OVERHEAD`."""
    return max(2, min(send_buffer // (frame_size + KERNEL_OVERHEAD), nb_frames - 1))
