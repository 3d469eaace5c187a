"""A tag with VLAN 0 is a priority, and its frame counts as untagged (IEEE 802.1Q, 6.9). Other VLANs are not ours."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from netns import Namespace
from wait import settle
from wiretap import Wiretap

import aiflow

RNG = np.random.default_rng(8021)
LARGE = RNG.integers(0, 256, 60_001, dtype=np.uint8)
FRAME = 9000  # there is room for a tag
PATIENCE_S = 30


def tagged(*tags: str) -> Callable[[bytes], bytes]:
    """Put tags, in hexadecimal, behind a frame's addresses."""
    return lambda frame: frame[:12] + bytes.fromhex("".join(tags)) + frame[12:]


def repadded(frame: bytes) -> bytes:
    """A switch may take padding away when it adds a tag: the least that Ethernet wants are 60 bytes."""
    with_tag = tagged("8100e000")(frame)
    return with_tag[:60] if 34 + int.from_bytes(frame[31:33]) <= 56 else with_tag


def delivers(sender: str, receiver: str, frame_size: int | None = None, **options: Any) -> dict[str, int]:
    """Slices arrive as they were sent; the receiver's counters."""
    with (
        aiflow.Receiver(receiver, memory="32MiB", **options) as rx,
        aiflow.Sender(sender, frame_size=frame_size) as tx,
    ):
        for sent in ([LARGE], [b"x"], [b"little", LARGE[:9000]]):
            ticket = tx.send(sent, wait=False)
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                ticket.result(PATIENCE_S)
                assert [element.tobytes() for element in time_slice] == [bytes(one) for one in sent]
        return rx.counters


PRIORITIES = {
    "priority-0": "81000000",
    "priority-3": "81006000",
    "priority-7": "8100e000",
    "drop-eligible": "81001000",
    "service-tag": "88a80000",
    "service-tag-priority-5": "88a8a000",
}


@pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
@pytest.mark.parametrize("tag", PRIORITIES)
def test_a_priority_tag_in_the_frame(tag: str, assemble: bool, name: str) -> None:
    with Wiretap(name, tagged(PRIORITIES[tag])) as tap:
        assert delivers(tap.sender, tap.receiver, FRAME, assemble=assemble)["vlan"] == 0


@pytest.mark.parametrize("tci", [0, 0x1000, 0x6000, 0xF000])
def test_a_priority_tag_that_the_driver_took_out(tci: int, name: str) -> None:
    with Wiretap(name, vlan_tci=tci) as tap:
        assert delivers(tap.sender, tap.receiver, FRAME)["vlan"] == 0


@pytest.mark.parametrize("cut", [0, 11, 12, 13, 14, 15, 16, 17, 18, 30, 58, 59, 200])
def test_a_priority_tag_in_a_chain(cut: int, name: str) -> None:
    with Wiretap(name, tagged("81006000"), cuts=lambda size: [min(cut, size)]) as tap:
        assert delivers(tap.sender, tap.receiver, FRAME)["vlan"] == 0


@pytest.mark.parametrize("where", ["in the frame", "taken out"])
def test_padding_that_a_tag_made_up_for(where: str, name: str) -> None:
    shortened = []

    def change(frame: bytes) -> bytes:
        with_tag = repadded(frame)
        shortened.append(len(with_tag) < len(frame) + 4)
        return with_tag if where == "in the frame" else with_tag[:12] + with_tag[16:]

    with Wiretap(name, change, vlan_tci=None if where == "in the frame" else 0x6000) as tap:
        assert delivers(tap.sender, tap.receiver, FRAME)["runt"] == 0
    assert any(shortened)


REFUSED = {
    "vlan-1": ("81000001", None),
    "vlan-5": ("8100e005", None),
    "vlan-4095": ("81000fff", None),
    "service-vlan-7": ("88a80007", None),
    "taken-out": ("", 5),
    "taken-out-with-priority": ("", 0xE005),
    "two-priority-tags": ("8100000081000000", None),
    "two-tags": ("88a8000081000000", None),
    "two-tags-one-taken-out": ("81000000", 0),
    "priority-before-vlan": ("8100000081000005", None),
}


@pytest.mark.parametrize("tags", REFUSED)
def test_other_tags_are_counted(tags: str, name: str) -> None:
    in_frame, taken_out = REFUSED[tags]
    with (
        Wiretap(name, tagged(in_frame), vlan_tci=taken_out) as tap,
        aiflow.Receiver(tap.receiver, memory="8MiB") as rx,
        aiflow.Sender(tap.sender, frame_size=FRAME, peer_timeout=30) as tx,
    ):
        ticket = tx.send([b"x"], wait=False)
        assert settle(lambda: rx.counters["vlan"] >= 3)
        assert {"crc", "runt", "foreign"} & {k for k, v in rx.counters.items() if v} == set()
        ticket.cancel()


@contextmanager
def switch(namespace: Namespace, interfaces: tuple[str, str], change: Callable[[bytes], bytes]) -> Iterator[None]:
    """Forward frames between two interfaces, changed."""
    with namespace.entered():
        ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in interfaces]
        for end, interface in zip(ends, interfaces, strict=True):
            end.bind((interface, 3))
    stopped = threading.Event()

    def forward() -> None:
        while not stopped.is_set():
            for end in select.select(ends, [], [], 0.05)[0]:
                frame, (_, _, kind, *_) = end.recvfrom(70_000)
                if kind != socket.PACKET_OUTGOING:
                    ends[1 - ends.index(end)].send(change(frame))

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        for end in ends:
            end.close()


@pytest.mark.root
@pytest.mark.parametrize(("scheme", "mtu"), [("af_packet", 1500), ("af_packet", 9000), ("af_xdp", 1500)])
def test_a_switch_that_gives_priorities(scheme: str, mtu: int, net) -> None:
    """Full frames and a tag pass where the MTU is the same on all links."""
    middle = net.namespace("middle")
    hosts = [net.namespace(side) for side in ("left", "right")]
    for host, interface in zip(hosts, ("a", "b"), strict=True):
        net.veth(host, "if0", middle, interface, mtu)
    with switch(middle, ("a", "b"), tagged("81006000")):
        with hosts[1].entered():
            rx = aiflow.Receiver(f"{scheme}:if0", memory="32MiB")
        with rx:
            with hosts[0].entered():
                tx = aiflow.Sender("af_packet:if0")
            with tx:
                ticket = tx.send([LARGE], wait=False)
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    ticket.result(PATIENCE_S)
                    assert time_slice[0].tobytes() == LARGE.tobytes()
            assert rx.counters["vlan"] == 0
