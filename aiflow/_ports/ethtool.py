"""Questions to the kernel about a network interface: ioctl, ethtool, generic netlink."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys

from aiflow._system import threads

__all__ = [
    "ETHERNET_HEADER",
    "channels",
    "driver_of_interface",
    "hardware_type",
    "has_carrier",
    "link_flags",
    "mtu",
    "xdp_features",
]

ETHERNET_HEADER = 14
"""Bytes of an Ethernet header."""

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFHWADDR, _SIOCETHTOOL = 0x8913, 0x8921, 0x8927, 0x8946
_ETHTOOL_GDRVINFO, _ETHTOOL_GLINK, _ETHTOOL_GCHANNELS = 0x03, 0x0A, 0x3C
_IFF_RUNNING = 0x40
_NETLINK_GENERIC, _NLM_F_REQUEST = 16, 1
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
_NETDEV_CMD_DEV_GET, _NETDEV_A_DEV_IFINDEX, _NETDEV_A_DEV_XDP_FEATURES = 1, 1, 3


def _ioctl(name: str, request: int) -> bytes:
    with threads.unpatched("socket").socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, struct.pack("16s24x", os.fsencode(name)))


def _ethtool(name: str, command: int, nbytes: int) -> bytes:
    """The answer of the interface's driver (linux/ethtool.h); b"" if it has none."""
    answer = ctypes.create_string_buffer(struct.pack("I", command), nbytes)
    with contextlib.suppress(OSError), threads.unpatched("socket").socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", os.fsencode(name), ctypes.addressof(answer)))
        return answer.raw
    return b""


def link_flags(name: str) -> int:
    """The interface's flags (IFF_UP, …). Raises OSError."""
    return int(struct.unpack_from("H", _ioctl(name, _SIOCGIFFLAGS), 16)[0])


def mtu(name: str) -> int:
    """Raises OSError."""
    return int(struct.unpack_from("i", _ioctl(name, _SIOCGIFMTU), 16)[0])


def hardware_type(name: str) -> int:
    """The ARP hardware type. Raises OSError."""
    return int(struct.unpack_from("H", _ioctl(name, _SIOCGIFHWADDR), 16)[0])


def driver_of_interface(name: str) -> str:
    """Name of the kernel driver; "" if it is unknown."""
    return _ethtool(name, _ETHTOOL_GDRVINFO, 196)[4:36].rstrip(b"\0").decode(errors="replace")


def has_carrier(name: str, flags: int) -> bool:
    """Whether the link is up; by the driver if it answers, since IFF_RUNNING may lag by a second."""
    link = _ethtool(name, _ETHTOOL_GLINK, 8)
    return bool(struct.unpack("II", link)[1]) if link else bool(flags & _IFF_RUNNING)


def channels(name: str) -> tuple[int, int, int]:
    """The driver's largest number of combined channels, and the present numbers of receive and combined channels."""
    _, _, _, _, max_combined, receive, _, _, combined = struct.unpack(
        "9I", _ethtool(name, _ETHTOOL_GCHANNELS, 36) or bytes(36)
    )
    return max_combined, receive, combined


def xdp_features(index: int) -> int | None:
    """XDP features of an interface's driver, by netlink (linux/netdev.h, since Linux 6.3); None: unknown."""
    with contextlib.suppress(OSError, KeyError, struct.error):
        kind = threads.unpatched("socket").socket
        with kind(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
            family = _generic(sock, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_NAME, b"netdev\0")
            (number,) = struct.unpack("H", family[_CTRL_ATTR_FAMILY_ID])
            device = _generic(sock, number, _NETDEV_CMD_DEV_GET, _NETDEV_A_DEV_IFINDEX, struct.pack("I", index))
            return int.from_bytes(device[_NETDEV_A_DEV_XDP_FEATURES], sys.byteorder)
    return None


def _generic(sock: socket.socket, family: int, command: int, attribute: int, value: bytes) -> dict[int, bytes]:
    """Send one generic netlink request; returns the attributes of the answer. Raises OSError if there is none."""
    request = struct.pack("HH", 4 + len(value), attribute) + value + bytes(-len(value) % 4)
    sock.settimeout(1)
    sock.send(struct.pack("IHHIIBBH", 20 + len(request), family, _NLM_F_REQUEST, 1, 0, command, 1, 0) + request)
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
