"""Faults of links: paths that are slow, die, flap, drop frames silently, slow down and change places.

Four shaped ports through one switch or two. Every test makes sure that the kernel saw its fault while a slice was in
flight, and compares every byte that arrives. `aiflow lab run cut` measures times.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from faults import paths_of
from netns import Namespace, Net
from peer import content
from wait import PATIENCE_S, Deadline, wait_for

import aiflow

pytestmark = pytest.mark.root

PORTS = 4
RATE = "30mbit"
NBYTES = 2_000_000
ELEMENTS = [content(seed, NBYTES + 977 * seed) for seed in range(10)]  # 1.4 s over four ports


class Links:
    """Sender, receiver and the switches between them: port i of both is at switch i modulo the number of switches."""

    def __init__(self, net: Net, nb_switches: int) -> None:
        self.source, self.sink = net.namespace("source"), net.namespace("sink")
        self.switches = [net.namespace(f"switch{k}") for k in range(nb_switches)]
        for switch in self.switches:
            switch.bridge()
        for i in range(PORTS):
            switch = self.switch_of(i)
            for host, letter in ((self.source, "s"), (self.sink, "r")):
                net.veth(host, f"{letter}{i}", switch, f"{letter}{i}")
                switch.ip("link", "set", "dev", f"{letter}{i}", "master", "br0")
            self.source.shape(f"s{i}", RATE)
            switch.shape(f"r{i}", RATE)

    def switch_of(self, port: int) -> Namespace:
        return self.switches[port % len(self.switches)]

    @contextmanager
    def joined(self) -> Iterator[tuple[aiflow.Sender, aiflow.Receiver]]:
        """A sender and a receiver, once each port has carried a part of a slice."""
        with self.sink.entered():
            rx = aiflow.Receiver([f"af_packet:r{i}" for i in range(PORTS)], name="sink")
        with rx:
            with self.source.entered():
                tx = aiflow.Sender([f"af_packet:s{i}" for i in range(PORTS)], to="sink", peer_timeout=PATIENCE_S)
            with tx:
                until_all_carry(tx, rx)
                yield tx, rx


def carriers(report: aiflow.SliceReport) -> dict[str, int]:
    """Frames of a slice by the port that sent them."""
    return {port.name: port.frames for port in report.ports}


def exchange(
    tx: aiflow.Sender, rx: aiflow.Receiver, elements: list[Any], during: Callable[[], None] | None = None
) -> aiflow.SliceReport:
    """Send one slice, do something in its middle, compare every byte, and give its report.

    A slice with something in its middle is twice as long: commands take their time on a busy machine.
    """
    elements = elements if during is None else elements * 2
    ticket = tx.send(elements, wait=False)
    if during is not None:
        wait_for(lambda: 0 < rx.progress[0] < sum(map(len, elements)) == rx.progress[1], "a slice's middle", PATIENCE_S)
        during()
        assert not ticket.done(), "the slice was over before its fault"
    with rx.recv(timeout=PATIENCE_S) as time_slice:
        assert len(time_slice) == len(elements)
        assert all(np.array_equal(got.array, sent) for got, sent in zip(time_slice, elements, strict=True))
    report: aiflow.SliceReport = ticket.result(PATIENCE_S)
    return report


def until_all_carry(tx: aiflow.Sender, rx: aiflow.Receiver, ports: int = PORTS) -> None:
    """Send small slices until `ports` ports have carried a part of one."""
    deadline = Deadline()
    used: set[str] = set()
    while len(used) < ports:
        used |= carriers(exchange(tx, rx, ELEMENTS[:1])).keys()
        deadline.check(f"only {sorted(used)} carry")


def paths_in_use(tx: aiflow.Sender) -> int:
    """Number of paths that the sender has not suspended."""
    return sum(port.usable for port in paths_of(tx))


def link(namespace: Namespace, interface: str) -> dict[str, Any]:
    """The kernel's description of an interface."""
    (found,) = json.loads(namespace.ip("-j", "-s", "link", "show", "dev", interface))
    return found


def carrier_changes(namespace: Namespace, interface: str) -> int:
    return int(namespace.run("cat", f"/sys/class/net/{interface}/carrier_changes"))


def test_fault_32_one_path_ten_times_slower(net) -> None:
    """The slow path carries its part, and the other paths do not wait for it."""
    links = Links(net, 1)
    links.source.shape("s1", "3mbit")
    with links.joined() as (tx, rx):
        frames = carriers(exchange(tx, rx, ELEMENTS))
        slow = sorted(frames.values())[0]
        assert slow < sum(frames.values()) / PORTS / 2, frames
        assert len(frames) == PORTS


