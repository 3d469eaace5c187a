"""Kernel network interfaces: which there are, whether we may use one, and how large its frames are.

`inspect` decides for `aiflow ports` and for opening alike. DPDK's own messages for these faults ("ioctl failed") name
neither the cause nor the remedy.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from aiflow._ports import ethtool
from aiflow._ports.packet_ring import fanout_group
from aiflow._ports.xdp_probe import inspect_xdp, try_xdp_socket
from aiflow._system import threads
from aiflow._system.cpus import numa_node
from aiflow._system.descriptors import MORE_DESCRIPTORS, own_socket
from aiflow._wire import MAX_FRAME, MIN_PATH_FRAME
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["Interface", "ascii_name", "claim", "claim_fanout", "exists", "inspect", "interface_names", "use_of"]

_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_IFF_UP = 0x1
_NO_PERMISSION = (
    "no permission to open raw sockets: run as root, or give the interpreter the right: "
    "setcap cap_net_raw,cap_net_admin+ep $(readlink -f $(command -v python3))"
)


@dataclass(frozen=True)
class Interface:
    """A kernel interface that exists, is up, and may be opened.

    Attributes
    ----------
    name : str
    index : int
        The kernel's number of it; it changes if the interface is created anew under the same name.
    mtu : int
    socket_id : int
        NUMA node, or -1.
    frame_size : int
        Largest aiflow frame that it carries, in bytes with the Ethernet header.
    carrier : bool
    notes : tuple of str
        Facts that may still keep frames from getting through.
    """

    name: str
    index: int
    mtu: int
    socket_id: int
    frame_size: int
    carrier: bool
    notes: tuple[str, ...]


def interface_names() -> list[str]:
    """Interfaces of this network namespace."""
    return sorted(name for _, name in socket.if_nameindex())


def ascii_name(name: str) -> str:
    """An interface's name for a message; escaped if it has control characters for a terminal."""
    return name if name.isprintable() else ascii(name)


def exists(index: int) -> bool:
    """Whether this network namespace has the interface of that number, whatever its name is now."""
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


def inspect(endpoint: Endpoint, *, is_open: bool = False) -> Interface:
    """Check the interface of an af_packet or af_xdp endpoint, as opening it will find it.

    Parameters
    ----------
    endpoint : Endpoint
    is_open : bool
        It is open already: do not check the permission to open it, which the process may have given up since.

    Raises
    ------
    PortError
        If it is missing or down, cannot carry our frames, or may not be opened.
    """
    name = endpoint.target
    if set(name) & set("[,="):  # DPDK's separators
        raise PortError(f"{endpoint}: DPDK cannot read this name; ip link set {name} name NEWNAME")
    try:
        flags, mtu, kind = ethtool.link_flags(name), ethtool.mtu(name), ethtool.hardware_type(name)
        index = socket.if_nametoindex(name)
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            found = ", ".join(ascii_name(other) for other in interface_names() if other != "lo") or "none"
            raise PortError(f"{endpoint}: no interface {name} in this network namespace; there are: {found}") from None
        raise PortError(f"{endpoint}: {exc.strerror}; `aiflow ports` lists what can be used") from exc
    driver = ethtool.driver_of_interface(name)
    _check_kind(endpoint, kind, driver)
    if not is_open:
        _try_packet_socket(endpoint)
    if not flags & _IFF_UP:
        raise PortError(f"{endpoint}: interface {name} is down; ip link set {name} up")
    frame_size = min(mtu + ethtool.ETHERNET_HEADER, MAX_FRAME)
    if frame_size < MIN_PATH_FRAME:
        raise PortError(
            f"{endpoint}: its MTU of {mtu} is too small, our frames need {MIN_PATH_FRAME - ethtool.ETHERNET_HEADER}; "
            f"ip link set {name} mtu 1500"
        )
    notes = []
    carrier = ethtool.has_carrier(name, flags)
    if not carrier:
        notes.append("no carrier: its other end is down, not plugged in, or not there")
    if driver == "dummy":
        notes.append("a dummy interface has no other end")
    if endpoint.scheme == "af_xdp":
        if not is_open:
            try_xdp_socket(endpoint)
        notes += inspect_xdp(endpoint, index, mtu, driver)
    socket_id = numa_node(Path(f"/sys/class/net/{name}/device"))
    return Interface(name, index, mtu, socket_id, frame_size, carrier, tuple(notes))


