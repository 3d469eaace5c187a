"""Kernel network interfaces and PCI devices: what is there, may we use it, and how large its frames and queues are.

`inspect` decides for `aiflow ports` and for opening alike. DPDK's own messages for these faults ("ioctl failed") name
neither the cause nor the cure.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import os
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aiflow._system import threads
from aiflow._system.descriptors import own_socket
from aiflow._system.limits import CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, may
from aiflow._wire import MAX_FRAME, MIN_PATH_FRAME
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = [
    "AF_XDP",
    "ETHERNET",
    "XDP_ROOM",
    "Interface",
    "PacketRing",
    "bound",
    "claim",
    "exists",
    "inspect",
    "inspect_pci",
    "names",
    "network_cards",
    "packet_ring",
    "packet_sockets",
    "quiet_xdp",
    "unacknowledged_frames",
    "widen_send_buffer",
]

PCI_DEVICES = Path("/sys/bus/pci/devices")
ROUTES = Path("/proc/net/route")

AF_XDP = 44  # which Python has no name for

ETHERNET = 14
"""Bytes of an Ethernet header."""

XDP_ROOM = 3712
"""Bytes in an mbuf for AF_XDP: with DPDK's headers and headroom (320 bytes) it fits in the page of a umem chunk."""

_XDP_FRAME = 3454  # what is left of the page, the kernel's 256 bytes before a frame taken off

KERNEL_OVERHEAD = 850
"""Bytes that a frame in a packet socket's send buffer counts for beside its own."""

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFHWADDR, _SIOCETHTOOL = 0x8913, 0x8921, 0x8927, 0x8946
_ETHTOOL_GDRVINFO, _ETHTOOL_GLINK, _ETHTOOL_GCHANNELS = 0x03, 0x0A, 0x3C
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_NETLINK_GENERIC, _NLM_F_REQUEST = 16, 1
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
_NETDEV_CMD_DEV_GET, _NETDEV_A_DEV_IFINDEX, _NETDEV_A_DEV_XDP_FEATURES = 1, 1, 3
_WITHOUT_XDP = ("macvlan", "bridge", "dummy", "802.1Q VLAN Support", "vxlan")  # where the kernel does not say
_SO_SNDBUFFORCE = 32
_SEND_BUFFER = 212992  # Linux's default
_SOCKADDR_LL = struct.Struct("HHi12x")  # family, protocol, interface
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_PAGE = os.sysconf("SC_PAGESIZE")
_LARGEST_SLOT = 65280
_DPDK_KERNEL_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio", "mlx5_core", "mlx4_core")
_NO_PERMISSION = (
    "no permission to open raw sockets: run as root, or give the interpreter the right: "
    "setcap cap_net_raw,cap_net_admin+ep $(readlink -f $(command -v python3))"
)


@dataclass(frozen=True)
class Interface:
    """A kernel interface that is there, up, and ours to open.

    Attributes
    ----------
    name : str
    index : int
        The kernel's number of it: another one when it is made again under the same name.
    mtu : int
    socket_id : int
        NUMA node, or -1.
    frame_size : int
        Largest frame of ours that it carries, bytes with the Ethernet header.
    carrier : bool
    notes : tuple of str
        What may keep frames from getting through nevertheless.
    """

    name: str
    index: int
    mtu: int
    socket_id: int
    frame_size: int
    carrier: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PacketRing:
    """Geometry of an af_packet ring (Linux, Documentation/networking/packet_mmap)."""

    frame_bytes: int
    block_bytes: int
    nb_frames: int


def names() -> list[str]:
    """Interfaces of this network namespace."""
    return sorted(name for _, name in socket.if_nameindex())


def network_cards() -> list[str]:
    """PCI addresses of the network cards."""
    found = []
    for device in sorted(PCI_DEVICES.glob("*")):
        try:
            if int((device / "class").read_text(), 16) >> 16 == 0x02:
                found.append(device.name)
        except (OSError, ValueError):
            continue
    return found


def _ioctl(name: str, request: int) -> bytes:
    with threads.unpatched("socket").socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, struct.pack("16s24x", os.fsencode(name)))


def _ethtool(name: str, command: int, nbytes: int) -> bytes:
    """What the interface's driver says (linux/ethtool.h); b"" where it says nothing."""
    answer = ctypes.create_string_buffer(struct.pack("I", command), nbytes)
    with contextlib.suppress(OSError), threads.unpatched("socket").socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", os.fsencode(name), ctypes.addressof(answer)))
        return answer.raw
    return b""


def _driver(name: str) -> str:
    return _ethtool(name, _ETHTOOL_GDRVINFO, 196)[4:36].rstrip(b"\0").decode(errors="replace")