def test_fault_34_a_port_goes_down_in_mid_slice_and_comes_back(net) -> None:
    links = Links(net, 1)
    with links.joined() as (tx, rx):
        changes = carrier_changes(links.switches[0], "s2")
        report = exchange(tx, rx, ELEMENTS, lambda: links.source.take_down("s2"))
        assert "UP" not in link(links.source, "s2")["flags"]
        assert carrier_changes(links.switches[0], "s2") == changes + 1
        assert report.frames_retransmitted > 0
        wait_for(lambda: paths_in_use(tx) == PORTS - 1, "the path to be suspended", PATIENCE_S)
        assert "af_packet:s2" not in carriers(exchange(tx, rx, ELEMENTS[:2]))
        links.source.bring_up("s2")
        wait_for(lambda: paths_in_use(tx) == PORTS, "the path to be taken back", PATIENCE_S)
        until_all_carry(tx, rx)


def test_fault_34_a_receivers_port_goes_down_in_mid_slice(net) -> None:
    """The sender's own link stays up: only silence tells."""
    links = Links(net, 1)
    with links.joined() as (tx, rx):
        exchange(tx, rx, ELEMENTS, lambda: links.sink.take_down("r0"))
        assert "UP" not in link(links.sink, "r0")["flags"]
        assert link(links.source, "s0")["operstate"] == "UP"
        wait_for(lambda: paths_in_use(tx) == PORTS - 1, "the path to be suspended", PATIENCE_S)


def test_fault_35_a_port_that_flaps_at_10_hz(net) -> None:
    links = Links(net, 1)
    stop = threading.Event()

    def flap() -> None:
        up = True
        while not stop.wait(0.05):
            up = not up
            (links.source.bring_up if up else links.source.take_down)("s3")

    with links.joined() as (tx, rx):
        changes = carrier_changes(links.switches[0], "s3")
        flapping = threading.Thread(target=flap)
        flapping.start()
        try:
            deadline = Deadline()
            while carrier_changes(links.switches[0], "s3") < changes + 20:
                exchange(tx, rx, ELEMENTS[:4])
                deadline.check("the port does not flap")
        finally:
            stop.set()
            flapping.join()
        links.source.bring_up("s3")
        wait_for(lambda: paths_in_use(tx) == PORTS, "the path to be taken back", PATIENCE_S)
        until_all_carry(tx, rx)


def test_fault_36_a_switch_swallows_frames_with_its_links_up(net) -> None:
    links = Links(net, 2)
    with links.joined() as (tx, rx):
        exchange(tx, rx, ELEMENTS, lambda: links.switches[1].lose(1000))
        assert links.switches[1].lost() > 0
        assert all(link(links.source, f"s{i}")["operstate"] == "UP" for i in range(PORTS))
        wait_for(lambda: paths_in_use(tx) == PORTS // 2, "the switch's paths to be suspended", PATIENCE_S)
        assert carriers(exchange(tx, rx, ELEMENTS[:2])).keys() <= {"af_packet:s0", "af_packet:s2"}
        links.switches[1].lose(0)
        wait_for(lambda: paths_in_use(tx) == PORTS, "the switch's paths to be taken back", PATIENCE_S)
        until_all_carry(tx, rx)


def test_fault_38_a_port_drops_to_a_tenth_of_its_speed_in_mid_slice(net) -> None:
    links = Links(net, 1)
    with links.joined() as (tx, rx):
        before = carriers(exchange(tx, rx, ELEMENTS))
        exchange(tx, rx, ELEMENTS, lambda: links.source.shape("s0", "3mbit"))
        after = carriers(exchange(tx, rx, ELEMENTS))
        (qdisc,) = json.loads(links.source.run("tc", "-j", "qdisc", "show", "dev", "s0"))
        assert qdisc["options"]["rate"] == 3_000_000 // 8
        assert min(before.values()) > sum(before.values()) / PORTS / 2, before
        assert 0 < min(after.values()) < sum(after.values()) / PORTS / 2, after


def test_fault_39_cables_swapped_between_ports_in_mid_slice(net) -> None:
    """Two of the receiver's cables change places between two switches, so a neighbour is no longer one hop away."""
    links = Links(net, 2)
    one, other = links.switches

    def move(interface: str, here: Namespace, there: Namespace) -> None:
        here.ip("link", "set", "dev", interface, "netns", there.name)
        there.ip("link", "set", "dev", interface, "master", "br0", "up")
        there.shape(interface, RATE)

    def swap() -> None:
        move("r1", other, one)
        move("r2", one, other)

    def swap_back() -> None:
        move("r1", one, other)
        move("r2", other, one)

    with links.joined() as (tx, rx):
        exchange(tx, rx, ELEMENTS, swap)
        assert link(one, "r1")["master"] == link(other, "r2")["master"] == "br0"
        wait_for(lambda: paths_in_use(tx) == PORTS - 2, "the two paths to be suspended", PATIENCE_S)
        exchange(tx, rx, ELEMENTS[:2])
        swap_back()
        wait_for(lambda: paths_in_use(tx) == PORTS, "the paths to be taken back", PATIENCE_S)
        until_all_carry(tx, rx)
