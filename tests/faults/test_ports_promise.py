"""`aiflow ports` and opening agree on every network interface.

"Usable" means that a slice gets through, with frames of the promised size. Otherwise the note says why, and the error
of a Sender or Receiver says the same.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interfaces import one_slice, promise, veth
from netns import Namespace
from pci_tree import PciTree
from subprocesses import run
from wait import wait_for

import aiflow
from aiflow._ports import netdev, pci_card
from aiflow._ports.interface_use import Network, Route
from aiflow._ports.inventory import available
from aiflow.config import parse_endpoint
from aiflow.errors import PeerLost, PortError

root = pytest.mark.root
unit = pytest.mark.unit


# --------------------------------------------------------------------------------------------------------------- sizes


@root
@pytest.mark.parametrize("mtu", [498, 500, 1280, 1500, 3000, 9000, 32684, 32685, 40000, 61286, 61287, 65521, 65535])
def test_every_mtu_carries_the_frames_that_were_promised(host: Namespace, mtu: int) -> None:
    veth(host, "m0", "m1", mtu)
    usable, note = promise("af_packet:m0")
    assert usable
    assert f"frames up to {min(mtu + 14, 65000)} bytes" in note
    with (
        aiflow.Receiver("af_packet:m1", memory="16MiB") as rx,
        aiflow.Sender("af_packet:m0", peer_timeout=5) as tx,
    ):
        one_slice(rx, tx, 1_000_000)
        report = one_slice(rx, tx, 1_000_000)
        assert max(port.nbytes // port.frames for port in report.ports) > min(mtu, 65000) // 2


@root
@pytest.mark.parametrize("frame_size", [512, 1514, 9000])
def test_a_frame_size_of_ones_own_on_a_large_mtu(host: Namespace, frame_size: int) -> None:
    veth(host, "m0", "m1", 65535)
    with (
        aiflow.Receiver("af_packet:m1", memory="16MiB", frame_size=frame_size) as rx,
        aiflow.Sender("af_packet:m0", peer_timeout=5, frame_size=frame_size) as tx,
    ):
        one_slice(rx, tx)


@root
@pytest.mark.parametrize("mtu", [68, 256, 497])
def test_an_mtu_too_small_for_our_least_frame_is_refused(host: Namespace, mtu: int) -> None:
    veth(host, "m0", "m1", mtu)
    usable, note = promise("af_packet:m0")
    assert not usable
    assert f"MTU of {mtu}" in note
    with pytest.raises(PortError, match=f"MTU of {mtu}"):
        aiflow.Receiver("af_packet:m0")


XDP = """
    import json, os, sys
    import aiflow
    from aiflow.errors import AiflowError
    from aiflow._ports.inventory import available
    found = []
    promised = {text: usable for text, usable, _ in available()}
    for one, other in json.loads(sys.argv[1]):
        rx = tx = None
        try:
            rx, tx = aiflow.Receiver(other, memory="16MiB"), aiflow.Sender(one, peer_timeout=5)
            ticket = tx.send([bytes(300_000)], wait=False)
            rx.recv(timeout=10).release()
            what = max(port.nbytes // port.frames for port in ticket.result(10).ports)
        except AiflowError as exc:
            what = f"{type(exc).__name__}: {exc}"
        found.append([promised[one] and promised[other], what])
    print(json.dumps(found), flush=True)
    os._exit(0)
"""


def over_xdp(host: Namespace, *pairs: tuple[str, str]) -> list[tuple[bool, Any]]:
    """For each pair of endpoints: is it promised, and the largest frame of a slice over it, or the error."""
    said = run(textwrap.dedent(XDP), json.dumps(pairs), prefix=host.prefix)
    return [(usable, what) for usable, what in json.loads(said.splitlines()[-1])]


@root
def test_af_xdp_carries_frames_up_to_a_page_less_what_kernel_and_dpdk_need(host: Namespace) -> None:
    fitting, beyond = [1500, 1522, 1523, 2000, 3440], [3441, 3498, 9000]
    for mtu in fitting + beyond:
        veth(host, f"x{mtu}", f"y{mtu}", mtu)
    said = over_xdp(host, *((f"af_xdp:x{mtu}", f"af_xdp:y{mtu}") for mtu in fitting + beyond))
    for mtu, (usable, what) in zip(fitting + beyond, said, strict=True):
        if mtu in fitting:
            assert usable, mtu
            assert isinstance(what, int), (mtu, what)
            assert what > mtu - 300
        else:
            assert not usable, mtu
            assert f"MTU of {mtu} is more than XDP takes (3440)" in what


# --------------------------------------------------------------------------------------------------------------- kinds


def _tun(host: Namespace) -> None:
    host.ip("tuntap", "add", "dev", "k0", "mode", "tun")
    host.bring_up("k0")


def _tap(host: Namespace) -> None:
    host.ip("tuntap", "add", "dev", "k0", "mode", "tap")
    host.bring_up("k0")


def _down(host: Namespace) -> None:
    host.ip("link", "add", "name", "k0", "type", "veth", "peer", "name", "k1")


def _unplugged(host: Namespace) -> None:
    _down(host)
    host.bring_up("k0")


def _bracket(host: Namespace) -> None:
    veth(host, "[k0", "k1")


def _macvlan(host: Namespace) -> None:
    veth(host, "m0", "m1")
    for name in ("k0", "k1"):
        host.ip("link", "add", "link", "m0", "name", name, "type", "macvlan", "mode", "bridge")
        host.bring_up(name)


def _bridge(host: Namespace) -> None:
    host.ip("link", "add", "name", "k0", "type", "bridge")
    host.bring_up("k0")
    veth(host, "m0", "k1")
    host.ip("link", "set", "dev", "m0", "master", "k0")


@root
@pytest.mark.parametrize(
    ("make", "endpoint", "why"),
    [
        (_tun, "af_packet:k0", "no Ethernet interface"),
        (_tun, "af_xdp:k0", "no Ethernet interface"),
        (_tap, "af_xdp:k0", "XDP needs a queue"),
        (_down, "af_packet:k0", "ip link set k0 up"),
        (_down, "af_xdp:k0", "ip link set k0 up"),
        (_bracket, "af_packet:[k0", "cannot read this name"),
        (_macvlan, "af_xdp:k0", "has no XDP"),
        (_bridge, "af_xdp:k0", "has no XDP"),
        (lambda host: None, "af_packet:lo", "use local:NAME"),
        (lambda host: None, "af_xdp:lo", "use local:NAME"),
    ],
)
def test_what_cannot_carry_frames_is_refused_in_the_words_of_aiflow_ports(
    host: Namespace, make: Callable[[Namespace], None], endpoint: str, why: str
) -> None:
    make(host)
    usable, note = promise(endpoint)
    assert not usable
    assert why in note
    for side in (aiflow.Sender, aiflow.Receiver):
        with pytest.raises(PortError) as caught:
            side(endpoint)
        assert note in str(caught.value)


@root
@pytest.mark.parametrize("make", [_macvlan, _bridge])
def test_interfaces_above_others_carry_slices(host: Namespace, make: Callable[[Namespace], None]) -> None:
    make(host)
    assert promise("af_packet:k0")[0]
    with aiflow.Receiver("af_packet:k0", memory="16MiB") as rx, aiflow.Sender("af_packet:k1", peer_timeout=5) as tx:
        one_slice(rx, tx)


@root
def test_interfaces_that_no_endpoint_can_name_are_listed_with_what_to_do(host: Namespace) -> None:
    names = ("a,b", "c=d", "e*f", "g\x01h", "\x1b[31m")
    for number, name in enumerate(names):
        veth(host, name, f"z{number}")
    rows = {text: (usable, note) for text, usable, note in available()}
    for name in names:
        usable, note = rows[f"af_packet:{netdev.ascii_name(name)}"]
        assert not usable
        assert "ip link set" in note
    assert all(text.isprintable() for text in rows)


@root
@pytest.mark.parametrize("make", [_tap, _unplugged])
def test_no_carrier_is_a_note_and_a_hint_until_there_is_one(host: Namespace, make: Callable[[Namespace], None]) -> None:
    make(host)
    usable, note = promise("af_packet:k0")
    assert usable
    assert "no carrier" in note
    with aiflow.Sender("af_packet:k0", peer_timeout=0.2) as tx:
        with pytest.raises(PeerLost):
            tx.send([b"x"])
        (hint,) = tx._ports.hints()
        assert hint.startswith("af_packet:k0: no carrier")
        assert tx.describe()[0]["hints"] == [hint]
        if make is _unplugged:
            host.bring_up("k1")
            wait_for(lambda: "no carrier" not in tx._ports.hints()[0], "the carrier")
            (hint,) = tx._ports.hints()
            assert "its link came up" in hint
            assert "spanning tree" in hint


@root
def test_queues_that_are_not_read_are_a_note(host: Namespace) -> None:
    veth(host, "q0", "q1", 1500, "numrxqueues", "4", "numtxqueues", "4")
    _, note = promise("af_xdp:q0")
    assert "only queue 0 of 4 is read: ethtool -L q0" in note
    assert "queue" not in promise("af_packet:q0")[1]  # which reads them all
    veth(host, "s0", "s1")
    assert "queue" not in promise("af_xdp:s0")[1]


@root
def test_a_port_that_was_just_opened_may_be_behind_a_switch_that_listens(host: Namespace) -> None:
    veth(host, "p0", "p1")
    with aiflow.Sender("af_packet:p0", peer_timeout=0.2) as tx:
        with pytest.raises(PeerLost):
            tx.send([b"x"])
        (hint,) = tx._ports.hints()
        assert "opened 0 s ago" in hint
        assert "a switch port with spanning tree forwards nothing for 30 s" in hint


@root
def test_without_the_right_to_raw_sockets_ports_says_no_and_so_does_opening(host: Namespace) -> None:
    veth(host, "r0", "r1")
    said = run(
        """
        import os
        import aiflow
        from aiflow._ports.inventory import available
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        for text, usable, note in available():
            if text in ("af_packet:r0", "af_xdp:r0"):
                try: aiflow.Receiver(text)
                except aiflow.PortError as exc: print(usable, note in str(exc), "cap_net_raw" in note)
        """,
        prefix=host.prefix,
    )
    assert said.splitlines() == ["False True True"] * 2


@root
@pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])
def test_a_process_that_gave_up_the_right_after_opening_is_not_told_to_have_it(host: Namespace, scheme: str) -> None:
    veth(host, "r0", "r1")
    said = run(
        """
        import os, sys, time
        import aiflow
        from aiflow._ports import interface_watch
        interface_watch._CHECK_INTERVAL = 0.05
        rx = aiflow.Receiver(sys.argv[1], memory="16MiB")
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        time.sleep(0.3)
        print(rx._ports.hints(), flush=True)
        """,
        f"{scheme}:r0",
        prefix=host.prefix,
    )
    assert "permission" not in said
    assert "root" not in said
    assert "r0" in said


# ----------------------------------------------------------------------------------------------------------------- PCI


@unit
@pytest.mark.parametrize("below", ["", "virtio0"])
def test_nobody_is_told_to_unbind_the_card_that_the_network_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    tree = PciTree(tmp_path, "virtio-pci")
    (tree.add("0000:3b:00.0", "virtio-pci") / below / "net/eth5").mkdir(parents=True)
    tree.interface("eth5", number=7)
    network = Network({"eth5": 7}, {}, [Route(7, "default via 192.168.1.2")])
    monkeypatch.setattr(pci_card, "SYSFS", tree)
    monkeypatch.setattr(pci_card, "read_network", lambda: network)
    with pytest.raises(PortError, match="eth5 carries the host's default route") as caught:
        pci_card.inspect_pci(parse_endpoint("pci:0000:3b:00.0"))
    assert "bind" not in str(caught.value).replace("is bound to", "")
    assert "Use another card, or af_packet:eth5" in str(caught.value)
    network = Network({"eth5": 7}, {}, [Route(3, "default via 192.168.1.2")])
    with pytest.raises(PortError, match=r"aiflow ports bind 0000:3b:00\.0 .*or use af_packet:eth5 as it is"):
        pci_card.inspect_pci(parse_endpoint("pci:0000:3b:00.0"))


@unit
def test_no_card_is_offered_that_aiflow_ports_bind_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = PciTree(tmp_path, "virtio-pci")
    device = tree.add("0000:3b:00.0", "virtio-pci")  # its interface is in a container
    monkeypatch.setattr(pci_card, "SYSFS", tree)
    with pytest.raises(PortError, match=r"take it away, and the kernel's virtio-pci .* another network namespace"):
        pci_card.inspect_pci(parse_endpoint("pci:0000:3b:00.0"))
    (device / "virtfn0").symlink_to("../0000:3b:10.0")
    with pytest.raises(PortError, match=r"virtio-pci has made virtual functions on it \(0000:3b:10\.0\)"):
        pci_card.inspect_pci(parse_endpoint("pci:0000:3b:00.0"))


@unit
def test_an_address_without_its_domain_names_the_card_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = PciTree(tmp_path, "virtio-pci")
    tree.add("10000:3b:00.0", "virtio-pci", "eth5")
    monkeypatch.setattr(pci_card, "SYSFS", tree)
    with pytest.raises(PortError, match=r"is pci:10000:3b:00\.0 meant\?"):
        pci_card.inspect_pci(parse_endpoint("pci:3b:00.0"))
