"""A baseline, not a peer: the C library copies the slice, element by element, into touched memory."""

from __future__ import annotations

import ctypes
from typing import Any

from loads import Load


def version() -> str:
    return "libc"


class Sink:
    address = ""

    def __init__(self, directory: str, load: Load) -> None:
        self._slices = load.slices()
        self._number = -1

    def recv(self) -> Any:
        self._number += 1
        return self._slices[self._number % len(self._slices)]

    def close(self) -> None:
        pass


class Source:
    def __init__(self, address: str, load: Load) -> None:
        self._targets, self._batch = load.memory(), load.batch

    def send(self, elements: Any) -> None:
        pairs = [(self._targets, elements)] if self._batch else zip(self._targets, elements, strict=True)
        for to, source in pairs:
            ctypes.memmove(to.ctypes.data, source.ctypes.data, source.nbytes)

    def close(self) -> None:
        pass
