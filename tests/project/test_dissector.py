"""The scapy dissector of examples/, and with it the wire itself: a captured af_packet run shows Table 1's fields."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import aiflow_scapy as wire  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import rdpcap  # noqa: E402

# docs/wire.md: name of a field of Table 1 → offset in the frame, struct format
TABLE_1 = {
    "frame_id": (14, "!B"),
    "element": (15, "!I"),
    "seq": (19, "!I"),
    "timestamp_ns": (23, "!Q"),
    "length": (31, "!H"),
    "end": (33, "!B"),
}

# Sends two elements over a veth pair and captures all that passes the receiver's end, in this process's namespace.
RUN = """
import socket, struct, sys, threading, time
import numpy as np
import aiflow

frames, stop = [], threading.Event()
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
tap.bind(("dissect-b", 0))
tap.settimeout(0.1)

def listen():
    while True:
        try:
            frames.append((time.time(), tap.recv(65535)))
        except TimeoutError:  # nothing is left
            if stop.is_set():
                return

thread = threading.Thread(target=listen)
thread.start()
big = np.arange(100_000, dtype=np.uint32)
with aiflow.Receiver("af_packet:dissect-b", name="sink") as rx, aiflow.Sender("af_packet:dissect-a") as tx:
    ticket = tx.send({"big": big, "small": b"seven b"}, wait=False)
    with rx.recv(timeout=30) as time_slice:
        assert np.array_equal(time_slice["big"].array, big)
    ticket.result(timeout=30)
stop.set()
thread.join()
with open(sys.argv[1], "wb") as capture:
    capture.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    for at, frame in frames:
        capture.write(struct.pack("<IIII", int(at), int(at % 1 * 1e6), len(frame), len(frame)) + frame)
"""


@pytest.mark.unit
def test_crc32c_is_castagnolis() -> None:
    assert wire.crc32c(b"123456789") == 0xE3069283
    assert wire.crc32c(b"6789", wire.crc32c(b"12345")) == 0xE3069283


@pytest.mark.unit
def test_kinds_are_those_of_the_header() -> None:
    text = (ROOT / "include/aiflow/wire/frame.h").read_text()
    body = re.search(r"#define AF_KIND_LIST\(X\)(.*?)enum", text, re.S)
    assert body is not None
    names = re.findall(r'X\(AF_\w+, "(\w+)"\)', body[1])
    assert dict(enumerate(names, 1)) == wire.KINDS


@pytest.mark.unit
def test_layers_have_the_sizes_of_the_header() -> None:
    assert len(wire.Aiflow()) == 20
    assert len(wire.Transport()) == 20
    assert len(wire.Hello()) == 39
    assert len(wire.Void()) == 16
    assert len(wire.Report()) == 45 + wire.NB_VOIDS * 16
    assert len(wire.PathReport()) == 36
    assert len(wire.Manifest()) == 20
    assert len(wire.Placed()) == 4
    assert len(wire.Place()) == 12


@pytest.mark.unit
def test_a_report_reads_back_with_all_its_voids() -> None:
    text = (ROOT / "include/aiflow/wire/frame.h").read_text()
    in_flight = re.search(r"#define AF_SLICES_IN_FLIGHT (\d+)", text)
    assert in_flight is not None
    assert int(in_flight[1]) + 1 == wire.NB_VOIDS
    paths = [wire.PathReport(path=3, next=9, bitmap=[5])]
    report = wire.Report(done=7, void8=wire.Void(slice=7, reason=5), paths=paths, text=b"no")
    again = wire.Report(bytes(report) + b"\0\x07\0\1x")
    assert again.void8.slice == 7
    assert again.paths[0].bitmap == [5]
    assert again.text == b"no"
    assert bytes(again.payload) == b"\0\x07\0\1x"  # an extension


@pytest.mark.unit
@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(200))])
def test_a_built_frame_reads_back(payload: bytes) -> None:
    frame = bytes(
        Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=wire.ETHERTYPE)
        / wire.Aiflow(kind=1, element=7, seq=9, timestamp_ns=1 << 60, end=1)
        / wire.Transport(session=0xABCD, slice=3, path=2, number=1 << 40)
        / payload
    ).ljust(60, b"\0")
    packet = Ether(frame)
    assert packet[wire.Aiflow].length == 20 + len(payload)
    assert packet[wire.Transport].number == 1 << 40
    assert wire.payload_of(packet) == payload  # and no padding
    assert packet[wire.Transport].crc == wire.frame_crc(frame)


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    """A capture of one slice over af_packet, between the two ends of a veth pair in a namespace of its own."""
    path = tmp_path_factory.mktemp("dissector") / "run.pcap"
    namespace = f"aiflow-dissect-{uuid.uuid4().hex[:8]}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)

    ip("netns", "add", namespace)
    try:
        ip("-n", namespace, "link", "add", "dissect-a", "type", "veth", "peer", "name", "dissect-b")
        for end in ("dissect-a", "dissect-b"):
            ip("-n", namespace, "link", "set", end, "up")
        ran = subprocess.run(
            ["ip", "netns", "exec", namespace, sys.executable, "-c", RUN, str(path)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    finally:
        ip("netns", "delete", namespace)
    return path


@pytest.mark.root
def test_table_1_stands_at_its_offsets(capture: Path) -> None:
    packets = [packet for packet in rdpcap(str(capture)) if wire.Aiflow in packet]
    kinds = {wire.KINDS[packet[wire.Aiflow].kind] for packet in packets}
    assert {"HELLO", "MANIFEST", "DATA", "FEEDBACK"} <= kinds
    for packet in packets:
        frame, head, transport = packet.original, packet[wire.Aiflow], packet[wire.Transport]
        assert len(frame) >= 60
        assert struct.unpack_from("!H", frame, 12) == (0x88B5,)
        for name, (offset, form) in TABLE_1.items():
            (raw,) = struct.unpack_from(form, frame, offset)
            shown = head.version << 4 | head.kind if name == "frame_id" else getattr(head, name)
            assert shown == raw, name
        assert 34 + head.length <= len(frame)
        assert transport.crc == wire.frame_crc(frame)


@pytest.mark.root
def test_captured_data_frames_are_the_element(capture: Path) -> None:
    pieces: dict[int, bytes] = {}
    last: set[int] = set()
    numbers = []
    for packet in rdpcap(str(capture)):
        if wire.Aiflow not in packet or packet[wire.Aiflow].kind != 1:
            continue
        head = packet[wire.Aiflow]
        numbers.append((packet[wire.Transport].path, packet[wire.Transport].number))
        if head.element != 0:
            continue
        pieces[head.seq] = wire.payload_of(packet)
        if head.end:
            last.add(head.seq)
    assert len(numbers) == len(set(numbers))  # a packet number is never used twice
    assert last == {max(pieces)}  # `end` marks the element's last chunk and no other
    data = b"".join(pieces[seq] for seq in sorted(pieces))
    assert data == struct.pack("<100000I", *range(100_000))


@pytest.mark.root
def test_the_example_prints_the_capture(capture: Path) -> None:
    script = ROOT / "examples" / "aiflow_scapy.py"
    ran = subprocess.run(
        [sys.executable, str(script), str(capture)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "DATA" in ran.stdout
    assert "CRC WRONG" not in ran.stdout