def inspect(endpoint: Endpoint, *, is_open: bool = False) -> Interface:
    """Check the interface of an af_packet or af_xdp endpoint: what this says holds when it is opened.

    Parameters
    ----------
    endpoint : Endpoint
    is_open : bool
        It is open already: the right to open it is not asked for, which the process may have given up since.

    Raises
    ------
    PortError
        If it is missing or down, carries no frames of ours, or we may not open it.
    """
    name = endpoint.target
    if set(name) & set("[,="):  # which DPDK takes for its own
        raise PortError(f"{endpoint}: DPDK cannot read this name; ip link set {name} name NEWNAME")
    try:
        flags = struct.unpack_from("H", _ioctl(name, _SIOCGIFFLAGS), 16)[0]
        mtu = struct.unpack_from("i", _ioctl(name, _SIOCGIFMTU), 16)[0]
        kind = struct.unpack_from("H", _ioctl(name, _SIOCGIFHWADDR), 16)[0]
        index = socket.if_nametoindex(name)
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            there = ", ".join(ascii_name(other) for other in names() if other != "lo") or "none"
            raise PortError(f"{endpoint}: no interface {name} in this network namespace; there are: {there}") from None
        raise PortError(f"{endpoint}: {exc.strerror}; `aiflow ports` lists what can be used") from exc
    driver = _driver(name)
    if kind == _ARPHRD_LOOPBACK:
        raise PortError(
            f"{endpoint}: the loopback carries no frames of ours; use local:NAME between processes of a host"
        )
    if kind != _ARPHRD_ETHER:
        raise PortError(
            f"{endpoint}: no Ethernet interface (a tunnel, tun or VPN; ARP hardware type {kind}), and our frames are "
            "Ethernet's; use one of the card below it"
        )
    if driver == "ipvlan":
        raise PortError(f"{endpoint}: an ipvlan interface carries IP only; use macvlan, or the interface below it")
    if not is_open:
        _try_packet_socket(endpoint)
    if not flags & _IFF_UP:
        raise PortError(f"{endpoint}: interface {name} is down; ip link set {name} up")
    largest = min(mtu + ETHERNET, MAX_FRAME)
    if largest < MIN_PATH_FRAME:
        raise PortError(
            f"{endpoint}: its MTU of {mtu} is too small, our frames need {MIN_PATH_FRAME - ETHERNET}; "
            f"ip link set {name} mtu 1500"
        )
    notes = []
    link = _ethtool(name, _ETHTOOL_GLINK, 8)  # IFF_RUNNING may be a second behind
    carrier = bool(struct.unpack("II", link)[1]) if link else bool(flags & _IFF_RUNNING)
    if not carrier:
        notes.append("no carrier: its other end is down, not plugged in, or not there")
    if driver == "dummy":
        notes.append("a dummy interface has no other end")
    if endpoint.scheme == "af_xdp":
        if not is_open:
            _try_xdp_socket(endpoint)
        notes += _inspect_xdp(endpoint, index, mtu, driver)
    socket_id = _numa_node(Path(f"/sys/class/net/{name}/device"))
    return Interface(name, index, mtu, socket_id, largest, carrier, tuple(notes))


def _try_packet_socket(endpoint: Endpoint) -> None:
    """Raises PortError if we can have none."""
    try:
        threads.unpatched("socket").socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        raise PortError(f"{endpoint}: {_NO_PERMISSION}") from None
    except OSError as exc:
        what = "close some files, or raise ulimit -n" if exc.errno == errno.EMFILE else "use another endpoint"
        raise PortError(f"{endpoint}: no packet socket to be had here ({exc.strerror}); {what}") from exc


def _try_xdp_socket(endpoint: Endpoint) -> None:
    """Raises PortError if we can have none."""
    instead = f"use af_packet:{endpoint.target}"
    if not may(CAP_NET_ADMIN) or not (may(CAP_BPF) or may(CAP_SYS_ADMIN)):
        raise PortError(f"{endpoint}: XDP needs root (CAP_NET_ADMIN, CAP_BPF); {instead}")
    try:
        threads.unpatched("socket").socket(AF_XDP, socket.SOCK_RAW).close()
    except OSError as exc:
        raise PortError(f"{endpoint}: no AF_XDP socket to be had here ({exc.strerror}); {instead}") from None


