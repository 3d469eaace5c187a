"""Use of a kernel interface by this host: its routes and addresses, and what is built on it. Asked by rtnetlink."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiflow._system import threads

__all__ = ["Network", "Route", "built_on", "read_network", "why_in_use"]

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_NETLINK_ROUTE = 0
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x10, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 20, 22, 24, 26
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18
_RTN_UNICAST = 1  # local and broadcast routes follow from addresses
_RTM_F_CLONED = 0x200
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, prefix lengths of destination and source, …, type, flags
_NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, interface
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_IFF_UP = 0x1
_FEW = 3
_TRIES = 10  # of a dump that a change interrupts


class Route(NamedTuple):
    """One route over one interface.

    Attributes
    ----------
    interface : int
        The kernel's number of the interface.
    text : str
        As ip-route(8) writes it, such as ``default via 10.0.0.1``.
    """

    interface: int
    text: str

    @property
    def is_default(self) -> bool:
        """Whether it leads to all destinations without a route of their own."""
        return self.text.startswith("default")


@dataclass(frozen=True)
class Network:
    """A snapshot of a network namespace.

    Attributes
    ----------
    numbers : mapping of str to int
        The kernel's number of each interface.
    addresses : mapping of int to sequence of str
        Addresses of an interface with their prefix length, by its number.
    routes : sequence of Route
        Unicast routes of all tables, IPv4 and IPv6.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    addresses: Mapping[int, Sequence[str]] = field(default_factory=dict)
    routes: Sequence[Route] = ()


def read_network() -> Network:
    """Read the network namespace of this thread. Raises OSError."""
    numbers = {name: index for index, name in socket.if_nameindex()}
    addresses: dict[int, list[str]] = {}
    for message in _dump(_RTM_GETADDR, _RTM_NEWADDR, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, bits, _, _, index = _IFADDRMSG.unpack_from(message)
        found = dict(_attributes(message[_IFADDRMSG.size :]))
        packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
        if packed is not None and family in (socket.AF_INET, socket.AF_INET6):
            addresses.setdefault(index, []).append(f"{ipaddress.ip_address(packed)}/{bits}")
    return Network(numbers, addresses, [*_routes(socket.AF_INET), *_routes(socket.AF_INET6)])


def _routes(family: int) -> Iterator[Route]:
    for message in _dump(_RTM_GETROUTE, _RTM_NEWROUTE, _RTMSG.pack(family, *[0] * 8)):
        of_family, bits, _, _, _, _, _, kind, flags = _RTMSG.unpack_from(message)
        if of_family != family or kind != _RTN_UNICAST or flags & _RTM_F_CLONED:
            continue
        found = dict(_attributes(message[_RTMSG.size :]))
        to = f"{ipaddress.ip_address(found[_RTA_DST])}/{bits}" if _RTA_DST in found else "default"
        if _RTA_OIF in found:
            yield Route(struct.unpack("=I", found[_RTA_OIF])[0], to + _via(found))
        hops = found.get(_RTA_MULTIPATH, b"")
        while len(hops) >= _NEXT_HOP.size:
            length, _, _, index = _NEXT_HOP.unpack_from(hops)
            yield Route(index, to + _via(dict(_attributes(hops[_NEXT_HOP.size : length]))))
            hops = hops[max(_aligned(length), _NEXT_HOP.size) :]


def _via(attributes: Mapping[int, bytes]) -> str:
    gateway = attributes.get(_RTA_GATEWAY) or attributes.get(_RTA_VIA, b"")[2:]  # "via" begins with its family
    return f" via {ipaddress.ip_address(gateway)}" if len(gateway) in (4, 16) else ""


def _dump(request: int, answer: int, body: bytes) -> list[bytes]:
    """Bodies of the messages that answer a dump request. Raises OSError."""
    sockets: Any = threads.unpatched("socket")
    for _ in range(_TRIES):
        with sockets.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as sock:
            size = _HEADER.size + len(body)
            sock.send(_HEADER.pack(size, request, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
            found, is_whole = _answers(lambda: sock.recv(1 << 16), answer)
        if is_whole:
            return found
    raise OSError(errno.EAGAIN, "the routes and addresses change all the time")


def _answers(receive: Callable[[], bytes], answer: int) -> tuple[list[bytes], bool]:
    """Bodies of a dump's messages, and whether they are consistent: the kernel says if a change came between."""
    found: list[bytes] = []
    is_whole = True
    while True:
        rest = receive()
        while len(rest) >= _HEADER.size:
            length, kind, flags, _, _ = _HEADER.unpack_from(rest)
            is_whole = is_whole and not flags & _NLM_F_DUMP_INTR
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                number = -struct.unpack_from("=i", rest, _HEADER.size)[0] if length >= _HEADER.size + 4 else 0
                if number > 0:
                    raise OSError(number, os.strerror(number))
                return found, is_whole
            if kind == answer:
                found.append(rest[_HEADER.size : length])
            rest = rest[max(_aligned(length), _HEADER.size) :]


def _attributes(rest: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute."""
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        yield kind, rest[_ATTRIBUTE.size : length]
        rest = rest[max(_aligned(length), _ATTRIBUTE.size) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def why_in_use(name: str, interfaces: Path, network: Network) -> str:
    """Why the host needs an interface, and what the user can do; "" if it does not.

    Parameters
    ----------
    name : str
    interfaces : Path
        ``/sys/class/net``.
    network : Network
        The namespace that these interfaces are in.
    """
    parts = [name, *built_on(name, interfaces)]
    for part in parts:
        if network.numbers.get(part) != _number(interfaces / part / "ifindex"):
            return (
                f"its interface {part} is in another network namespace than this command, which cannot see its routes; "
                "run the command in that namespace, with its own /sys"
            )
    instead = f"Use another card, or af_packet:{name}, which leaves the card to the kernel"
    spare = f"If the host does not need it: ip link set dev {name} down"
    for part in parts:
        of_part = part if part == name else f"{part}, which is built on {name},"
        routes = [route for route in network.routes if route.interface == network.numbers[part]]
        default = [route.text for route in routes if route.is_default]
        if default:
            return f"{of_part} carries the host's default route ({default[0]}). {instead}"
        if routes:
            texts = [route.text for route in routes]
            return f"{of_part} carries the host's {_listed('route', texts)}. {instead}. {spare}"
    for part in parts:
        addresses = network.addresses.get(network.numbers[part], ())
        if addresses and _number(interfaces / part / "flags", 16) & _IFF_UP:
            of_part = part if part == name else f"{part}, which is built on {name},"
            return f"{of_part} is up with {_listed('address', addresses)}. {instead}. {spare}"
    if len(parts) > 1:
        return (
            f"{parts[1]} is built on {name}. Take {name} out of it first (ip link set dev {name} nomaster), or remove "
            f"it (ip link delete {parts[1]}). {instead}"
        )
    return ""


def built_on(name: str, interfaces: Path) -> list[str]:
    """Bridges, bonds and VLANs on top of an interface, and those on top of these. sysfs shows the next ones only."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        for link in sorted((interfaces / waiting.pop()).glob("upper_*")):
            upper = link.name.removeprefix("upper_")
            if upper not in found and upper != name:
                found.append(upper)
                waiting.append(upper)
    return found


def _number(path: Path, base: int = 10) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text().strip(), base)
    return 0


def _listed(noun: str, texts: Sequence[str]) -> str:
    plural = "" if len(texts) == 1 else "es" if noun.endswith("s") else "s"
    more = f" and {len(texts) - _FEW} more" if len(texts) > _FEW else ""
    return f"{noun}{plural} {', '.join(texts[:_FEW])}{more}"
