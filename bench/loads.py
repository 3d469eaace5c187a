"""The loads: slices of images, batches of small elements, one huge element. Three of each are sent in turn."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

ROTATION = 3  # slices sent in turn, so that none is in a cache
IMAGE_BYTES = 220_000, 310_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Load:
    """The elements of a slice.

    Attributes
    ----------
    name : str
        Name in tables.
    sizes : tuple of int
        Size of each element.
    batch : bool
        The elements are rows of one array: a peer with a batch call may use it. Otherwise they are arrays.
    """

    name: str
    sizes: tuple[int, ...]
    batch: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a slice."""
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a batch."""
        return len(self.sizes), self.sizes[0]

    def slices(self) -> list[Any]:
        """Return `ROTATION` slices of random bytes, the same in every process: lists of arrays, or arrays with rows."""
        random = np.random.default_rng(2024)
        if self.batch:
            return [random.integers(0, 256, self.shape, np.uint8) for _ in range(ROTATION)]
        return [[random.integers(0, 256, size, np.uint8) for size in self.sizes] for _ in range(ROTATION)]

    def memory(self) -> Any:
        """Return memory for a slice, already touched, like the recycled buffers of a receiver."""
        return np.ones(self.shape, np.uint8) if self.batch else [np.ones(size, np.uint8) for size in self.sizes]


def checksum(parts: Iterable[Any]) -> int:
    """Return the CRC32 (zlib's) of all bytes, in order."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def demo(nb_images: int = 512) -> Load:
    """Return the demo's slice: images of random sizes."""
    sizes = np.random.default_rng(2024).integers(*IMAGE_BYTES, nb_images)
    return Load(f"slice of {nb_images} images", tuple(int(size) for size in sizes))


def rows(size: int, nbytes: int) -> Load:
    """Return a batch of equal elements, `nbytes` in total."""
    return Load(f"{size} B elements", (size,) * (nbytes // size), batch=True)


def huge(nbytes: int) -> Load:
    """Return a load of one element."""
    return Load(f"one element of {nbytes / 1e6:.0f} MB", (nbytes,))
