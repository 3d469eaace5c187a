"""Endpoints become ports, or an error that says what to do. Faults 42 (MTU), 55 (interface missing, busy, down, …)."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_tree import PciTree
from subprocesses import run

from aiflow import _eal
from aiflow._ports import packet_ring, pci_card
from aiflow._ports.inventory import available
from aiflow._ports.portset import PortSet
from aiflow.config import MAX_PORTS, SCHEMES, Endpoint, parse_endpoint, parse_endpoints, parse_size
from aiflow.errors import ConfigError, PortError

unit = pytest.mark.unit
root = pytest.mark.root

# ---------------------------------------------------------------------------------------------------- what users type


@unit
@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1GiB", 1 << 30), ("1.5 KiB", 1536), ("64MB", 64_000_000), ("7", 7), ("3 b", 3), (4096, 4096), ("2tib", 2 << 40)],
)
def test_sizes_mean_what_they_say(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@unit
@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 parsec", "0", "1e9", 0, -4, True, 2.5, None])
def test_sizes_that_are_none_are_refused(text: object) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)  # type: ignore[arg-type]


@unit
@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("local:demo", ("local", "demo", 1)),
        (" local:demo*4 ", ("local", "demo", 4)),
        ("memif:a.b-c_9*32", ("memif", "a.b-c_9", 32)),
        ("af_packet:eth0.12", ("af_packet", "eth0.12", 1)),
        ("pci:3b:00.1", ("pci", "0000:3b:00.1", 1)),
        ("pci:0000:3B:00.1", ("pci", "0000:3b:00.1", 1)),
        ("vdev:net_tap0,iface=t0", ("vdev", "net_tap0,iface=t0", 1)),
    ],
)
def test_endpoints_are_understood(text: str, endpoint: tuple[str, str, int]) -> None:
    assert parse_endpoint(text) == Endpoint(*endpoint, text.strip())


@unit
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("demo", "known form"),
        ("http://x", "known form"),
        ("local", "known form"),
        ("local:", "a name has"),
        ("local:a/b", "a name has"),
        ("local:" + "x" * 49, "a name has"),
        ("local:x*0", "1 to 32"),
        ("local:x*33", "1 to 32"),
        ("local:x*²", "1 to 32"),
        ("local:x*", "1 to 32"),
        ("af_packet:eth0*2", "One port an interface"),
        ("af_packet:averylonginterfacename", "cannot be a network interface"),
        ("af_packet:eth0,qpairs=2", "cannot be a network interface"),
        ("pci:eth0", "PCI address"),
        ("vdev:,x", "DPDK driver"),
    ],
)
def test_endpoints_that_are_none_are_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_endpoint(text)


@unit
@given(st.text(max_size=80))
def test_any_text_is_an_endpoint_or_a_config_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ConfigError:
        return
    assert endpoint.scheme in SCHEMES
    assert 1 <= endpoint.nb_ports <= MAX_PORTS


@unit
@pytest.mark.parametrize(
    ("ports", "why"),
    [
        ([], "no endpoint"),
        (["local:a", "local:a*2"], "twice"),
        (["local:a*20", "memif:b*20"], "40 ports"),
        (7, "not int"),
    ],
)
def test_lists_of_endpoints_are_checked_as_a_whole(ports: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_endpoints(ports)  # type: ignore[arg-type]


@unit
@given(st.integers(512, 65000))
def test_an_af_packet_slot_holds_any_frame_and_an_mbuf_holds_the_slot(frame_size: int) -> None:
    ring = packet_ring.packet_ring(frame_size)
    assert ring.frame_bytes >= frame_size + 4 + 66
    assert ring.frame_bytes - 32 <= _eal.MAX_DATA_ROOM  # what DPDK's driver asks for
    assert ring.block_bytes % ring.frame_bytes == 0
    assert ring.block_bytes % os.sysconf("SC_PAGESIZE") == 0
    assert ring.nb_frames % (ring.block_bytes // ring.frame_bytes) == 0
    for send_buffer in (4096, 212992, 1 << 30):
        assert 2 <= packet_ring.unacknowledged_frames(frame_size, ring.nb_frames, send_buffer) < ring.nb_frames


# --------------------------------------------------------------------------------------------------------------- rings


class Side:
    """A PortSet and what it called."""

    def __init__(self, endpoints: str | list[str], role: str, frame_size: int | None = None) -> None:
        self.pools: list[_eal.Mempool] = []
        self.calls: list[tuple[str, object]] = []
        self.ports = PortSet(
            endpoints,
            role,
            pool_for=self.pool_for,
            attach=lambda port, peer: self.calls.append(("attach", peer)),
            detach=lambda ports, peer: self.calls.append(("detach", len(ports))),
            frame_size=frame_size,
        )

    def pool_for(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> _eal.Mempool:
        self.pools.append(_eal.Mempool("side", 512, frame_size, socket_id, own_memory=not needs_eal_memory))
        return self.pools[-1]


def test_ring_ends_are_attached_at_once_and_given_back() -> None:
    before = _eal.nb_ports()
    receiver = Side("ring:here*2", "receiver")
    sender = Side("ring:here*2", "sender")
    assert sender.calls == receiver.calls == [("attach", 0)] * 2
    ends = receiver.ports.ports() + sender.ports.ports()
    assert len({port.port_id for port in ends}) == 4
    assert all(port.point_to_point and not port.copies for port in ends)
    assert [row["driver"] for row in sender.ports.describe()] == ["net_ring"]
    sender.ports.close()
    assert sender.calls[2:] == [("detach", 2)]
    again = Side("ring:here*2", "sender")  # the receiver still has its ends
    assert again.ports.ports()
    receiver.ports.close()
    again.ports.close()
    again.ports.close()
    assert _eal.nb_ports() == before
    assert all(pool.in_use == 0 for pool in sender.pools + receiver.pools + again.pools)


def test_a_ring_has_one_sender_and_one_receiver_with_as_many_ports() -> None:
    receiver = Side("ring:taken", "receiver")
    try:
        with pytest.raises(PortError, match="another receiver of this process"):
            Side("ring:taken", "receiver")
        with pytest.raises(ConfigError, match="the other end has 1 ports"):
            Side("ring:taken*2", "sender")
        Side("ring:taken", "sender").ports.close()
    finally:
        receiver.ports.close()


def test_a_list_in_which_one_endpoint_fails_opens_nothing() -> None:
    before, threads = _eal.nb_ports(), threading.active_count()
    with pytest.raises(PortError, match="no interface nosuchif"):
        Side(["ring:list*2", "local:list", "af_packet:nosuchif"], "receiver")
    assert (_eal.nb_ports(), threading.active_count()) == (before, threads)
    Side("ring:list", "receiver").ports.close()  # its name is free


def test_what_can_be_used_is_listed_without_starting_anything() -> None:
    out = run("""
        from aiflow import _eal
        from aiflow._ports.inventory import available
        for endpoint, usable, note in available():
            print(endpoint, usable, note)
        assert not _eal.started()
    """)
    assert "local:NAME True" in out
    for _, usable, note in available():
        assert isinstance(usable, bool)
        assert note


# ---------------------------------------------------------------------------------------------------------- interfaces

OPEN = """
    import sys
    from aiflow import _eal
    from aiflow.errors import AiflowError
    from aiflow._ports.portset import PortSet
    pools = []
    def pool_for(frame_size, socket_id, nb_ports, needs_eal_memory):
        pools.append(_eal.Mempool('p', 4096, frame_size, own_memory=not needs_eal_memory))
        return pools[-1]
    def attach(port, peer):
        print(port.driver, port.frame_size, port.tx_window, port.kick, port.gated, port.mac.hex(), *port.link())
    def open(endpoint, role='receiver', frame_size=None):
        try:
            return PortSet(endpoint, role, pool_for=pool_for, attach=attach, detach=lambda ports, peer: None,
                           frame_size=frame_size)
        except AiflowError as exc:
            print(type(exc).__name__, exc)
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A network namespace with veth pairs e0-e1 (up), d0-d1 (down) and j0-j1 (up, MTU 9000)."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    name = f"aiflow-paths-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for pair, mtu in (("e", 1500), ("d", 1500), ("j", 9000)):
            ends = f"{pair}0", f"{pair}1"
            subprocess.run(
                ["ip", "-n", name, "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]], check=True
            )
            for end in ends:
                subprocess.run(["ip", "-n", name, "link", "set", end, "mtu", str(mtu)], check=True)
                if pair != "d":
                    subprocess.run(["ip", "-n", name, "link", "set", end, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def inside(namespace: str, code: str, **variables: str) -> list[str]:
    import textwrap

    lines = run(
        textwrap.dedent(OPEN) + textwrap.dedent(code), prefix=("ip", "netns", "exec", namespace), **variables
    ).splitlines()
    assert lines
    return lines


def address(namespace: str, interface: str) -> str:
    path = f"/sys/class/net/{interface}/address"
    done = subprocess.run(["ip", "netns", "exec", namespace, "cat", path], check=True, capture_output=True, text=True)
    return done.stdout.strip().replace(":", "")


@root
@pytest.mark.parametrize(("interface", "frame_size", "ring"), [("e0", 1514, 1024), ("j0", 9014, 256)])
def test_af_packet_takes_mac_frame_size_and_window_from_its_interface(
    namespace: str, interface: str, frame_size: int, ring: int
) -> None:
    (line, closed) = inside(
        namespace,
        f"""
        ports = open('af_packet:{interface}')
        ports.close()
        print(_eal.nb_ports(), pools[0].in_use)
    """,
    )
    driver, size, window, kick, gated, mac, up, _speed = line.split()
    assert (driver, int(size), kick, gated, up) == ("net_af_packet", frame_size, "True", "False", "True")
    assert mac == address(namespace, interface)
    assert int(window) == ring - 1  # the system's send buffer would block the loop at a few dozen
    assert closed == "0 0"


@root
def test_af_xdp_opens_on_a_veth(namespace: str) -> None:
    (line, closed) = inside(
        namespace,
        """
        ports = open('af_xdp:e0')
        ports.close()
        print(_eal.nb_ports())
    """,
    )
    driver, size, _window, _kick, gated, mac, up, _speed = line.split()
    assert (driver, size, gated, up, mac) == ("net_af_xdp", "1514", "False", "True", address(namespace, "e0"))
    assert closed == "0"


@root
@pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])
def test_fault_55_interface_missing(namespace: str, scheme: str) -> None:
    (line,) = inside(namespace, f"open('{scheme}:nosuchif')")
    assert line.startswith("PortError")
    assert "no interface nosuchif in this network namespace; there are: d0, d1, e0, e1, j0, j1" in line


@root
@pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])
def test_fault_55_interface_down(namespace: str, scheme: str) -> None:
    (line,) = inside(namespace, f"open('{scheme}:d0')")
    assert line.startswith("PortError")
    assert "ip link set d0 up" in line


