"""Frames with a bad header or address are dropped and counted by reason, and good traffic goes on. Faults 1 to 10."""

from __future__ import annotations

import struct

import pytest
from forger import Forger
from scene import ELEMENT, complete, resealed
from wait import settle

import aiflow
from aiflow import _dp_testing, _wire
from aiflow.config import parse_endpoint

root = pytest.mark.root


@root
def test_fault_01_runt(scene) -> None:
    with scene.drops("runt", 3):
        for size in (14, 34, 59):
            scene.forger.send(scene.forger.frame("PROBE")[:size])


@root
def test_fault_02_length_beyond_the_frame(scene) -> None:
    for length in [100, 1400]:
        with scene.drops("length"):
            scene.forger.send(resealed(scene.forger.frame("DATA", b"x" * 40), 31, struct.pack("!H", length)))


@root
def test_fault_03_length_beyond_the_mtu(scene) -> None:
    for length in [1481, 9000, 65535]:
        with scene.drops("mtu"):
            scene.forger.send(resealed(scene.forger.frame("DATA", b"x" * 1460), 31, struct.pack("!H", length)))


@root
def test_fault_04_length_shorter_than_the_transport_header(scene) -> None:
    for length in [0, 1, 19]:
        with scene.drops("header"):
            scene.forger.send(resealed(scene.forger.frame("DATA", b"x" * 40), 31, struct.pack("!H", length)))


@root
def test_fault_05_unknown_kind_or_version(scene) -> None:
    for frame_id in [0x00, 0x10, 0x30, 0x3D, 0x3F, 0x11, 0x21, 0x41, 0xF1, 0xFF]:
        with scene.drops("kind" if frame_id >> 4 == _wire.VERSION else "version"):
            scene.forger.send(resealed(scene.forger.frame("DATA", b"x" * 40), 14, bytes([frame_id])))


@root
def test_fault_05_kinds_that_only_a_receiver_sends(scene) -> None:
    with scene.drops("kind", 2):
        scene.forger.send(scene.forger.frame("GRANT", bytes(200)))
        scene.forger.send(scene.forger.frame("FEEDBACK", bytes(200)))


@root
def test_fault_06_other_destination(scene) -> None:
    with scene.drops("dst_mac"):
        scene.forger.send(scene.forger.frame("DATA", b"x" * 40, dst=b"\x02\0\0\0\0\x99"))


@root
def test_fault_07_unknown_source(flowing) -> None:
    with flowing.drops("src_mac"):
        flowing.forger.send(flowing.forger.chunk(ELEMENT, 7, src=b"\x02\0\0\0\0\x99", number=500))
    complete(flowing)


@root
def test_fault_07_unknown_session(flowing) -> None:
    forger = flowing.forger
    for offset in (1000, 2**20, 2**31):
        with flowing.drops("session"):
            forger.send(forger.chunk(ELEMENT, 7, session=(forger.session + offset) % 2**32, number=500))
    complete(flowing)


@root
def test_fault_07_the_session_of_somebody_else(flowing) -> None:
    """A sender's frames count from its own addresses only: no session takes them from ours."""
    with flowing.host.entered():
        listener = Forger("rx1")
    try:
        flowing.good_goes_on()
        heard = listener.hear(("DATA",))
    finally:
        listener.close()
    assert heard is not None
    with flowing.drops("src_mac"):
        flowing.forger.send(flowing.forger.chunk(ELEMENT, 7, session=heard.session, slice=9, number=500))
    complete(flowing)


@root
def test_fault_08_broadcast_or_multicast_data(scene) -> None:
    for dst in [b"\xff" * 6, b"\x01\0\x5e\0\0\x01", b"\x33\x33\0\0\0\x01"]:
        with scene.drops("broadcast"):
            scene.forger.send(scene.forger.frame("DATA", b"x" * 40, dst=dst))


@root
def test_fault_09_vlan_tagged(scene) -> None:
    frame = scene.forger.frame("DATA", b"x" * 40)
    for tpid in (b"\x81\x00", b"\x88\xa8"):
        with scene.drops("vlan"):
            scene.forger.send(frame[:12] + tpid + b"\0\x07" + frame[12:])


def test_fault_10_multi_segment_mbuf(name) -> None:
    """Only a driver can make one; here net_ring forwards our chain. The frame is parsed and has another destination."""
    from aiflow import _eal
    from aiflow._ports import ring_pairs

    endpoint = parse_endpoint(f"ring:{name}")
    pool = _eal.Mempool("forged", 255, 2048, own_memory=True)
    with aiflow.Receiver(f"ring:{name}") as rx:
        (port,) = ring_pairs.take(endpoint, "sender", pool)
        try:
            frame = _wire.seal(_wire.KINDS["DATA"], b"x" * 400, dst=b"\x02\0\0\0\0\x01", src=b"\x02\0\0\0\0\x02")
            assert _dp_testing.inject(port, [frame] * 3, nb_segs=2) == 3
            assert settle(lambda: rx.counters["dst_mac"] == 3)
            assert rx.counters["segments"] == 0
            assert settle(lambda: pool.in_use == 0)
        finally:
            ring_pairs.give_back(endpoint, "sender")
        del port
    with aiflow.pair() as both:
        ticket = both.sender.send([b"good"], wait=False)
        both.receiver.recv(timeout=20).release()
        ticket.result(20)
