"""Unknown versions of the wire, and unknown fields of a later one, are refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from wait import settle

import aiflow
from aiflow import _dp_testing, _eal, _wire
from aiflow._eal import Mempool
from aiflow._ports import ring_pairs
from aiflow._transfer.filemarks import FileMark, Marked
from aiflow._transfer.in_flight import InFlight
from aiflow.config import parse_endpoint

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ALL = [path.stem for path in sorted(GOLDEN.glob("wire-*.json"))]


def golden(version: str) -> dict[str, bytes]:
    """A frame of each kind, as that version's Sender and Receiver sent it."""
    frames = json.loads((GOLDEN / f"{version}.json").read_text())["frames"]
    return {kind: bytes.fromhex(frame) for kind, frame in frames.items()}


@pytest.mark.unit
def test_there_is_a_frame_of_each_kind_of_each_version() -> None:
    assert f"wire-{_wire.VERSION}" == ALL[-1]
    for version in ALL:
        kinds = set(_wire.KINDS) if version == ALL[-1] else set(_wire.KINDS) - {"PLACED", "PLACED_PACK"}
        assert {kind.partition("-")[0] for kind in golden(version)} == kinds


@pytest.mark.unit
@pytest.mark.parametrize("version", ALL)
def test_golden_frames_are_read_or_refused_by_their_version(version) -> None:
    for kind, frame in golden(version).items():
        parsed = _wire.parse(frame, frame[:6])
        if version == ALL[-1]:
            assert parsed.kind == _wire.KINDS[kind.partition("-")[0]]
        else:
            assert parsed == "version"


class Stranger:
    """The other end of a ring port: a test decides which frames come out of it."""

    def __init__(self, role: str) -> None:
        endpoint = parse_endpoint("ring:stranger")
        _eal.start()
        self.role = role
        self.endpoint = endpoint
        (self.port,) = ring_pairs.take(endpoint, role, Mempool("stranger", 511, 9216, -1, True))

    def close(self) -> None:
        ring_pairs.give_back(self.endpoint, self.role)


@pytest.fixture
def old_sender() -> Iterator[Stranger]:
    stranger = Stranger("sender")
    yield stranger
    stranger.close()


@pytest.fixture
def old_receiver() -> Iterator[Stranger]:
    stranger = Stranger("receiver")
    yield stranger
    stranger.close()


@pytest.mark.parametrize("old", ALL[:-1])
def test_a_receiver_says_that_its_sender_is_of_another_version(old_sender, old) -> None:
    with aiflow.Receiver("ring:stranger") as rx:
        _dp_testing.inject(old_sender.port, [golden(old)["HELLO-ask"]] * 3)
        with pytest.raises(aiflow.SliceTimeout, match=r"3 frames are of another version .*install the same aiflow"):
            rx.recv(timeout=0.5)
        # … and answers, so that its user learns it too: in a later version's words, ours are another version's
        heard: list[bytes] = []
        assert settle(lambda: heard.extend(_dp_testing.drain(old_sender.port)) or heard)
        (answer,) = heard
        assert _wire.parse(answer, golden(old)["HELLO-ask"][6:12]).kind == _wire.KINDS["HELLO"]


@pytest.mark.parametrize("old", ALL[:-1])
def test_a_sender_says_that_its_receiver_is_of_another_version(old_receiver, old) -> None:
    tx = aiflow.Sender("ring:stranger", peer_timeout=0.5)
    try:
        ticket = tx.send([b"1"], wait=False)
        asked: list[bytes] = []
        assert settle(lambda: asked.extend(_dp_testing.drain(old_receiver.port)) or asked)
        _dp_testing.inject(old_receiver.port, [asked[0][6:12] + golden(old)["HELLO-answer"][6:]])
        with pytest.raises(aiflow.PeerLost, match=r"1 frame is of another version .*install the same aiflow"):
            ticket.result(timeout=20)
    finally:
        tx.close(abort=True)


def forged(elements, old: bytes, new: bytes) -> bytes:
    from aiflow._encode import encode

    manifest, _, _ = encode(elements)
    assert manifest.count(old) == 1
    return manifest.replace(old, new)


def mark(key: int, length: int) -> bytes:
    return struct.pack(">BB", key, length)