def _inspect_xdp(endpoint: Endpoint, index: int, mtu: int, driver: str) -> list[str]:
    """What AF_XDP asks for beyond that; returns notes. Raises PortError."""
    name, instead = endpoint.target, f"use af_packet:{endpoint.target}"
    if mtu + ETHERNET > _XDP_FRAME:
        limit = _XDP_FRAME - ETHERNET
        raise PortError(
            f"{endpoint}: its MTU of {mtu} is more than XDP takes ({limit}); ip link set {name} mtu {limit}, or "
            f"{instead}, which carries jumbo frames"
        )
    if driver in _WITHOUT_XDP or _xdp_features(index) == 0:
        raise PortError(f"{endpoint}: its driver ({driver or 'unknown'}) has no XDP; {instead}")
    _, _, _, _, most, received, _, _, combined = struct.unpack(
        "9I", _ethtool(name, _ETHTOOL_GCHANNELS, 36) or bytes(36)
    )
    if most and not combined:
        raise PortError(f"{endpoint}: XDP needs a queue, and {driver or 'its driver'} has none for it; {instead}")
    if combined + received > 1:
        fewer = "combined 1" if combined else "rx 1 (or `combined 1`, whichever its driver knows)"
        return [f"only queue 0 of {combined + received} is read: ethtool -L {name} {fewer}"]
    return []


