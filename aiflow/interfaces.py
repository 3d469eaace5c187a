"""Kernel network interfaces and PCI devices: what is there, may we use it, and how large its frames and queues are.

DPDK's own messages for these faults ("ioctl failed") name neither the cause nor the cure.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from .config import Endpoint
from .errors import PortError
from .private import keep

__all__ = [
    "AF_XDP",
    "XDP_FRAME",
    "Interface",
    "PacketRing",
    "claim",
    "inspect",
    "inspect_pci",
    "names",
    "network_cards",
    "packet_ring",
    "quiet_xdp",
    "unacknowledged_frames",
    "widen_send_buffer",
]

PCI_DEVICES = Path("/sys/bus/pci/devices")

AF_XDP = 44  # which Python has no name for

XDP_FRAME = 3498
"""Largest frame XDP takes in one page, bytes."""

KERNEL_OVERHEAD = 850
"""Bytes that a frame in a packet socket's send buffer counts for beside its own."""

_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921
_SO_SNDBUFFORCE = 32
_SEND_BUFFER = 212992  # Linux's default
_SOCKADDR_LL = struct.Struct("HHi12x")  # family, protocol, interface
_IFF_UP = 0x1
_PAGE = os.sysconf("SC_PAGESIZE")
_DPDK_KERNEL_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio", "mlx5_core", "mlx4_core")
_NO_PERMISSION = (
    "no permission to open raw sockets: run as root, or give the interpreter the right: "
    "setcap cap_net_raw,cap_net_admin+ep $(readlink -f $(command -v python3))"
)


@dataclass(frozen=True)
class Interface:
    """A kernel interface that is there, up, and ours to open."""

    name: str
    mtu: int
    socket_id: int


@dataclass(frozen=True)
class PacketRing:
    """Geometry of an af_packet ring (Linux, Documentation/networking/packet_mmap)."""

    frame_bytes: int
    block_bytes: int
    nb_frames: int


def names() -> list[str]:
    """Interfaces of this network namespace, without the loopback."""
    return sorted(name for _, name in socket.if_nameindex() if name != "lo")


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
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, struct.pack("16s24x", name.encode()))


def inspect(endpoint: Endpoint) -> Interface:
    """Check the interface of an af_packet or af_xdp endpoint.

    Raises
    ------
    PortError
        If it is missing or down, or we may not open it.
    """
    name = endpoint.target
    try:
        flags = struct.unpack_from("H", _ioctl(name, _SIOCGIFFLAGS), 16)[0]
        mtu = struct.unpack_from("i", _ioctl(name, _SIOCGIFMTU), 16)[0]
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            there = ", ".join(names()) or "none"
            raise PortError(f"{endpoint}: no interface {name} in this network namespace; there are: {there}") from None
        raise PortError(f"{endpoint}: {exc.strerror}") from exc
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        raise PortError(f"{endpoint}: {_NO_PERMISSION}") from None
    if not flags & _IFF_UP:
        raise PortError(f"{endpoint}: interface {name} is down; ip link set {name} up")
    return Interface(name, mtu, _numa_node(Path(f"/sys/class/net/{name}/device")))


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
    sock = keep(lambda: _threads.unpatched("socket").socket(socket.AF_UNIX, socket.SOCK_DGRAM))
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


def packet_ring(mtu: int) -> PacketRing:
    """Ring geometry for frames of `mtu` bytes and their Ethernet header.

    A slot also holds the kernel's header (66 bytes before a received frame) and a VLAN tag.
    """
    needed = mtu + 14 + 4 + 66
    frame_bytes = 2048
    while frame_bytes < needed:
        frame_bytes *= 2
    block_bytes = max(65536, frame_bytes, _PAGE)
    nb_frames = max(64, min(1024, (4 << 20) // frame_bytes))
    per_block = block_bytes // frame_bytes
    return PacketRing(frame_bytes, block_bytes, nb_frames // per_block * per_block or per_block)


def widen_send_buffer(name: str, nbytes: int) -> int:
    """Let our packet sockets on an interface have more on their way; returns the bytes they may have.

    DPDK leaves its sockets the system's default, and says nothing of their descriptors: they are found among ours.
    Without CAP_NET_ADMIN the kernel grants twice net.core.wmem_max at the most.
    """
    libc, granted = ctypes.CDLL(None, use_errno=True), _SEND_BUFFER
    wanted, size = ctypes.c_int(nbytes // 2), ctypes.c_uint(4)  # the kernel doubles it
    # By libc: a socket object would apply socket.setdefaulttimeout() to what it is made of, and most are not ours.
    with contextlib.suppress(OSError):  # the interface has gone, or no descriptor is left to list them with
        index = socket.if_nametoindex(name)
        for fd in map(int, os.listdir("/proc/self/fd")):
            address = ctypes.create_string_buffer(_SOCKADDR_LL.size)
            length = ctypes.c_uint(len(address))
            if libc.getsockname(fd, address, ctypes.byref(length)) or length.value < 8:
                continue  # no socket
            family, _, bound = _SOCKADDR_LL.unpack(address.raw)
            if (family, bound) != (socket.AF_PACKET, index):
                continue
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
        If it is missing, no network card, or bound to a driver that keeps it; the message says how to rebind it.
    """
    device = PCI_DEVICES / endpoint.target
    if not device.is_dir():
        raise PortError(f"{endpoint}: no such PCI device; lspci -D, or dpdk-devbind.py --status-dev net, lists them")
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
        interfaces = ", ".join(path.name for path in (device / "net").iterdir()) if (device / "net").is_dir() else ""
        instead = f", or use af_packet:{interfaces} as it is" if interfaces else ""
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