@root
def test_fault_55_interface_busy(namespace: str) -> None:
    lines = inside(
        namespace,
        """
        first = open('af_packet:e0')
        open('af_packet:e0', 'sender')         # DPDK would join both sockets to one group
        open('af_packet:e0')
        first.close()
        open('af_packet:e0').close()
        """,
    )
    assert len(lines) == 4
    assert lines[1].startswith("PortError")
    assert "this process has a port on e0 already" in lines[1]
    assert lines[2].startswith("PortError")
    assert "busy, another aiflow receiver uses e0" in lines[2]


@root
def test_the_next_user_takes_over_an_af_xdp_port(namespace: str) -> None:
    """DPDK 22.11 cannot open the queue again. Two interfaces of one name are two."""
    lines = inside(
        namespace,
        """
        first = open('af_xdp:e1', 'sender', frame_size=1000)
        port, = first.ports()
        assert port.wakes and len(port.wake_fds) == 1
        first.close()
        first.close()
        print(_eal.nb_ports(), port.is_open)
        open('af_xdp:e1', 'receiver', frame_size=1514)
        again = open('af_xdp:e1', 'receiver', frame_size=800)
        print(again.ports() == [port], _eal.nb_ports())
        open('af_xdp:e1', 'receiver')          # it has a user
        again.close()
        last = open('af_xdp:e1')
        print(last.ports() == [port])
        """,
    )
    assert lines[1] == "0 True"
    assert lines[2].startswith("ConfigError")
    assert "frame_size=1514 is more than the 1000 bytes" in lines[2]
    assert lines[3].split()[1] == "800"
    assert lines[4] == "True 1"
    assert "busy, another aiflow port uses e1" in lines[5]
    assert lines[6].split()[1] == "1000"
    assert lines[7] == "True"