def _xdp_features(index: int) -> int | None:
    """What of XDP an interface's driver can do, by netlink (linux/netdev.h, since Linux 6.3); None: not known."""
    with contextlib.suppress(OSError, KeyError, struct.error):
        kind = threads.unpatched("socket").socket
        with kind(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
            family = _generic(sock, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_NAME, b"netdev\0")
            (number,) = struct.unpack("H", family[_CTRL_ATTR_FAMILY_ID])
            device = _generic(sock, number, _NETDEV_CMD_DEV_GET, _NETDEV_A_DEV_IFINDEX, struct.pack("I", index))
            return int.from_bytes(device[_NETDEV_A_DEV_XDP_FEATURES], sys.byteorder)
    return None


def _generic(sock: socket.socket, family: int, command: int, attribute: int, value: bytes) -> dict[int, bytes]:
    """Ask generic netlink one thing; returns the attributes of the answer. Raises OSError for none."""
    asked = struct.pack("HH", 4 + len(value), attribute) + value + bytes(-len(value) % 4)
    sock.settimeout(1)
    sock.send(struct.pack("IHHIIBBH", 20 + len(asked), family, _NLM_F_REQUEST, 1, 0, command, 1, 0) + asked)
    answer = sock.recv(65536)
    length, kind = struct.unpack_from("IH", answer)
    if kind != family:
        raise OSError(errno.EOPNOTSUPP, "no answer")
    attributes, at = {}, 20
    while at < length:
        size, name = struct.unpack_from("HH", answer, at)
        attributes[name & 0x3FFF] = answer[at + 4 : at + size]
        at += (size + 3) & ~3
    return attributes


def ascii_name(name: str) -> str:
    """An interface's name for a message; one that could do things to a terminal is escaped."""
    return name if name.isprintable() else ascii(name)


def exists(index: int) -> bool:
    """Whether this network namespace has the interface of that number, whatever it is called now."""
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


def _numa_node(device: Path) -> int:
    try:
        return int((device / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


def claim(endpoint: Endpoint, role: str) -> socket.socket:
    """Take an interface for one sender and one receiver at most; close the socket to give it back.

    Two senders on one interface would share a MAC address, and a receiver could not tell them apart. An XDP queue has
    one owner in any case. An abstract socket holds the claim: such names belong to the network namespace, and go with
    the process; forked children let go of it.

    Raises
    ------
    PortError
        If it is taken.
    """
    sock = own_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        use = "xdp" if endpoint.scheme == "af_xdp" else role
        sock.bind(f"\0aiflow/{use}/{endpoint.target}")
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortError(
                f"{endpoint}: busy, another aiflow {'port' if use == 'xdp' else role} uses {endpoint.target}; "
                "close that one, or take another interface"
            ) from None
        raise PortError(f"{endpoint}: {exc.strerror}") from exc
    return sock


def quiet_xdp() -> None:
    """Stop libbpf and libxdp from printing, unless AIFLOW_LOG=debug: they report what they merely tried first."""
    if os.environ.get("AIFLOW_LOG") == "debug":
        return
    for library in ("libbpf", "libxdp"):
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(f"{library}.so.1"), f"{library}_set_print")(None)


def packet_ring(frame_size: int) -> PacketRing:
    """Ring geometry for frames of `frame_size` bytes.

    A slot also holds the kernel's header (66 bytes before a received frame) and a VLAN tag, and all of a slot but 32
    bytes must fit in an mbuf (65407). Slots follow each other without gaps, so that a block is a whole number of them.
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


def packet_sockets(index: int) -> set[int]:
    """Descriptors of this process's packet sockets that are bound to an interface.

    DPDK says nothing of its descriptors: they are found among ours.
    """
    with contextlib.suppress(OSError):  # no descriptor is left to list them with
        return {fd for fd in map(int, os.listdir("/proc/self/fd")) if bound(fd) == index}
    return set()


def bound(fd: int) -> int:
    """The number of the interface that a packet socket is bound to; -1 when that is gone, or `fd` is no such socket."""
    # By libc: a socket object would apply socket.setdefaulttimeout() to what it is made of, and most are not ours.
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.create_string_buffer(_SOCKADDR_LL.size)
    length = ctypes.c_uint(len(address))
    if libc.getsockname(fd, address, ctypes.byref(length)) or length.value < 8:
        return -1
    family, _, index = _SOCKADDR_LL.unpack(address.raw)
    return int(index) if family == socket.AF_PACKET else -1


def widen_send_buffer(sockets: Iterable[int], nbytes: int) -> int:
    """Let packet sockets have more on their way; returns the bytes they may have.

    DPDK leaves its sockets the system's default. Without CAP_NET_ADMIN the kernel grants twice net.core.wmem_max at
    most.
    """
    libc, granted = ctypes.CDLL(None, use_errno=True), _SEND_BUFFER
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
    """Frames an af_packet socket may have on their way before `tx_burst` blocks.

    The kernel charges each frame and about 850 bytes of its own to the socket's send buffer.
    """
    return max(2, min(send_buffer // (frame_size + KERNEL_OVERHEAD), nb_frames - 1))


def inspect_pci(endpoint: Endpoint) -> int:
    """Check that DPDK could drive a PCI device; returns its NUMA node, or -1.

    Raises
    ------
    PortError
        If it is missing, no network card, or bound to a driver that keeps it; the message says how to rebind it, unless
        the machine would lose its network.
    """
    device = PCI_DEVICES / endpoint.target
    if not device.is_dir():
        address = endpoint.target.partition(":")[2]
        alike = " or ".join(sorted(f"pci:{path.name}" for path in PCI_DEVICES.glob(f"*:{address}")))
        instead = f"is {alike} meant? " if alike else ""
        raise PortError(
            f"{endpoint}: no such PCI device {endpoint.target}; {instead}lspci -D, or "
            "dpdk-devbind.py --status-dev net, lists them with their domain"
        )
    try:
        pci_class = int((device / "class").read_text(), 16) >> 16
    except (OSError, ValueError):
        pci_class = 0x02
    if pci_class != 0x02:
        raise PortError(
            f"{endpoint}: not a network card (PCI class 0x{pci_class:02x}); dpdk-devbind.py --status-dev net lists them"
        )
    link = device / "driver"
    driver = link.resolve().name if link.exists() else ""
    if driver not in _DPDK_KERNEL_DRIVERS:
        state = f"is bound to the kernel's {driver} driver" if driver else "is bound to no driver"
        interfaces = sorted(path.name for pattern in ("net/*", "virtio*/net/*") for path in device.glob(pattern))
        as_it_is = " or ".join(f"af_packet:{name}" for name in interfaces)
        if serving := [name for name in interfaces if _serves(name)]:
            raise PortError(
                f"{endpoint}: the card {state}, and the machine's network goes through it ({', '.join(serving)} is up "
                f"and has a route): DPDK would take it away. Use {as_it_is}, or another card"
            )
        instead = f", or use {as_it_is} as it is" if interfaces else ""
        raise PortError(
            f"{endpoint}: the card {state}, and DPDK needs it bound to vfio-pci. As root: modprobe vfio-pci && "
            f"dpdk-devbind.py --bind=vfio-pci {endpoint.target} (the kernel loses the card until it is bound back; "
            f"without an IOMMU: echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode){instead}"
        )
    if driver == "vfio-pci" and not os.access("/dev/vfio/vfio", os.R_OK | os.W_OK):
        raise PortError(
            f"{endpoint}: no permission for /dev/vfio; run as root, or chown the card's /dev/vfio/GROUP to you"
        )
    return _numa_node(device)


def _serves(name: str) -> bool:
    """Whether the machine's network goes through an interface: by itself, or by a bridge, bond or VLAN on it."""
    above = {name, *(path.name.removeprefix("upper_") for path in Path(f"/sys/class/net/{name}").glob("upper_*"))}
    with contextlib.suppress(OSError):
        return any(line.split()[0] in above for line in ROUTES.read_text().splitlines()[1:] if line.strip())
    return False
