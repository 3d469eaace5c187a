"""Manifests and chunks that contradict each other, are damaged or come again. Faults 11 to 17."""

from __future__ import annotations

import random
import struct

import pytest
from forger import PAYLOAD
from scene import ELEMENT, Scene, complete
from wait import settle

root = pytest.mark.root


@root
def test_fault_11_seq_beyond_the_manifest(flowing) -> None:
    for seq in [11, 12, 1000, 2**31, 2**32 - 1]:
        with flowing.drops("seq"):
            flowing.forger.send(flowing.forger.chunk(ELEMENT, 7, seq=seq))
    complete(flowing)


@root
def test_fault_12_two_different_ends(flowing) -> None:
    with flowing.drops("end", 2):
        flowing.forger.send(flowing.forger.chunk(ELEMENT, 7, end=1))  # not the last
        flowing.forger.send(flowing.forger.chunk(ELEMENT, 10, end=0))  # the last
    complete(flowing)


@root
def test_fault_12_a_chunk_of_another_size(flowing) -> None:
    with flowing.drops("size", 3):
        for payload in (ELEMENT[:100], b"", ELEMENT[: PAYLOAD - 1]):
            flowing.forger.send(flowing.forger.frame("DATA", payload, element=0, seq=7, end=0))
    complete(flowing)


@root
def test_fault_13_the_same_chunk_with_other_bytes(flowing) -> None:
    """Counted apart from honest duplicates; the first one counts."""
    with flowing.drops("conflict"):
        flowing.forger.send(flowing.forger.frame("DATA", b"?" * PAYLOAD, element=0, seq=3, end=0))
    with flowing.drops("duplicate"):
        flowing.forger.send(flowing.forger.chunk(ELEMENT, 3))
    complete(flowing)


@root
def test_fault_14_element_out_of_range(flowing) -> None:
    for element in [1, 2, 2**31, 2**32 - 1]:
        with flowing.drops("element"):
            flowing.forger.send(flowing.forger.chunk(ELEMENT, 7, element=element))
    complete(flowing)


@root
def test_fault_14_a_pack_of_another_number_of_elements(scene) -> None:
    small = {f"e{i}": bytes([i]) * 100 for i in range(36)}
    scene.forger.ask(scene.forger.manifest(small))
    pack = b"".join(list(small.values())[:14])
    with scene.drops("seq", 20):
        for seq in (0, 2, 3, 60_001, 2**32 - 1):
            for element in (0, 1, 13, 14):
                scene.forger.send(scene.forger.frame("PACKED", pack, element=element, seq=seq))


def run_of(nb: int, nbytes: int) -> bytes:
    """A manifest of `nb` elements of `nbytes` bytes in one run."""
    run = struct.pack(">IQIBBHHH", nb, nbytes, 0, 1, 0, 0, 0, 0)
    return struct.pack(">BBHIIQ", 1, 0, PAYLOAD, 1, nb, nb * nbytes % 2**64) + run


TOO_MUCH = {
    "2^63 bytes": run_of(1, 2**63),
    "a sum that wraps": run_of(2, 2**63),
    "2^71 bytes": run_of(2**31, 2**36),
    "more than memory=": run_of(1, 65 << 20),
    "2^32 elements": run_of(2**32 - 1, 0),
    "a run cut short": run_of(1, 1000)[:-5],
    "runs that are not there": struct.pack(">BBHIIQ", 1, 0, PAYLOAD, 2**32 - 1, 1, 1),
    "no payload": struct.pack(">BBHIIQ", 1, 0, 0, 0, 0, 0),
    "another number of elements": run_of(3, 100)[:8] + b"\0\0\0\x07" + run_of(3, 100)[12:],
    "a form that is not there": run_of(1, 1000)[:-2] + b"\xff\xff",
}


@root
def test_fault_15_a_manifest_that_claims_too_much(scene) -> None:
    """Refused at once, by name; no memory is reserved, and the next slice may come."""
    forger = scene.forger
    for what, manifest in TOO_MUCH.items():
        forger.ask(manifest)
        assert forger.refusals().get(forger.slice) in (1, 3), what  # too large, or not sound
        assert scene.rx.memory_used == 0
        scene.good_goes_on()
        forger.slice += 1
    forger.ask(forger.manifest({"x": ELEMENT}))
    forger.report_of(0, forger.slice + 1)


@root
def test_fault_15_elements_that_are_never_sent(net) -> None:
    """A million elements are granted; their memory is freed when the sender is silent."""
    scene = Scene(net, peer_timeout=1.0)
    try:
        scene.forger.join()
        scene.forger.ask(run_of(1_000_000, 1))
        scene.forger.report_of(0, 2)
        assert settle(lambda: scene.rx.memory_used > 1_000_000)
        scene.good_goes_on()
        assert settle(lambda: scene.rx.memory_used == 0)
        scene.good_goes_on()
    finally:
        scene.close()


@root
def test_fault_16_one_bit_flipped_anywhere(flowing) -> None:
    """Every flip behind the addresses is dropped and counted, and the slice is whole in the end."""
    forger = flowing.forger
    frame = forger.chunk(ELEMENT, 10)
    reasons = ("runt", "length", "mtu", "header", "foreign", "vlan", "kind", "version", "crc")
    before = sum(flowing.count(reason) for reason in reasons)
    generator = random.Random(3)
    bits = [*range(14 * 8, 54 * 8), *(generator.randrange(54 * 8, len(frame) * 8) for _ in range(200))]
    for bit in bits:
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        forger.send(bytes(flipped))
        if bit % 64 == 0:
            forger.report()  # not more than the socket's buffer at once
    used = 34 + struct.unpack_from("!H", frame, 31)[0]
    covered = sum(bit < used * 8 for bit in bits)
    assert settle(lambda: sum(flowing.count(reason) for reason in reasons) == before + covered)
    flowing.good_goes_on()
    complete(flowing)


@root
def test_fault_16_damaged_payloads_harm_neither_what_is_there_nor_what_is_to_come(flowing) -> None:
    """A payload is copied while its CRC is computed. A damaged one replaces no chunk and counts as none."""
    forger = flowing.forger
    for seq in (3, 7):
        frame = bytearray(forger.chunk(ELEMENT, seq))
        frame[54:] = bytes(len(frame) - 54)
        with flowing.drops("crc"):
            forger.send(bytes(frame))
    complete(flowing)


@root
def test_fault_17_replayed_frame(flowing) -> None:
    frame = flowing.forger.chunk(ELEMENT, 6)
    flowing.forger.send(frame)
    flowing.forger.report()
    with flowing.drops("replay", 5):
        for _ in range(5):
            flowing.forger.send(frame)
    complete(flowing)
