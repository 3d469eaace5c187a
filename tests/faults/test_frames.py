"""Bad frames are dropped and counted by reason, and good traffic goes on.

A receiver with two af_packet ports: a real sender keeps sending to one, the faults come in at the other.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

import numpy as np
import pytest
from faults import sessions_of
from forger import PAYLOAD, REPORT, VOIDS, Forger
from wait import Deadline, settle

import aiflow
from aiflow import _dp_testing, _wire
from aiflow._dp import DROPS
from aiflow.config import parse_endpoint
from aiflow.errors import PoolExhausted

root = pytest.mark.root


class Scene:
    """A receiver under attack, and a sender that must not notice."""

    def __init__(self, net, **options) -> None:
        self.host = net.namespace("host")
        net.veth(self.host, "bad", self.host, "rx0")
        net.veth(self.host, "good", self.host, "rx1")
        self.open_receiver(**options)
        with self.host.entered():
            self.forger = Forger("bad")
            self.tx = aiflow.Sender("af_packet:good", name="good")
        self.good = count()
        self.shown: list[aiflow.TimeSlice] = []
        self.good_goes_on()

    def open_receiver(self, **options) -> None:
        with self.host.entered():
            self.rx = aiflow.Receiver(["af_packet:rx0", "af_packet:rx1"], name="sink", memory="64MiB", **options)

    def good_goes_on(self) -> None:
        """A slice of the honest sender arrives, whole."""
        data = np.full(40_000, next(self.good) % 251, np.uint8)
        ticket = self.tx.send([data], wait=False)
        while True:
            time_slice = self.rx.recv(timeout=20)
            if time_slice.sender == "good":
                break
            self.shown.append(time_slice)
        assert np.array_equal(time_slice[0].array, data)
        assert ticket.result(20).elements == 1

    def count(self, reason: str) -> int:
        return self.rx.counters[reason]

    @contextmanager
    def drops(self, reason: str, at_least: int = 1) -> Iterator[None]:
        """What is sent within is dropped for this reason and for no other; nothing is kept of it."""
        before, used = self.rx.counters, self.rx.memory_used
        yield
        arrived = settle(lambda: self.count(reason) >= before[reason] + at_least)
        assert arrived, {k: v - before[k] for k, v in self.rx.counters.items() if v != before[k]}
        others = {k: v - before[k] for k, v in self.rx.counters.items() if v != before[k] and k != reason}
        assert not set(others) - {"slices", "elements", "bytes"}, others
        assert self.rx.memory_used == used
        self.good_goes_on()

    def close(self) -> None:
        self.forger.close()
        self.shown.clear()
        self.tx.close()
        self.rx.close()


@pytest.fixture
def scene(net) -> Iterator[Scene]:
    scene = Scene(net)
    scene.forger.join()
    yield scene
    scene.close()


ELEMENT = random.Random(5).randbytes(10 * PAYLOAD + 77)
OTHER = bytes(reversed(ELEMENT))


def begin(scene: Scene, element: bytes = ELEMENT) -> None:
    """The forger has a slice of one element granted, and half of it is there."""
    scene.forger.ask(scene.forger.manifest({"x": element}))
    scene.forger.report_of(0, 2)  # every slice below 2 may flow
    for seq in range(5):
        scene.forger.send(scene.forger.chunk(element, seq))
    scene.forger.report()


@pytest.fixture
def flowing(scene) -> Scene:
    """In mid-slice."""
    begin(scene)
    return scene


def complete(scene: Scene, element: bytes = ELEMENT) -> None:
    """The rest of that slice arrives, and it is shown as it was meant."""
    for seq in range(5, 11):
        scene.forger.send(scene.forger.chunk(element, seq))
    scene.forger.finish(element)
    scene.forger.report_of(1, 2)  # every slice below 2 is held
    scene.good_goes_on()
    (shown,) = scene.shown
    assert shown.sender == "forger"
    assert shown[0].tobytes() == element


def resealed(frame: bytes, offset: int, value: bytes) -> bytes:
    """The frame with other bytes at an offset, and a CRC that is right for what it now claims."""
    changed = bytearray(frame)
    changed[offset : offset + len(value)] = value
    covered = min(len(changed), 34 + struct.unpack_from("!H", changed, 31)[0])
    changed[50:54] = struct.pack("!I", _wire.crc32c(bytes(changed[12:50] + changed[54:covered])))
    return bytes(changed)


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
    for frame_id in [0x00, 0x10, 0x20, 0x2F, 0x11, 0x31, 0xF1, 0xFF]:
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
    forger = flowing.forger
    reasons = ("src_mac", "session")
    before = sum(flowing.count(reason) for reason in reasons)
    for offset in range(-8, 0):
        forger.send(forger.chunk(ELEMENT, 7, session=(forger.session + offset) % 2**32, slice=9, number=500))
    assert settle(lambda: sum(flowing.count(reason) for reason in reasons) == before + 8)
    assert flowing.count("src_mac") > 0  # one of them is the honest sender's
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
    """Only a driver can make one; here net_ring passes on what we chained. It is read like any, and is not for us."""
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
    return struct.pack(">HHIIQ", 0, PAYLOAD, 1, nb, nb * nbytes % 2**64) + run


TOO_MUCH = {
    "2^63 bytes": run_of(1, 2**63),
    "a sum that wraps": run_of(2, 2**63),
    "2^71 bytes": run_of(2**31, 2**36),
    "more than memory=": run_of(1, 65 << 20),
    "2^32 elements": run_of(2**32 - 1, 0),
    "a run cut short": run_of(1, 1000)[:-5],
    "runs that are not there": struct.pack(">HHIIQ", 0, PAYLOAD, 2**32 - 1, 1, 1),
    "no payload": struct.pack(">HHIIQ", 0, 0, 0, 0, 0),
    "another number of elements": run_of(3, 100)[:8] + b"\0\0\0\x07" + run_of(3, 100)[12:],
    "a form that is not there": run_of(1, 1000)[:-2] + b"\xff\xff",
}


@root
def test_fault_15_a_manifest_that_claims_too_much(scene) -> None:
    """Refused at once, by name; no memory is set aside, and the next slice may come."""
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
    """A million of them are granted; what they hold comes back with the sender's silence."""
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
    """Behind the addresses no flip gets by; each is counted under some reason, and the slice is whole in the end."""
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
    """A payload is copied while its CRC is computed: never over a chunk that is there, and never as if it were one."""
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