@root
def test_an_af_xdp_port_without_a_user_makes_room_for_others(namespace: str) -> None:
    (_, line) = inside(
        namespace,
        """
        open('af_xdp:e1').close()
        pool = _eal.Mempool('p', 4096, 2048)
        rings = [_eal.Port.open_ring_pair(f"r{k}", pool, nb_rxd=64) for k in range(16)]
        print(len(rings), _eal.nb_ports())
        """,
    )
    assert line == "16 32"


@root
def test_fault_55_xdp_queue_busy(namespace: str) -> None:
    lines = inside(
        namespace,
        """
        first = open('af_xdp:e1', 'sender')
        open('af_xdp:e1', 'receiver')          # claimed
        pool = _eal.Mempool('p', 4096, 2048)
        first._claims.popitem()[1].close()          # as if by another program
        open('af_xdp:e1', 'receiver')
        """,
    )
    assert lines[1].startswith("PortError")
    assert "busy, another aiflow port uses e1" in lines[1]
    assert lines[2].startswith("PortError")
    assert "queue 0 of e1 is busy" in lines[2]
    assert "use af_packet:e1" in lines[2]


@root
@pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])
def test_fault_55_no_permission(namespace: str, scheme: str) -> None:
    code = f"""
        import os
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        open('{scheme}:e0')
    """
    (line,) = inside(namespace, code)
    assert line.startswith("PortError")
    assert "cap_net_raw" in line


