"""The wire format: a frame that was written is read back, and any other frame is refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow import _wire as wire

pytestmark = pytest.mark.unit

DST, SRC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"

FIELDS = st.fixed_dictionaries(
    {
        "element": st.integers(0, 2**32 - 1),
        "seq": st.integers(0, 2**32 - 1),
        "timestamp_ns": st.integers(0, 2**64 - 1),
        "end": st.integers(0, 255),
        "session": st.integers(0, 2**32 - 1),
        "slice": st.integers(0, 2**32 - 1),
        "path": st.integers(0, 2**16 - 1),
        "number": st.integers(0, 2**48 - 1),
    }
)
KINDS = st.sampled_from(sorted(wire.KINDS.values()))
PAYLOADS = st.binary(max_size=200) | st.integers(0, 3000).map(lambda n: bytes(i * 7 & 255 for i in range(n)))


def a_frame(payload: bytes = b"seven b", kind: int = 1, **fields: int) -> bytes:
    return wire.seal(kind, payload, dst=DST, src=SRC, **fields)


@given(kind=KINDS, payload=PAYLOADS, fields=FIELDS)
def test_what_is_sealed_reads_back(kind, payload, fields) -> None:
    frame = a_frame(payload, kind, **fields)
    assert len(frame) == max(60, 54 + len(payload))
    read = wire.parse(frame, DST)
    assert read == (
        kind,
        *[fields[n] for n in ("element", "seq", "timestamp_ns", "end", "session", "slice", "path", "number")],
        payload,
        SRC,
        read.crc,
    )


@given(kind=KINDS, payload=PAYLOADS, fields=FIELDS)
def test_fields_stand_at_the_offsets_of_the_design(kind, payload, fields) -> None:
    frame = a_frame(payload, kind, **fields)
    assert frame[0:6] == DST
    assert frame[6:12] == SRC
    assert struct.unpack_from("!HBIIQHB", frame, 12) == (
        0x88B5,
        wire.VERSION << 4 | kind,
        fields["element"],
        fields["seq"],
        fields["timestamp_ns"],
        20 + len(payload),
        fields["end"],
    )
    session, slice_id, path, high, low, crc = struct.unpack_from("!IIHHII", frame, 34)
    assert (session, slice_id, path) == (fields["session"], fields["slice"], fields["path"])
    assert high << 32 | low == fields["number"]
    assert crc == wire.crc32c(frame[12:50] + payload)
    assert frame[54 : 54 + len(payload)] == payload
    assert not any(frame[54 + len(payload) :])


@given(kind=KINDS, payload=PAYLOADS, fields=FIELDS, data=st.data())
@settings(max_examples=300)
def test_one_flipped_bit_is_refused(kind, payload, fields, data) -> None:
    """FAULTS row 16: from the EtherType to the payload's last byte (the MACs stand for the frame's addressing)."""
    frame = bytearray(a_frame(payload, kind, **fields))
    bit = data.draw(st.integers(12 * 8, (54 + len(payload)) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert isinstance(wire.parse(frame, DST), str)


@pytest.mark.parametrize("nbytes", [0, 1, 6, 7, 64, 400])
def test_every_flipped_bit_is_refused(nbytes) -> None:
    frame = a_frame(bytes(range(nbytes % 256)) * 2, element=3, number=77)
    covered = 34 + struct.unpack_from("!H", frame, 31)[0]
    for bit in range(12 * 8, covered * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        assert isinstance(wire.parse(flipped, DST), str), bit


@given(payload=PAYLOADS, extra=st.binary(max_size=40))
def test_what_follows_the_data_is_ignored(payload, extra) -> None:
    frame = a_frame(payload)
    assert wire.parse(frame + extra, DST)[:-1] == wire.parse(frame, DST)[:-1]


@given(payload=PAYLOADS, data=st.data())
def test_a_truncated_frame_is_refused(payload, data) -> None:
    frame = a_frame(payload)[: 54 + len(payload)]
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    assert wire.parse(cut, DST) == ("runt" if len(cut) < 60 else "length")


@given(st.binary(max_size=3000))
@settings(max_examples=500)
def test_random_bytes_are_refused(junk) -> None:
    assert isinstance(wire.parse(junk, DST), str)


@given(st.binary(min_size=46, max_size=3000), KINDS, st.integers(0, 2**16 - 1))
@settings(max_examples=500)
def test_random_bytes_behind_a_right_beginning_are_refused(junk, kind, length) -> None:
    frame = bytearray(DST + SRC + struct.pack("!HB", 0x88B5, 0x20 | kind) + junk)
    assert isinstance(wire.parse(frame, DST), str)
    frame[31:33] = struct.pack("!H", length)
    assert isinstance(wire.parse(frame, DST), str)


def resealed(frame: bytearray, covered: int) -> bytearray:
    frame[50:54] = struct.pack("!I", wire.crc32c(bytes(frame[12:50] + frame[54:covered])))
    return frame


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (12, b"\x81\x00\x00\x05\x88\xb5", "vlan"),
        (12, b"\x88\xa8\x00\x05\x88\xb5", "vlan"),
        (12, b"\x81\x00\x00\x05\x08\x00", "foreign"),  # other traffic of a trunk
        (12, b"\x08\x00", "foreign"),
        (14, b"\x11", "version"),
        (14, b"\x41", "version"),
        (14, b"\x21", "version"),
        (14, b"\x30", "kind"),  # kind 0
        (14, b"\x3f", "kind"),  # kind 15
        (0, b"\x02\0\0\0\0\x09", "dst_mac"),
        (0, b"\xff" * 6, "broadcast"),  # of data
        (0, b"\x01\0\x5e\0\0\x01", "broadcast"),
        (31, b"\x00\x13", "header"),  # 19 bytes: shorter than the transport header
        (31, b"\x00\x00", "header"),
        (31, b"\x05\xdc", "mtu"),  # 34 + 1500 bytes on a port that takes 1514
        (31, b"\x00\x64", "length"),
    ],
)
def test_each_malformation_has_its_reason(offset, value, reason) -> None:
    """Even under a CRC that is right."""
    frame = bytearray(a_frame(b"x" * 30))
    frame[offset : offset + len(value)] = value
    assert wire.parse(resealed(frame, 84), DST, 1514) == reason


def test_hello_alone_may_be_broadcast() -> None:
    hello = wire.seal(wire.KINDS["HELLO"], b"", dst=b"\xff" * 6, src=SRC)
    assert wire.parse(hello, DST).kind == wire.KINDS["HELLO"]
    assert wire.parse(wire.seal(wire.KINDS["HELLO"], b"", dst=b"\x01" * 6, src=SRC), DST) == "broadcast"


def test_a_foreign_destination_is_refused() -> None:
    assert wire.parse(a_frame(), SRC) == "dst_mac"


# RFC 3720, appendix B.4
RFC_3720 = [
    (b"\0" * 32, 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000"
        ),
        0xD9963A56,
    ),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


@pytest.mark.parametrize(("text", "crc"), RFC_3720)
def test_crc32c_of_the_rfc(text, crc) -> None:
    assert wire.crc32c(text) == crc


@given(st.binary(max_size=6000), st.binary(max_size=6000))
def test_crcs_of_pieces_join(a, b) -> None:
    whole = wire.crc32c(a + b)
    assert wire.crc32c(b, wire.crc32c(a)) == whole
    assert wire.crc32c_shift(wire.crc32c(a), len(b)) ^ wire.crc32c(b) == whole


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_shifts_add_up(crc, m, n) -> None:
    assert wire.crc32c_shift(wire.crc32c_shift(crc, m), n) == wire.crc32c_shift(crc, m + n)
    assert wire.crc32c_shift(crc, 0) == crc


def test_names_are_those_of_the_header() -> None:
    """Python reads the names from C. They are public: keys of `counters`, and kinds of ``faults=``."""
    drops = (
        *("ok", "runt", "length", "mtu", "header", "foreign", "vlan", "kind", "dst_mac", "broadcast", "segments"),
        *("crc", "session", "src_mac", "path", "number", "replay", "duplicate", "not_granted", "element", "seq", "end"),
        *("size", "conflict", "manifest", "hello", "report", "busy", "version", "place"),
    )
    assert drops == wire.DROPS
    kinds = ("DATA", "PACKED", "MANIFEST", "GRANT", "FEEDBACK", "HELLO", "PROBE", "BYE", "VOID", "CLOSE")
    kinds += ("PLACED", "PLACED_PACK")
    assert dict(zip(kinds, range(1, 13), strict=True)) == wire.KINDS


def test_the_register_has_every_kind_and_reason_by_its_number() -> None:
    """docs/wire.md is what other implementations read."""
    text = (Path(__file__).resolve().parents[2] / "docs/wire.md").read_text()
    kinds = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", text, re.M)}
    assert kinds == wire.KINDS
    reasons = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.M))
    assert [reasons[str(number)] for number in range(1, len(wire.DROPS))] == list(wire.DROPS[1:])
    assert f"version (high nibble, {wire.VERSION})" in text
    assert re.findall(r"^\| (\d+) \| (?:refused|this one) \|", text, re.M)[-1] == str(wire.VERSION)