def _check_kind(endpoint: Endpoint, kind: int, driver: str) -> None:
    """Raises PortError if interfaces of this kind cannot carry our frames."""
    if kind == _ARPHRD_LOOPBACK:
        raise PortError(
            f"{endpoint}: the loopback interface cannot carry our frames; use local:NAME between processes of a host"
        )
    if kind != _ARPHRD_ETHER:
        raise PortError(
            f"{endpoint}: no Ethernet interface (a tunnel, tun or VPN; ARP hardware type {kind}), and our frames are "
            "Ethernet frames; use the interface of the card below it"
        )
    if driver == "ipvlan":
        raise PortError(f"{endpoint}: an ipvlan interface carries IP only; use macvlan, or the interface below it")


def _try_packet_socket(endpoint: Endpoint) -> None:
    """Raises PortError if this process cannot have a packet socket."""
    try:
        threads.unpatched("socket").socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        raise PortError(f"{endpoint}: {_NO_PERMISSION}") from None
    except OSError as exc:
        what = MORE_DESCRIPTORS if exc.errno == errno.EMFILE else "use another endpoint"
        raise PortError(f"{endpoint}: no packet socket can be opened here ({exc.strerror}); {what}") from exc


def use_of(endpoint: Endpoint, role: str) -> str:
    """What to claim an interface for, when a Sender or Receiver (its `role`) of this process uses it; "": nothing."""
    if endpoint.scheme == "af_xdp":
        return "xdp"
    return role if role in ("sender", "receiver") else ""


def claim(endpoint: Endpoint, use: str) -> socket.socket:
    """Take an interface for one use: "sender", "receiver" or "xdp"; close the socket to release it.

    One process sends on an interface, and one receives: each hears all frames of it. An XDP queue has one owner in any
    case. The claim is an abstract socket: such names belong to the network namespace and end with
    the process. Forked children close it.

    Raises
    ------
    PortError
        If it is taken.
    """
    busy = (
        f"busy, another aiflow {'port' if use == 'xdp' else use} uses {endpoint.target}; "
        "close that one, or take another interface"
    )
    return _bound(endpoint, f"{use}/{endpoint.target}", busy)


def claim_fanout(endpoint: Endpoint, interface: Interface) -> socket.socket:
    """Claim the fan-out group that DPDK joins on an interface, in this network namespace: see `claim`.

    The kernel divides the frames of an interface among the sockets of a group. DPDK (22.11) always joins one, and
    numbers it by process id and interface. Processes of two containers may have equal ids.

    Raises
    ------
    PortError
        If another port has it.
    """
    group = fanout_group(interface.index)
    taken = (
        f"packet fan-out group {group} is taken in this network namespace, and each of the two ports would receive a "
        f"part of the frames. DPDK computes it from the process id {os.getpid()} and the interface number "
        f"{interface.index}. Another container's process has the same, or this process has a port on {interface.name} "
        "already. Close that port, or start this process again: it gets another id"
    )
    return _bound(endpoint, f"fanout/{group}", taken)


def _bound(endpoint: Endpoint, name: str, taken: str) -> socket.socket:
    """A socket with an abstract name of ours. Raises PortError, with the text `taken` if another has the name."""
    sock = own_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0aiflow/{name}")
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortError(f"{endpoint}: {taken}") from None
        raise PortError(f"{endpoint}: {exc.strerror}") from exc
    return sock