@root
@pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])
def test_fault_42_frame_size_larger_than_the_mtu(namespace: str, scheme: str) -> None:
    (line,) = inside(namespace, f"open('{scheme}:e0', frame_size=9014)")
    assert line.startswith("ConfigError")
    assert "frame_size=9014" in line
    assert "1514 bytes" in line


@root
def test_fault_42_mtu_too_large_for_xdp(namespace: str) -> None:
    (line,) = inside(namespace, "open('af_xdp:j0')")
    assert line.startswith("PortError")
    assert "MTU of 9000" in line


# ----------------------------------------------------------------------------------------------------------- PCI, vdev


def test_pci_devices_that_are_not_there_or_no_network_card_are_told_apart() -> None:
    with pytest.raises(PortError, match="no such PCI device"):
        Side("pci:ffff:00:00.0", "receiver")
    others = [
        path.name
        for path in Path("/sys/bus/pci/devices").glob("*")
        if not (path / "class").read_text().startswith("0x02")
    ]
    if others:
        with pytest.raises(PortError, match="not a network card"):
            Side(f"pci:{others[0]}", "receiver")


@unit
@pytest.mark.parametrize(("driver", "why"), [("virtio-pci", "kernel's virtio-pci driver"), ("", "bound to no driver")])
def test_fault_55_pci_card_not_bound_for_dpdk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, why: str
) -> None:
    tree = PciTree(tmp_path, "virtio-pci")
    device = tree.add("0000:3b:00.0", driver, "eth5", group="7")
    if not driver:
        (device / "net" / "eth5").mkdir(parents=True)
        tree.interface("eth5")
    monkeypatch.setattr(pci_card, "SYSFS", tree)
    monkeypatch.setattr(pci_card, "read_network", tree.network)
    with pytest.raises(PortError, match=why) as caught:
        pci_card.inspect_pci(parse_endpoint("pci:3b:00.0"))
    assert "aiflow ports bind 0000:3b:00.0" in str(caught.value)
    assert "modprobe vfio-pci" in str(caught.value)
    assert "af_packet:eth5" in str(caught.value)


def test_a_vdev_opens_with_its_arguments_or_says_why_not() -> None:
    side = Side("vdev:net_null_paths,size=512,copy=1", "receiver")
    try:
        (port,) = side.ports.ports()
        assert (port.driver, port.frame_size) == ("net_null", 1514)
    finally:
        side.ports.close()
    with pytest.raises(PortError, match="nosuchdriver"):
        Side("vdev:nosuchdriver0", "receiver")
    with pytest.raises(PortError, match=r"no interface|DPDK says"):
        Side("vdev:net_af_packet9,iface=nosuchif", "receiver")