FILE = [Marked("photo", b"x", FileMark("file", 0o600, 7, size=1))]
KIND = struct.pack(">BBH", 0, 1, 5)  # numbered, kind, stream_len
UNKNOWN = {
    "a run kind": (FILE, KIND, struct.pack(">BBH", 0, 9, 5), "run kind 9 of stream 'photo'"),
    "a way to number": (FILE, KIND, struct.pack(">BBH", 2, 1, 5), "run kind"),
    "a mark": (FILE, mark(1, 4), mark(99, 4), "mark 99 of stream 'photo'"),
    "a mark of another size": (FILE, mark(2, 8) + bytes(7), mark(2, 7) + bytes(7), "mark"),
    "a dtype": ({"t": b"x"}, b"'|u1'", b"'bf16", "form C.1.'bf16 of stream 't'"),
    "a dtype of numpy's kind of name": ({"t": b"x"}, b"'|u1'", b"'|q1'", "form"),
    "a dtype within a struct": ({"t": b"x"}, b"'|u1'", b"[('a', 'bfloat16')]", "form"),
    "an order": ({"t": b"x"}, b"C[1]", b"N[1]", "form N"),
    "no form at all": ({"t": b"x"}, b"C[1]'|u1'", b"C[1]", "form"),
    "a form that is no literal": ({"t": b"x"}, b"'|u1'", b"__import__('os')", "form"),
}


@pytest.mark.parametrize("confirm", ["held", "release"])
@pytest.mark.parametrize("what", UNKNOWN)
def test_what_a_manifest_says_that_is_not_known_is_refused_by_name(what, confirm) -> None:
    """By a receiver of either kind; the sender's error says what, and the next slice is delivered."""
    elements, old, new, said = UNKNOWN[what]
    manifest = forged(elements, old, new)
    if len(new) != len(old):
        manifest = manifest.replace(struct.pack(">HH", 9, 0), struct.pack(">HH", 9 + len(new) - len(old), 0))
    with aiflow.Receiver("ring:unknown", confirm=confirm) as rx, aiflow.Sender("ring:unknown") as tx:
        outgoing = tx._agent.post([b"x"], manifest, tx._poster.planner.plan(1), 0, False)
        with pytest.raises(aiflow.IntegrityError, match=said) as caught:
            aiflow.Ticket(tx._context, InFlight(tx._context, outgoing), tx).result(timeout=10)
        assert "same aiflow on both sides" in str(caught.value)
        assert caught.value.delivered is False
        ticket = tx.send({"t": b"x"}, wait=False)
        with rx.recv(timeout=10) as time_slice:
            assert time_slice["t"].array == ord("x")
            assert time_slice["t"].mark is None
        ticket.result(timeout=10)
        assert rx.memory_used == 0 or settle(lambda: rx.memory_used == 0)


APPENDED = {
    "a format": (b"\2", b"", "manifest format 2"),
    "an extension that must be understood": (b"\1", struct.pack(">HH", 0x8007, 1) + b"x", "manifest extension 32775"),
}


def posted(tx: aiflow.Sender, first: bytes, appended: bytes) -> aiflow.Ticket:
    """Send a slice whose manifest begins with another byte, and ends with more."""
    from aiflow._encode import encode

    manifest, _, _ = encode({"t": b"x"})
    outgoing = tx._agent.post([b"x"], first + manifest[1:] + appended, tx._poster.planner.plan(1), 0, False)
    return aiflow.Ticket(tx._context, InFlight(tx._context, outgoing), tx)


@pytest.mark.parametrize("what", APPENDED)
def test_manifests_of_a_later_build_are_refused_by_name(what) -> None:
    first, appended, said = APPENDED[what]
    with aiflow.Receiver("ring:later") as rx, aiflow.Sender("ring:later") as tx:
        with pytest.raises(aiflow.IntegrityError, match=f"{said}.*same aiflow on both sides"):
            posted(tx, first, appended).result(timeout=10)
        assert settle(lambda: rx.memory_used == 0)


def test_an_extension_that_may_be_ignored_is_ignored() -> None:
    with aiflow.Receiver("ring:later") as rx, aiflow.Sender("ring:later") as tx:
        ticket = posted(tx, b"\1", struct.pack(">HH", 7, 3) + b"abc")
        with rx.recv(timeout=10) as time_slice:
            assert time_slice["t"].array == ord("x")
        ticket.result(timeout=10)


MARKS = [
    FileMark("file", 0o644, 1_700_000_000_123_456_789, size=1),
    FileMark("file"),
    FileMark("part", 0o600, -5, offset=1 << 40, size=1 << 41),
    FileMark("directory", 0o755, 0),
]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.kind)
def test_marks_come_as_they_were_sent(mark, several) -> None:
    """A stream that a program gave such a name has no mark."""
    elements = [Marked("a//0/9", b"x", mark), ("a//0/9", b"x"), ("plain", b"y")]
    names = ["one", "two"] if several else ["one"]
    rx = [aiflow.Receiver(f"ring:marks-{name}", name=name) for name in names]
    try:
        endpoints = [f"ring:marks-{name}" for name in names]
        with aiflow.Sender(endpoints, to=names, partition=lambda e, r: [0] * len(e)) as tx:
            tx.send(elements)
            received = [(element.stream, element.mark) for element in rx[0].recv(timeout=10)]
            assert received == [("a//0/9", mark), ("a//0/9", None), ("plain", None)]
    finally:
        for receiver in rx:
            receiver.close()
