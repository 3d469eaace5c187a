"""Read what passed the emulated wire: the fields of the paper's Table 1, and whether the pictures are in there.

Usage: python tests/nic/capture.py WIRE.pcap IMAGES.npz
"""

from __future__ import annotations

import struct
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import aiflow_scapy as wire
from scapy.config import conf
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import bind_layers
from scapy.utils import PcapReader

NIC0, NIC1, KERNELS_CARD = "52:54:00:00:00:00", "52:54:00:00:00:01", "52:54:00:00:00:09"
BROADCAST = "ff:ff:ff:ff:ff:ff"
# docs/wire.md: name of a field of Table 1 → offset behind the EtherType, struct format
TABLE_1 = {
    "frame_id": (0, "!B"),
    "element": (1, "!I"),
    "seq": (5, "!I"),
    "timestamp_ns": (9, "!Q"),
    "length": (17, "!H"),
    "end": (19, "!B"),
}
CRC_EACH = 40  # the CRC of every 40th frame: Python is slow


def check_fields(packet: Ether, tag: int) -> None:
    """Compare each field, as the dissector shows it, with the bytes at its place; `tag` bytes are before them."""
    frame, head = packet.original, packet[wire.Aiflow]
    assert struct.unpack_from("!H", frame, 12 + tag) == (wire.ETHERTYPE,)
    for name, (offset, form) in TABLE_1.items():
        (raw,) = struct.unpack_from(form, frame, 14 + tag + offset)
        shown = head.version << 4 | head.kind if name == "frame_id" else getattr(head, name)
        assert shown == raw, name
    assert 60 <= len(frame) <= 1514 + tag
    assert 34 + tag + head.length <= len(frame)
    assert abs(time.time() - head.timestamp_ns / 1e9) < 86400


def main() -> None:
    """Check the capture; print what is in it."""
    conf.verb = 0
    bind_layers(Dot1Q, wire.Aiflow, type=wire.ETHERTYPE)
    images = np.load(sys.argv[2])
    expected = {images[name].tobytes() for name in images.files}
    kinds: Counter[str] = Counter()
    tagged: Counter[str] = Counter()
    pieces: dict[tuple[str, int], dict[int, bytes]] = defaultdict(dict)
    ends: dict[tuple[str, int], set[int]] = defaultdict(set)
    with PcapReader(sys.argv[1]) as capture:
        for number, packet in enumerate(capture):
            if wire.Aiflow not in packet:
                continue
            tag = 4 if Dot1Q in packet else 0
            check_fields(packet, tag)
            head, kind = packet[wire.Aiflow], wire.KINDS[packet[wire.Aiflow].kind]
            kinds[kind] += 1
            if tag:
                assert (packet[Dot1Q].vlan, packet[Dot1Q].prio) == (0, 3)
                tagged[packet.src] += 1
            assert packet.src in (NIC0, NIC1, KERNELS_CARD)
            assert packet.dst in (NIC0, NIC1, KERNELS_CARD) or (packet.dst == BROADCAST and kind == "HELLO")
            plain = packet.original[:12] + packet.original[12 + tag :]
            if number % CRC_EACH == 0:
                assert packet[wire.Transport].crc == wire.frame_crc(plain)
            if kind == "DATA":
                pieces[packet.src, head.element][head.seq] = plain[54 : 34 + head.length]
                if head.end:
                    ends[packet.src, head.element].add(head.seq)
    assert {"HELLO", "MANIFEST", "DATA", "FEEDBACK", "BYE"} <= kinds.keys(), kinds
    assert set(tagged) == {KERNELS_CARD}, tagged
    for sender in (NIC0, KERNELS_CARD):
        found = {element: parts for (source, element), parts in pieces.items() if source == sender}
        whole = [b"".join(parts[seq] for seq in sorted(parts)) for parts in found.values()]
        assert len(whole) == len(expected), (sender, len(whole))
        assert set(whole) == expected, sender
        for element, parts in found.items():
            assert sorted(parts) == list(range(len(parts)))
            assert ends[sender, element] == {len(parts) - 1}  # the end flag marks the last frame, and no other
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"aiflow: on the wire: {shown}; {sum(tagged.values())} frames with VLAN 0; Table 1's fields are in place")


if __name__ == "__main__":
    main()