def unsaid(forger: Forger) -> list[bytes]:
    """What is on its way when a session ends in mid-slice: the rest of the slice, and a word of every other kind."""
    rest = [forger.chunk(ELEMENT, seq) for seq in range(5, 11)]
    return [*rest, forger.closing(ELEMENT), *(forger.frame(kind) for kind in ("PROBE", "VOID", "BYE"))]


def rejoin(forger: Forger) -> None:
    """A new session, whose packet numbers begin again: those of the earlier one lie ahead and would do."""
    earlier = forger.session
    forger.join()
    forger.number = 0
    assert forger.session != earlier


@root
@pytest.mark.parametrize("returns_as", ["its_next_life", "another_instance"])
def test_fault_18_frames_of_the_session_before_the_sender_restarted(flowing, returns_as) -> None:
    """Same addresses, slice number and sizes, and other bytes: nothing of the earlier slice gets into this one."""
    forger = flowing.forger
    stale = unsaid(forger)
    forger.instance = (forger.instance & ~0xFFFF) | ((forger.instance + 1) & 0xFFFF)
    deadline = Deadline()
    while flowing.rx.memory_used:  # of the half slice: another instance must have been silent for a while
        deadline.check("the half slice still holds its memory")
        if returns_as == "another_instance":
            time.sleep(0.2)
            forger.instance = random.getrandbits(64) | 1
        rejoin(forger)
    begin(flowing, OTHER)
    with flowing.drops("session", len(stale)):
        for frame in stale:
            forger.send(frame)
    complete(flowing, OTHER)


def reports_to_good(scene: Scene) -> list[bytes]:
    """What the receiver tells the honest sender during one slice, as it is on the wire."""
    with scene.host.entered():
        listener = Forger("good")
    reports = []
    try:
        scene.good_goes_on()
        listener.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                frame = listener.socket.recv(65535)
                parsed = _wire.parse(frame, listener.mac)
                if not isinstance(parsed, str) and parsed.kind in (_wire.KINDS["GRANT"], _wire.KINDS["FEEDBACK"]):
                    reports.append(frame)
    finally:
        listener.close()
    return reports


@root
def test_fault_18_frames_of_the_session_before_the_receiver_restarted(flowing) -> None:
    """Both ways: data at the new receiver, and the old one's reports at a sender that has found the new one."""
    forger = flowing.forger
    stale, reports = unsaid(forger), reports_to_good(flowing)
    assert reports
    flowing.rx.close()
    flowing.open_receiver()
    flowing.good_goes_on()  # the honest sender has a session with the new one
    rejoin(forger)
    begin(flowing, OTHER)
    with flowing.drops("session", len(stale)):
        for frame in stale:
            forger.send(frame)
    with flowing.host.entered():
        there = Forger("rx1")
    try:
        before = flowing.tx.counters["session"]
        for frame in reports:
            there.send(frame)
        assert settle(lambda: flowing.tx.counters["session"] >= before + len(reports))
    finally:
        there.close()
    complete(flowing, OTHER)


