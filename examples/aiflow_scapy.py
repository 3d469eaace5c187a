"""A scapy dissector of aiflow's wire format; it builds frames, too.

Read a capture::

    python examples/aiflow_scapy.py capture.pcap

or in scapy::

    from aiflow_scapy import Aiflow
    rdpcap("capture.pcap")[0][Aiflow].show()

`Aiflow` holds Table 1's fields (bytes 14 to 33 of the frame, behind the two MACs and the EtherType), `Transport` the
20-byte transport header that begins the data field. Big-endian throughout; ``include/aiflow/wire/frame.h`` is the
definition.
"""

from __future__ import annotations

import struct
import sys

from scapy.config import conf
from scapy.fields import (
    BitEnumField,
    BitField,
    ByteField,
    FieldLenField,
    FieldListField,
    IntEnumField,
    IntField,
    LongField,
    PacketField,
    PacketListField,
    ShortField,
    StrLenField,
    XIntField,
    XLongField,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw, bind_layers
from scapy.utils import PcapReader

ETHERTYPE = 0x88B5  # IEEE 802 local experimental 1
TRANSPORT_BYTES = 20
NB_VOIDS = 9  # of 8 slices in flight, and one for all that are freed because their sender was silent
KINDS = {
    1: "DATA",
    2: "PACKED",
    3: "MANIFEST",
    4: "GRANT",
    5: "FEEDBACK",
    6: "HELLO",
    7: "PROBE",
    8: "BYE",
    9: "VOID",
    10: "CLOSE",
    11: "PLACED",
    12: "PLACED_PACK",
}
VOID_REASONS = dict(
    enumerate(("none", "too large", "integrity", "manifest", "cancelled", "silence", "unknown", "failed"))
)


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc32c_table()


def crc32c(octets: bytes, crc: int = 0) -> int:
    """CRC32C (Castagnoli, RFC 3720 appendix B.4) of `octets`, or the continuation of `crc` over them."""
    crc ^= 0xFFFFFFFF
    for octet in octets:
        crc = crc >> 8 ^ _TABLE[(crc ^ octet) & 255]
    return crc ^ 0xFFFFFFFF


def frame_crc(frame: bytes) -> int:
    """CRC32C that a whole Ethernet frame should carry: bytes 12 to 49 and the payload; the MACs are left out."""
    (length,) = struct.unpack_from("!H", frame, 31)
    return crc32c(frame[54 : 34 + length], crc32c(frame[12:50]))


def payload_of(packet: Packet) -> bytes:
    """Payload of a captured frame: what follows the transport header, without padding."""
    return packet.original[54 : 34 + packet[Aiflow].length]


class Transport(Packet):
    """The transport header, first in the data field of every frame."""

    name = "aiflow transport"
    fields_desc = [
        XIntField("session", 0),  # number that the addressee minted; 0: a HELLO that asks
        IntField("slice", 0),
        ShortField("path", 0),
        BitField("number", 0, 48),  # packet number: by path, never used twice
        XIntField("crc", None),  # computed when None
    ]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """Choose the payload's layer by the frame's kind."""
        kind = self.underlayer.kind if isinstance(self.underlayer, Aiflow) else 0
        layers = {3: Manifest, 4: Report, 5: Report, 6: Hello, 10: Close, 11: Placed, 12: Placed}
        return layers.get(kind, Raw)


class Aiflow(Packet):
    """Table 1: frame_id, element, sequence number, timestamp, length, end flag."""

    name = "aiflow"
    fields_desc = [
        BitField("version", 3, 4),  # frame_id: version in the high nibble,
        BitEnumField("kind", 1, 4, KINDS),  # kind in the low one
        IntField("element", 0),
        IntField("seq", 0),
        LongField("timestamp_ns", 0),
        ShortField("length", None),  # bytes of all that follows `end`; computed when None
        ByteField("end", 0),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Split the data field from what only fills the frame up to 60 bytes."""
        return s[: self.length], s[self.length :]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill in the length and the CRC where they were left out."""
        if self.length is None:
            pkt = pkt[:17] + struct.pack("!H", len(pay)) + pkt[19:]
        transport = self.payload
        if isinstance(transport, Transport) and transport.crc is None and len(pay) >= TRANSPORT_BYTES:
            ethertype = self.underlayer.type if isinstance(self.underlayer, Ether) else ETHERTYPE
            start = crc32c(struct.pack("!H", ethertype) + pkt + pay[:16])
            pay = pay[:16] + struct.pack("!I", crc32c(pay[TRANSPORT_BYTES:], start)) + pay[TRANSPORT_BYTES:]
        return pkt + pay

    def mysummary(self) -> str:
        """Say kind, place and size in one line."""
        return self.sprintf("aiflow %kind% element=%element% seq=%seq% length=%length% end=%end%")


class Hello(Packet):
    """Discovery: a sender asks by broadcast, a receiver answers to the asker alone. Extensions and padding follow."""

    name = "aiflow HELLO"
    fields_desc = [
        ByteField("format", 1),
        ByteField("answer", 0),
        XIntField("session", 0),  # number that its writer minted
        ByteField("keeps_mbufs", 0),
        ShortField("port", 0),
        ShortField("nb_ports", 1),
        ShortField("frame_size", 1514),
        ShortField("heard_bytes", 0),
        ShortField("nb_paths", 0),
        IntField("window", 0),
        XLongField("sender", 0),
        XLongField("epoch", 0),
        FieldLenField("name_len", None, length_of="sender_name", fmt="B"),
        FieldLenField("to_len", None, length_of="receiver_name", fmt="B"),
        StrLenField("sender_name", b"", length_from=lambda packet: packet.name_len),
        StrLenField("receiver_name", b"", length_from=lambda packet: packet.to_len),
    ]


class Void(Packet):
    """A slice that the receiver will not deliver, and why."""

    name = "void"
    fields_desc = [IntField("slice", 0), IntEnumField("reason", 0, VOID_REASONS), LongField("detail", 0)]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Leave what follows to the next record."""
        return b"", s


class PathReport(Packet):
    """What has arrived over one path; `bitmap` covers the numbers before `next`, oldest first."""

    name = "path"
    fields_desc = [
        ShortField("path", 0),
        FieldLenField("words", None, count_of="bitmap", fmt="B"),
        ByteField("reserved", 0),
        IntField("window", 0),
        LongField("next", 0),
        LongField("frames", 0),
        LongField("echo_ns", 0),
        IntField("hold_ns", 0),
        FieldListField("bitmap", [], XLongField("word", 0), count_from=lambda packet: packet.words),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Leave what follows to the next record."""
        return b"", s


class Report(Packet):
    """The receiver's state for one session (FEEDBACK, GRANT); the newest replaces all older ones. Extensions follow."""

    name = "aiflow report"
    fields_desc = [
        ByteField("format", 1),
        IntField("granted", 0),
        IntField("done", 0),
        IntField("confirmed", 0),
        IntField("ask_slice", 0),
        IntField("ask_chunk", 0),
        IntField("text_slice", 0),
        ShortField("text_total", 0),
        ShortField("text_at", 0),
        FieldLenField("text_bytes", None, length_of="text"),
        ByteField("drop", 0),
        IntField("drops", 0),
        LongField("free_bytes", 0),
        *(PacketField(f"void{number}", Void(), Void) for number in range(NB_VOIDS)),
        FieldLenField("nb_paths", None, count_of="paths", fmt="B"),
        PacketListField("paths", [], PathReport, count_from=lambda packet: packet.nb_paths),
        StrLenField("text", b"", length_from=lambda packet: packet.text_bytes),
    ]


class Manifest(Packet):
    """A piece of a slice's manifest; these fields stand in the first piece (seq 0) only."""

    name = "aiflow MANIFEST"
    fields_desc = [
        ByteField("format", 1),
        ByteField("flags", 0),
        ShortField("payload_bytes", 0),
        IntField("nb_runs", 0),
        IntField("nb_elements", 0),
        LongField("nbytes", 0),
    ]


class Close(Packet):
    """Closing record of a slice: the CRC32C over all its bytes."""

    name = "aiflow CLOSE"
    fields_desc = [XIntField("slice_crc", 0)]


class Placed(Packet):
    """A chunk whose bytes are in their place already, in memory that both ends have mapped: their CRC32C."""

    name = "aiflow PLACED"
    fields_desc = [XIntField("chunk_crc", 0)]


class Place(Packet):
    """Where a granted slice lies in the memory that its receiver shares: an entry of a report's extension 1."""

    name = "place"
    fields_desc = [IntField("slice", 0), LongField("offset", 0)]


bind_layers(Ether, Aiflow, type=ETHERTYPE)
bind_layers(Aiflow, Transport)


def main() -> None:
    """Print one line for each aiflow frame of a capture; mark those whose CRC is wrong."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python aiflow_scapy.py CAPTURE.pcap")
    conf.verb = 0
    with PcapReader(sys.argv[1]) as capture:
        for number, packet in enumerate(capture, 1):
            if Aiflow not in packet or Transport not in packet:
                continue
            head, transport = packet[Aiflow], packet[Transport]
            wrong = "" if frame_crc(packet.original) == transport.crc else "  CRC WRONG"
            print(
                f"{number:6} {packet.src} > {packet.dst} {KINDS.get(head.kind, head.kind):8} element {head.element} "
                f"seq {head.seq} length {head.length} end {head.end} | session {transport.session:08x} "
                f"slice {transport.slice} path {transport.path} number {transport.number}{wrong}"
            )


if __name__ == "__main__":
    main()
