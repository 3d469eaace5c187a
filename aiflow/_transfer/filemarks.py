"""Marks an element of a slice as a file: ``aiflow send`` sets the mark, ``aiflow recv`` reads it.

A mark is a field of the manifest (include/aiflow/wire/manifest.h), not part of a stream's name: a program's stream may
have any name. A receiver that does not know a mark refuses the slice.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

__all__ = ["ELEMENT", "FileMark", "Marked"]

ELEMENT = 0
_KINDS = ("element", "file", "part", "directory", "question")  # in the order of enum af_run_kind
_MODE, _MTIME, _OFFSET, _SIZE, _HOLE = 1, 2, 3, 4, 5  # enum af_mark
_USUAL = struct.Struct(">BBIBBq")  # mode and time: all marks of a whole file. A slice may have thousands of them
_USUAL_HEAD, _USUAL_MIDDLE = bytes([_MODE, 4]), bytes([_MTIME, 8])


class FileMark(NamedTuple):
    """The file that an element is.

    Attributes
    ----------
    kind : str
        "file", "part" (of a file that is larger than a slice, or sparse), or one without bytes: "directory", or
        "question" (`aiflow.cli.resume`).
    mode : int or None
        Permission bits.
    mtime_ns : int or None
        Time of its last change, nanoseconds since 1970.
    offset : int
        Where a part begins in its file, in bytes.
    size : int or None
        Bytes of the whole file, of a part or a question.
    hole : int
        Zeros that follow a part, and are not sent.
    """

    kind: str
    mode: int | None = None
    mtime_ns: int | None = None
    offset: int = 0
    size: int | None = None
    hole: int = 0

    def encode(self) -> tuple[int, bytes]:
        """The run's kind, and its marks as a manifest carries them."""
        if self.kind != "part" and None not in self[1:3] and self.size is None:
            return _KINDS.index(self.kind), _USUAL.pack(_MODE, 4, self.mode, _MTIME, 8, self.mtime_ns)
        marks = b""
        if self.mode is not None:
            marks += struct.pack(">BBI", _MODE, 4, self.mode)
        if self.mtime_ns is not None:
            marks += struct.pack(">BBq", _MTIME, 8, self.mtime_ns)
        if self.kind == "part":
            marks += struct.pack(">BBQ", _OFFSET, 8, self.offset)
        if self.size is not None:
            marks += struct.pack(">BBQ", _SIZE, 8, self.size)
        if self.hole:
            marks += struct.pack(">BBQ", _HOLE, 8, self.hole)
        return _KINDS.index(self.kind), marks

    @staticmethod
    def decode(kind: int, marks: bytes) -> FileMark:
        """Decode what `encode` makes. The receiver's loop has checked that it knows all marks."""
        if len(marks) == _USUAL.size and marks[:2] == _USUAL_HEAD and marks[6:8] == _USUAL_MIDDLE:
            _, _, mode, _, _, mtime_ns = _USUAL.unpack(marks)
            return FileMark(_KINDS[kind], mode, mtime_ns)
        found: dict[int, Any] = {}
        at = 0
        while at < len(marks):
            key, length = marks[at], marks[at + 1]
            found[key] = int.from_bytes(marks[at + 2 : at + 2 + length], "big", signed=key == _MTIME)
            at += 2 + length
        return FileMark(
            _KINDS[kind], found.get(_MODE), found.get(_MTIME), found.get(_OFFSET, 0), found.get(_SIZE),
            found.get(_HOLE, 0),
        )  # fmt: skip


class Marked(NamedTuple):
    """An element that is a file. `Sender.send` takes it beside (stream, buffer) pairs."""

    stream: str
    buffer: Any
    mark: FileMark
