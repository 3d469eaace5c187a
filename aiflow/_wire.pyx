"""The wire format without DPDK: the C code of a live port reads, writes and checks frames here.

For tests and diagnosis. Nothing here touches a port.
"""

from collections import namedtuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from aiflow._core cimport (
    AF_HEADER, AF_MAX_FRAME, AF_NB_DROPS, AF_NB_KINDS, af_crc32c, af_crc32c_shift, af_drop_name, af_frame,
    af_kind_name, af_wire_parse, af_wire_seal,
)

cdef extern from "aiflow/wire/frame.h" nogil:
    enum:
        AF_MIN_FRAME
        AF_MIN_PATH_FRAME
        AF_VERSION
        AF_ETHERTYPE

HEADER = AF_HEADER
MAX_FRAME = AF_MAX_FRAME
MIN_PATH_FRAME = AF_MIN_PATH_FRAME
VERSION = AF_VERSION
ETHERTYPE = AF_ETHERTYPE

# Names of the C tables (include/aiflow/wire/frame.h).
KINDS = {af_kind_name(kind).decode(): kind for kind in range(1, AF_NB_KINDS)}
DROPS = tuple([af_drop_name(drop).decode() for drop in range(AF_NB_DROPS)])

Frame = namedtuple("Frame", "kind element seq timestamp_ns end session slice path number payload src crc")
Frame.__doc__ = "A frame's fields in host byte order; `kind` by number (see `KINDS`), `payload` without padding."


def parse(const uint8_t[::1] frame, bytes mac, uint32_t max_frame=AF_MAX_FRAME):
    """Check and read a frame, as a port with address `mac` does.

    Parameters
    ----------
    frame : bytes-like
        As it came from the wire, destination address first.
    mac : bytes
        Six bytes.
    max_frame : int
        The largest frame of the port, in bytes.

    Returns
    -------
    Frame or str
        The fields, or the reason to drop it (one of `DROPS`).
    """
    cdef uint32_t size = <uint32_t>frame.shape[0]
    cdef af_frame out
    cdef uint8_t *copy
    cdef int drop
    if len(mac) != 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(mac)}")
    # Memory of exactly this size: a sanitizer build then reports one byte read too far.
    copy = <uint8_t *>malloc(max(size, 1))
    if copy == NULL:
        raise MemoryError(f"no memory for a frame of {size} bytes")
    try:
        if size:
            memcpy(copy, &frame[0], size)
        drop = af_wire_parse(copy, size, <const uint8_t *><const char *>mac, max_frame, &out)
        if drop:
            return DROPS[drop]
        return Frame(out.kind, out.element, out.seq, out.timestamp_ns, out.end, out.session, out.slice, out.path,
                     out.number, (<char *>out.payload)[:out.nbytes], (<char *>out.src)[:6], out.crc)
    finally:
        free(copy)


cdef int _set_fields(af_frame *f, dict fields) except -1:
    """Write the header's fields; those not given are 0."""
    f.element = fields.pop("element", 0)
    f.seq = fields.pop("seq", 0)
    f.timestamp_ns = fields.pop("timestamp_ns", 0)
    f.end = fields.pop("end", 0)
    f.session = fields.pop("session", 0)
    f.slice = fields.pop("slice", 0)
    f.path = fields.pop("path", 0)
    f.number = fields.pop("number", 0)
    if fields:
        raise TypeError(f"a frame has no field {next(iter(fields))!r}")
    return 0


def seal(uint8_t kind, const uint8_t[::1] payload=b"", *, bytes dst, bytes src, **fields):
    """Write a frame with a right CRC, whatever its fields claim.

    Parameters
    ----------
    kind : int
        0 to 15; `KINDS` names those that are in use.
    payload : bytes-like
        The bytes after the headers.
    dst, src : bytes
        Six bytes each.
    element, seq, timestamp_ns, end, session, slice, path, number : int
        The header's fields, of their widths there (`number` has 48 bits); 0 where not given.

    Returns
    -------
    bytes
        The frame, padded to 60 bytes.
    """
    cdef uint32_t nbytes = <uint32_t>payload.shape[0]
    cdef uint32_t room = <uint32_t>AF_HEADER + nbytes
    cdef uint8_t *frame
    cdef af_frame f
    f.payload = f.to = NULL
    _set_fields(&f, fields)
    if len(dst) != 6 or len(src) != 6:
        raise ValueError("a MAC address has 6 bytes")
    if kind > 15 or f.number >> 48 or AF_HEADER + nbytes > AF_MAX_FRAME:
        raise ValueError("a kind has 4 bits, a packet number 48, and a frame no more than MAX_FRAME bytes")
    room = max(room, <uint32_t>AF_MIN_FRAME)
    frame = <uint8_t *>malloc(room)
    if frame == NULL:
        raise MemoryError(f"no memory for a frame of {room} bytes")
    f.kind, f.nbytes = kind, nbytes
    try:
        if nbytes:
            memcpy(frame + AF_HEADER, &payload[0], nbytes)
        room = af_wire_seal(frame, <const uint8_t *><const char *>dst, <const uint8_t *><const char *>src, &f)
        return (<char *>frame)[:room]
    finally:
        free(frame)


def crc32c(const uint8_t[::1] buffer, uint32_t crc=0):
    """CRC32C (RFC 3720, appendix B.4) of a buffer; with `crc`, of its bytes and then the buffer's."""
    return af_crc32c(crc, &buffer[0] if buffer.shape[0] else NULL, buffer.shape[0])


def crc32c_shift(uint32_t crc, uint64_t nbytes):
    """Move a CRC past `nbytes` bytes: crc32c(a + b) == crc32c_shift(crc32c(a), len(b)) ^ crc32c(b)."""
    return af_crc32c_shift(crc, nbytes)
