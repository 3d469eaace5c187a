"""The manifest of a slice, written in plain Python from its layout: what the compiled `aiflow._encode` must produce."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from aiflow._transfer.filemarks import ELEMENT, FileMark
from aiflow._transfer.form import Form
from aiflow._transfer.manifest import Piece, checked_stream, named
from aiflow.errors import ConfigError

__all__ = ["encode", "encode_rows"]

_HEADER = struct.Struct(">BBHIIQ")
_FORMAT = 1
_RUN = struct.Struct(">IQIBBHHH")


class _Runs:
    """Joins like neighbours; a marked element is a run of its own."""

    def __init__(self) -> None:
        self.encoded: list[bytes] = []
        self.nb_elements = 0
        self.nbytes = 0
        self._last: tuple[str | None, Form, FileMark | None] | None = None
        self._first = 0
        self._count = 0

    def add(self, stream: str | int, form: Form, count: int = 1, mark: FileMark | None = None) -> None:
        key = (None if isinstance(stream, int) else stream, form, mark)
        if key != self._last or mark is not None or (isinstance(stream, int) and stream != self._first + self._count):
            self._flush()
            self._last = key
            self._first = stream if isinstance(stream, int) else 0
        self._count += count
        self.nb_elements += count
        self.nbytes += form.nbytes * count

    def _flush(self) -> None:
        if self._last is None:
            return
        stream, form, mark = self._last
        name, encoded = named(stream, form)
        kind, marks = (ELEMENT, b"") if mark is None else mark.encode()
        self.encoded.append(
            _RUN.pack(self._count, form.nbytes, self._first, stream is None, kind, len(name), len(encoded), len(marks))
            + name
            + encoded
            + marks
        )
        self._count = 0

    def manifest(self) -> bytes:
        self._flush()
        return b"".join([_HEADER.pack(_FORMAT, 0, 1, len(self.encoded), self.nb_elements, self.nbytes), *self.encoded])


def encode(elements: Iterable[Piece]) -> tuple[bytes, list[Any]]:
    """The manifest of these elements, and the buffer of each."""
    runs = _Runs()
    buffers = []
    for stream, buffer, form, mark in elements:
        runs.add(stream, form, mark=mark)
        buffers.append(buffer)
    if runs.nb_elements > 0xFFFFFFFF:
        raise ConfigError(f"{runs.nb_elements} elements are more than a slice can number: send several slices")
    return runs.manifest(), buffers


def encode_rows(stream: str, form: Form, count: int) -> bytes:
    """The manifest of `count` like elements of one stream."""
    if count > 0xFFFFFFFF:
        raise ConfigError(f"{count} elements are more than a slice can number: send several slices")
    runs = _Runs()
    if count:
        runs.add(checked_stream(stream), form, count)
    return runs.manifest()
