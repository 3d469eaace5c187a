"""Frames of earlier sessions, absurd fields, forged feedback, floods and random bytes. Faults 18 to 23."""

from __future__ import annotations

import random
import struct
import threading
from contextlib import suppress

import pytest
from faults import sessions_of
from forger import REPORT, VOIDS, Forger
from scene import ELEMENT, OTHER, Scene, begin, complete, resealed
from wait import settle

import aiflow
from aiflow import _wire
from aiflow._wire import DROPS
from aiflow.errors import PoolExhausted

root = pytest.mark.root


def unsaid(forger: Forger) -> list[bytes]:
    """Frames in flight when a session ends in mid-slice: the rest of the slice, and one frame of every other kind."""
    rest = [forger.chunk(ELEMENT, seq) for seq in range(5, 11)]
    return [*rest, forger.closing(ELEMENT), *(forger.frame(kind) for kind in ("PROBE", "VOID", "BYE"))]


def rejoin(forger: Forger) -> None:
    """Begin a new session with packet number 0, so that the numbers of the earlier one would be valid."""
    earlier = forger.session
    forger.join()
    forger.number = 0
    assert forger.session != earlier


@root
@pytest.mark.parametrize("returns_as", ["its_next_life", "another_instance"])
def test_fault_18_frames_of_the_session_before_the_sender_restarted(flowing, returns_as) -> None:
    """Same addresses, slice number and sizes, and other bytes: nothing of the earlier slice gets into this one.

    A later life replaces its session at once. Another instance replaces none: silence frees the half slice.
    """
    forger = flowing.forger
    stale = unsaid(forger)
    forger.instance = (forger.instance & ~0xFFFF) | ((forger.instance + 1) & 0xFFFF)
    if returns_as == "another_instance":
        stale.pop()  # the earlier session is remembered without memory, and its BYE would end it
        forger.instance = random.getrandbits(64) | 1
        rejoin(forger)
        assert flowing.rx.memory_used
        assert settle(lambda: not flowing.rx.memory_used)
        forger.instance = random.getrandbits(64) | 1
    rejoin(forger)
    assert not flowing.rx.memory_used
    begin(flowing, OTHER)
    with flowing.drops("session", len(stale)):
        for frame in stale:
            forger.send(frame)
    complete(flowing, OTHER)


def reports_to_good(scene: Scene) -> list[bytes]:
    """The receiver's frames to the honest sender during one slice, as they are on the wire."""
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
    """Reports that claim that everything was received reach the honest sender's port: it drops them."""
    with scene.host.entered():
        forger, target = Forger("rx1"), Forger("good")
    forger.dst = target.mac
    target.close()
    own = _wire.parse(reports_to_good(scene)[0], target.mac).session
    payload = b"\1" + REPORT.pack(2**31, 2**31, 2**31, *[0] * (9 + 3 * VOIDS + 1))[1:]

    def refused() -> int:
        return scene.tx.counters["session"] + scene.tx.counters["report"]

    try:
        before = refused()
        for session in range(own - 8, own + 8):
            forger.send(forger.frame("FEEDBACK", payload, session=session % 2**32, number=2**40))
            forger.send(forger.frame("FEEDBACK", payload[:10], session=session % 2**32, number=2**40))
        assert settle(lambda: refused() == before + 32)
        assert scene.tx.counters["report"] == 2  # one of the numbers is its own
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
    """Fault 15 from the honest side: PoolExhausted, at once, with both sizes."""
    with aiflow.pair(memory="1MiB") as both:
        with pytest.raises(PoolExhausted, match=r"3000000.*1048576|1048576.*3000000"):
            both.sender.send([bytes(3_000_000)], timeout=20)
        ticket = both.sender.send([b"fits"], wait=False)
        both.receiver.recv(timeout=20).release()
        assert ticket.result(20).elements == 1
