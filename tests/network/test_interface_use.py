"""Routes and addresses of real interfaces, in network namespaces, and the refusal to take their card from the host."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netns import Namespace, Net
from pci_tree import CARD, PciTree

from aiflow._ports import interface_use
from aiflow._ports.interface_use import Network, read_network
from aiflow._ports.pci_binding import PciBinding
from aiflow.errors import PortError


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Net() as net:
        yield net.namespace("host")


def seen(host: Namespace) -> Network:
    with host.entered():
        return read_network()


def routes(host: Namespace, interface: str) -> list[str]:
    network = seen(host)
    return sorted(route.text for route in network.routes if route.interface == network.numbers[interface])


@pytest.mark.unit
def test_the_loopback_has_its_address_and_no_route() -> None:
    network = read_network()
    number = socket.if_nametoindex("lo")
    assert network.numbers["lo"] == number
    assert set(network.addresses.get(number, ())) <= {"127.0.0.1/8", "::1/128"}
    assert not [route for route in network.routes if route.interface == number and route.text.startswith("127.")]


NEWROUTE, ERROR, DONE = 24, 2, 3


def message(kind: int, body: bytes, *, interrupted: bool = False) -> bytes:
    """A message of a dump: linux/netlink.h."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0x12 if interrupted else 0x2, 1, 0) + body


def answers(*messages: bytes) -> tuple[list[bytes], bool]:
    return interface_use._answers(iter(messages).__next__, NEWROUTE)


@pytest.mark.unit
def test_a_dump_that_a_change_interrupted_is_noticed() -> None:
    done = message(DONE, bytes(4))
    first, second = message(NEWROUTE, b"1234"), message(NEWROUTE, b"5678")
    assert answers(first + second, done) == ([b"1234", b"5678"], True)
    assert answers(first, message(NEWROUTE, b"5678", interrupted=True), done) == ([b"1234", b"5678"], False)
    assert answers(first + message(DONE, bytes(4), interrupted=True)) == ([b"1234"], False)


@pytest.mark.unit
@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_a_dump_that_fails_is_an_error(kind: int) -> None:
    with pytest.raises(OSError, match="busy") as caught:
        answers(message(NEWROUTE, b"1234"), message(kind, struct.pack("=i", -errno.EBUSY)))
    assert caught.value.errno == errno.EBUSY


@pytest.mark.unit
def test_an_interrupted_dump_is_repeated_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    real, interrupted = interface_use._answers, [True, True, False]

    def some(receive: Callable[[], bytes], answer: int) -> tuple[list[bytes], bool]:
        found, _ = real(receive, answer)
        return found, not interrupted.pop(0)

    monkeypatch.setattr(interface_use, "_answers", some)
    body = struct.pack("=BBBBI", 0, 0, 0, 0, 0)
    assert isinstance(interface_use._dump(22, 20, body), list)
    assert interrupted == []
    interrupted += [True] * 10
    with pytest.raises(OSError, match="change all the time"):
        interface_use._dump(22, 20, body)


@pytest.mark.root
def test_addresses_and_routes_of_both_families_are_found(host: Namespace) -> None:
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.default.disable_ipv6=0")
    host.ip("link", "add", "v0", "type", "veth", "peer", "v1")
    host.ip("address", "add", "10.7.0.1/24", "dev", "v0")
    host.ip("address", "add", "fd00:7::1/64", "dev", "v0", "nodad")
    assert routes(host, "v0") == []  # it is down
    host.ip("link", "set", "v1", "up")
    host.ip("link", "set", "v0", "up")
    host.ip("route", "add", "default", "via", "10.7.0.254")
    host.ip("route", "add", "10.8.0.0/16", "via", "10.7.0.253", "table", "77")
    host.ip("-6", "route", "add", "default", "via", "fd00:7::ff")
    network = seen(host)
    assert {"10.7.0.1/24", "fd00:7::1/64"} <= set(network.addresses[network.numbers["v0"]])
    found = routes(host, "v0")
    assert {
        "10.7.0.0/24",
        "10.8.0.0/16 via 10.7.0.253",
        "default via 10.7.0.254",
        "default via fd00:7::ff",
        "fd00:7::/64",
    } <= set(found)
    assert not [text for text in found if text.startswith(("10.7.0.1/", "10.7.0.255", "ff00"))]


@pytest.mark.root
def test_each_next_hop_of_a_multipath_route_counts(host: Namespace) -> None:
    for number in range(2):
        host.ip("link", "add", f"v{number}", "type", "veth", "peer", f"w{number}")
        host.ip("address", "add", f"10.{number}.0.1/24", "dev", f"v{number}")
        for end in "vw":
            host.ip("link", "set", f"{end}{number}", "up")
    host.ip("route", "add", "default", *("nexthop", "via", "10.0.0.9"), *("nexthop", "via", "10.1.0.9"))
    assert "default via 10.0.0.9" in routes(host, "v0")
    assert "default via 10.1.0.9" in routes(host, "v1")


@pytest.mark.root
def test_more_routes_than_one_message_holds(host: Namespace) -> None:
    host.ip("link", "add", "v0", "type", "veth", "peer", "v1")
    host.ip("link", "set", "v0", "up")
    lines = "".join(f"route add 10.{number >> 8}.{number & 255}.0/24 dev v0\n" for number in range(3000))
    host.run("ip", "-batch", "-", stdin=lines)
    assert len([text for text in routes(host, "v0") if text.startswith("10.")]) == 3000


@pytest.mark.root
def test_a_card_below_a_real_bridge_is_refused_until_the_bridge_is_gone(host: Namespace, tmp_path: Path) -> None:
    tree = PciTree(tmp_path, "igb", "vfio-pci")
    tree.add(CARD, "igb", "v0", group="12")
    binding = PciBinding(tree, tmp_path / "records")
    host.ip("link", "add", "v0", "type", "veth", "peer", "v1")
    host.ip("link", "add", "br0", "type", "bridge")

    def number(name: str) -> int:
        with host.entered():
            return socket.if_nametoindex(name)

    def refusal() -> str:
        with host.entered(), pytest.raises(PortError) as caught:
            binding.plan_bind([CARD])
        return str(caught.value)

    assert "another network namespace" in refusal()  # the number that sysfs shows is not this interface's
    tree.interface("v0", "br0", number=number("v0"), up=True)
    tree.interface("br0", number=number("br0"), up=True)
    assert "br0 is built on v0" in refusal()
    host.ip("address", "add", "10.7.0.1/24", "dev", "br0")
    assert "br0, which is built on v0, is up with address 10.7.0.1/24" in refusal()
    host.ip("link", "set", "br0", "up")
    host.ip("route", "add", "default", "via", "10.7.0.254")
    assert "br0, which is built on v0, carries the host's default route (default via 10.7.0.254)" in refusal()
    host.ip("link", "delete", "br0")
    (tree.root / "class/net/v0/upper_br0").rmdir()
    with host.entered():
        (change,) = binding.plan_bind([CARD])
    assert change.after == "vfio-pci"