@root
@pytest.mark.parametrize("timestamp", [0, 2**64 - 1])
def test_fault_19_absurd_timestamp(flowing, timestamp) -> None:
    flowing.forger.send(flowing.forger.chunk(ELEMENT, 6, timestamp_ns=timestamp))
    complete(flowing)
    assert 0 <= flowing.shown[0][0].latency_ns < 3600 * 10**9


@root
def test_fault_20_packet_number_jump(flowing) -> None:
    with flowing.drops("number"):
        flowing.forger.send(flowing.forger.chunk(ELEMENT, 7, number=2**40))
    complete(flowing)


@root
def test_fault_21_forged_feedback_to_a_sender(scene) -> None:
    """Reports that claim everything was received come into the honest sender's port: it believes none."""
    with scene.host.entered():
        forger, target = Forger("rx1"), Forger("good")
    forger.dst = target.mac
    target.close()
    payload = REPORT.pack(2**31, 2**31, 2**31, *[0] * (9 + 3 * VOIDS + 1))

    def refused() -> int:
        return scene.tx.counters["session"] + scene.tx.counters["report"]

    try:
        before = refused()
        for session in range(scene.forger.session - 8, scene.forger.session + 8):
            forger.send(forger.frame("FEEDBACK", payload, session=session % 2**32, number=2**40))
            forger.send(forger.frame("FEEDBACK", payload[:10], session=session % 2**32, number=2**40))
        assert settle(lambda: refused() == before + 32)
        assert scene.tx.counters["report"] >= 2  # one of the sessions is its own
        scene.good_goes_on()
    finally:
        forger.close()


@root
def test_fault_22_malformed_hello_flood(scene) -> None:
    """Names beyond the frame, foreign kinds, and a thousand instances: answers and sessions stay bounded."""
    good = scene.forger.hello()
    with scene.drops("hello", 3):
        scene.forger.send(scene.forger.hello(name_len=255))
        scene.forger.send(scene.forger.hello(to_len=200))
        scene.forger.send(resealed(good, 31, struct.pack("!H", 20 + 10)))
    for instance in range(1, 2000):
        scene.forger.send(scene.forger.hello(sender=instance))
        if instance % 50 == 0:
            scene.good_goes_on()
    assert sessions_of(scene.rx) <= 64
    scene.good_goes_on()


def junk(forger: Forger, generator: random.Random, turn: int) -> bytes:
    """Random bytes behind the EtherType; behind a kind that there is; under headers and a CRC that are right."""
    body = generator.randbytes(generator.randrange(46, 1400))
    head = forger.dst + forger.mac + b"\x88\xb5"
    if turn % 3 == 0:
        return head + body
    if turn % 3 == 1:
        return head + bytes([0x10 | turn % 11]) + body
    kind = generator.choice([kind for kind in _wire.KINDS if kind != "BYE"])  # that would be the end
    fields = {key: generator.getrandbits(generator.choice((3, 32))) for key in ("element", "seq", "slice")}
    number, end = forger.number + generator.randrange(4000), generator.getrandbits(1)
    return forger.frame(kind, body, number=number, end=end, timestamp_ns=generator.getrandbits(64), **fields)


def dropped(end: aiflow.Sender | aiflow.Receiver) -> int:
    return sum(end.counters[reason] for reason in DROPS[1:])


@root
def test_fault_23_random_bytes_under_the_right_ethertype(scene) -> None:
    """A few thousand at each end; the fuzzers of test_fuzz.py do the rest."""
    generator = random.Random(23)
    with scene.host.entered():
        there, target = Forger("rx1"), Forger("good")
    there.dst = target.mac
    target.close()
    attacks = [(scene.forger, scene.rx), (there, scene.tx)]
    try:
        before = [dropped(end) for _, end in attacks]
        for turn in range(3000):
            for forger, _ in attacks:
                forger.send(junk(forger, generator, turn))
            if turn % 50 == 0:
                scene.good_goes_on()  # and so the interfaces' queues don't run over
        for (_, end), count in zip(attacks, before, strict=True):
            assert settle(lambda end=end, count=count: dropped(end) >= count + 2000), end.counters
    finally:
        there.close()
    scene.good_goes_on()
    assert settle(lambda: scene.rx.memory_used == 0)
    assert sessions_of(scene.rx) <= 64
    assert threading.active_count() < 20


def test_a_slice_refused_by_the_receiver_is_an_error_at_the_sender() -> None:
    """What row 15's refusal looks like from the honest side: PoolExhausted, at once, naming both sizes."""
    with aiflow.pair(memory="1MiB") as both:
        with pytest.raises(PoolExhausted, match=r"3000000.*1048576|1048576.*3000000"):
            both.sender.send([bytes(3_000_000)], timeout=20)
        ticket = both.sender.send([b"fits"], wait=False)
        both.receiver.recv(timeout=20).release()
        assert ticket.result(20).elements == 1
