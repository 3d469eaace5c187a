"""A hand-written ring in shared memory: slots of a `multiprocessing.shared_memory` block, and two counters.

Each side makes one copy per slot; an element larger than a slot uses several. Both sides poll. The ring relies on the
store order of x86. By default it has sixteen slots of one element. `small` has four slots of 256 KB, a megabyte that
fits into the caches of both cores: the throughput of such a ring depends on its size.
"""

from __future__ import annotations

import os
import platform
from multiprocessing import shared_memory
from typing import Any

import numpy as np
from loads import Load

SLOTS = 16
LEAST_RING = 1 << 20  # bytes: small elements get more slots
LARGEST_SLOT = 1 << 20
SMALL_SLOT, SMALL_SLOTS = 1 << 18, 4
COUNTERS_BYTES = 128  # the two counters, one cache line each


def version() -> str:
    return f"Python {platform.python_version()}, numpy {np.__version__}"


class _Ring:
    """Slots, and the numbers of slots written and read since the start."""

    def __init__(self, name: str | None, element_bytes: int, small: bool = False) -> None:
        self.slot_bytes = slot_bytes = min(SMALL_SLOT if small else LARGEST_SLOT, element_bytes)
        self.slots = max(SMALL_SLOTS if small else SLOTS, LEAST_RING // slot_bytes)
        self.block = shared_memory.SharedMemory(name, name is None, COUNTERS_BYTES + self.slots * slot_bytes)
        assert self.block.buf
        self.counters = self.block.buf[:COUNTERS_BYTES].cast("Q")
        self.bytes = self.block.buf[COUNTERS_BYTES:]
        self.written = self.read = 0

    def put(self, source: memoryview) -> None:
        """Write the bytes into one or several slots."""
        size, slots, counters = self.slot_bytes, self.slots, self.counters
        for at in range(0, len(source), size):
            while self.written - counters[8] >= slots:
                os.sched_yield()
            piece = source[at : at + size]
            begin = self.written % slots * size
            self.bytes[begin : begin + len(piece)] = piece
            self.written += 1
            counters[0] = self.written

    def get(self, target: memoryview) -> None:
        """Read the slots of these bytes."""
        size, slots, counters = self.slot_bytes, self.slots, self.counters
        for at in range(0, len(target), size):
            while counters[0] == self.read:
                os.sched_yield()
            length = min(size, len(target) - at)
            begin = self.read % slots * size
            target[at : at + length] = self.bytes[begin : begin + length]
            self.read += 1
            counters[8] = self.read

    def close(self, unlink: bool) -> None:
        self.counters.release()
        self.bytes.release()
        self.block.close()
        if unlink:
            self.block.unlink()


class Sink:
    def __init__(self, directory: str, load: Load, small: bool = False) -> None:
        self._ring = _Ring(None, max(load.sizes), small)
        self.address = self._ring.block.name
        self._memory = load.memory()
        self._views = [memoryview(array) for array in self._memory]

    def recv(self) -> Any:
        get = self._ring.get
        for view in self._views:
            get(view)
        return self._memory

    def close(self) -> None:
        self._ring.close(True)


class Source:
    def __init__(self, address: str, load: Load, small: bool = False) -> None:
        self._ring = _Ring(address, max(load.sizes), small)

    def send(self, elements: Any) -> None:
        put = self._ring.put
        for array in elements:
            put(memoryview(array))

    def close(self) -> None:
        self._ring.close(False)


class Answerer:
    def __init__(self, directory: str, nbytes: int, polling: bool) -> None:
        if not polling:
            raise NotImplementedError("it cannot sleep")
        self._there, self._back = _Ring(None, nbytes), _Ring(None, nbytes)
        self.address = self._there.block.name, self._back.block.name
        self._array = np.ones(nbytes, np.uint8)

    def answer(self) -> None:
        self._there.get(memoryview(self._array))
        self._back.put(memoryview(self._array))

    def close(self) -> None:
        self._there.close(True)
        self._back.close(True)


class Caller:
    def __init__(self, address: tuple[str, str], nbytes: int, polling: bool) -> None:
        self._there, self._back = (_Ring(name, nbytes) for name in address)
        self._array = np.ones(nbytes, np.uint8)

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._there.put(memoryview(array))
        self._back.get(memoryview(self._array))
        return self._array

    def close(self) -> None:
        self._there.close(False)
        self._back.close(False)
