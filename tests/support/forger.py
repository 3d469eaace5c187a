"""A sender made from a raw socket: a test decides every byte of its frames, and the CRC is correct."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import socket
import struct
import time

from manifest_oracle import encode
from wait import Deadline

from aiflow import _wire
from aiflow._transfer.manifest import described

HELLO = struct.Struct(">BBIBHHHHHIQQBB")  # format, answer, session, …
VOIDS = 9
REPORT = struct.Struct(">xIIIIIIHHHBIQ" + "IIQ" * VOIDS + "B")  # granted, done, confirmed, …
FIRST_VOID = 12
PAYLOAD = 1460
KIND = _wire.KINDS


class Forger:
    """Speaks the wire protocol from one interface, in the namespace of this thread.

    Parameters
    ----------
    interface : str
        Ours.
    """

    def __init__(self, interface: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_wire.ETHERTYPE))
        self.socket.bind((interface, _wire.ETHERTYPE))
        self.socket.settimeout(0.05)
        info = fcntl.ioctl(self.socket, 0x8927, struct.pack("256s", interface.encode()))  # SIOCGIFHWADDR
        self.mac = info[18:24]
        self.instance = secrets.randbits(64) | 1
        self.ours = secrets.randbits(31) | 1 << 31  # the number that the receiver writes into its frames
        self.dst = b"\xff" * 6
        self.session = self.slice = self.number = 0

    def close(self) -> None:
        self.socket.close()

    def frame(self, kind: str, payload: bytes = b"", *, sequenced: bool = True, **fields: int | bytes) -> bytes:
        """A frame of our session, with the next packet number; `fields` replace its header fields."""
        dst, src = fields.pop("dst", self.dst), fields.pop("src", self.mac)
        wanted = {
            "session": self.session,
            "slice": self.slice,
            "number": self.number,
            "end": 1,
            "timestamp_ns": time.time_ns(),
            **fields,
        }
        if kind == "BYE":
            wanted.setdefault("element", 1)  # from a sender
        self.number += sequenced and "number" not in fields
        return _wire.seal(KIND[kind], payload, dst=dst, src=src, **wanted)

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def hear(self, kinds: tuple[str, ...], seconds: float = 30.0) -> _wire.Frame | None:
        """The next frame of these kinds that is for us."""
        deadline = Deadline(seconds)
        while not deadline.passed:
            try:
                parsed = _wire.parse(self.socket.recv(65535), self.mac)
            except TimeoutError:
                continue
            if not isinstance(parsed, str) and parsed.kind in [KIND[kind] for kind in kinds] and parsed.src != self.mac:
                return parsed
        return None

    def hello(self, **fields: int) -> bytes:
        """A HELLO of ours."""
        values = {"frame_size": 1514, "sender": self.instance, "name_len": 6, "to_len": 0, **fields}
        payload = (
            HELLO.pack(
                values.get("format", 1),
                values.get("answer", 0),
                values.get("session", self.ours),
                0,
                values.get("port", 0),
                1,
                values["frame_size"],
                0,
                0,
                0,
                values["sender"],
                0,
                values["name_len"],
                values["to_len"],
            )
            + b"forger"
        )
        return _wire.seal(KIND["HELLO"], payload, dst=b"\xff" * 6, src=self.mac, end=1)

    def join(self) -> None:
        """Open a session with the receiver at the other end."""
        self.send(self.hello())
        answer = self.hear(("HELLO",))
        assert answer is not None, "no receiver answers"
        self.dst = answer.src
        self.session = HELLO.unpack_from(answer.payload)[2]
        self.slice = 1

    def manifest(self, elements: dict[str, bytes]) -> bytes:
        """The manifest of a slice that is cut into payloads of `PAYLOAD` bytes."""
        manifest, _ = encode(described(elements))
        return manifest[:2] + struct.pack(">H", PAYLOAD) + manifest[4:]

    def ask(self, manifest: bytes) -> tuple[int, ...]:
        """Send the MANIFEST and return the report that answers it (`REPORT`'s fields)."""
        assert len(manifest) <= PAYLOAD
        self.send(self.frame("MANIFEST", manifest, element=len(manifest), seq=0))
        return self.report()

    def report(self, seconds: float = 30.0) -> tuple[int, ...]:
        """The receiver's next report, asked for by a PROBE; it may have been on its way already."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.socket.recv(65535):
                pass
        self.socket.settimeout(0.05)
        self.send(self.frame("PROBE"))
        frame = self.hear(("GRANT", "FEEDBACK"), seconds)
        assert frame is not None, "the receiver reports nothing"
        return REPORT.unpack_from(frame.payload)

    def report_of(self, index: int, value: int, seconds: float = 30.0) -> tuple[int, ...]:
        """The first report that has a value at an index."""
        deadline = Deadline(seconds)
        while (report := self.report())[index] != value:
            deadline.check(report)
        return report

    def refusals(self) -> dict[int, int]:
        """The reasons (enum af_void_reason) of the newest refused slices, by slice, once this one is done with."""
        report = self.report_of(1, self.slice + 1)
        return dict(zip(report[FIRST_VOID:-1:3], report[FIRST_VOID + 1 : -1 : 3], strict=True))

    def chunk(self, whole: bytes, place: int, /, **fields: int | bytes) -> bytes:
        """A DATA frame: chunk number `place` of element 0, which is larger than one payload."""
        piece = whole[place * PAYLOAD : (place + 1) * PAYLOAD]
        end = int((place + 1) * PAYLOAD >= len(whole))
        return self.frame("DATA", piece, **{"element": 0, "seq": place, "end": end, **fields})

    def closing(self, element: bytes) -> bytes:
        """The closing record of a slice of one element."""
        return self.frame("CLOSE", struct.pack(">I", _wire.crc32c(element)), element=1)

    def finish(self, element: bytes) -> None:
        """Send the closing record of a slice of one element."""
        self.send(self.closing(element))
