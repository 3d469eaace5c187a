"""What is carried: slices of images, batches of small elements, one huge element; three of each, sent in turn."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

ROTATION = 3  # slices sent in turn, so that none is still in a cache
IMAGE_BYTES = 220_000, 310_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Load:
    """The elements of a slice.

    Attributes
    ----------
    name : str
        For tables.
    sizes : tuple of int
        Bytes of each element.
    batch : bool
        The elements are the rows of one array: whoever has a call for that may use it. Otherwise they are arrays.
    """

    name: str
    sizes: tuple[int, ...]
    batch: bool = False

    @property
    def nbytes(self) -> int:
        """Of a slice."""
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """Of a batch."""
        return len(self.sizes), self.sizes[0]

    def slices(self) -> list[Any]:
        """`ROTATION` slices of random bytes, the same in every process: lists of arrays, or arrays with rows."""
        random = np.random.default_rng(2024)
        if self.batch:
            return [random.integers(0, 256, self.shape, np.uint8) for _ in range(ROTATION)]
        return [[random.integers(0, 256, size, np.uint8) for size in self.sizes] for _ in range(ROTATION)]

    def memory(self) -> Any:
        """Memory for a slice, touched: what a receiver that recycles its buffers copies into."""
        return np.ones(self.shape, np.uint8) if self.batch else [np.ones(size, np.uint8) for size in self.sizes]


def checksum(parts: Iterable[Any]) -> int:
    """CRC32 (zlib's) over all bytes, in order."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def demo(nb_images: int = 512) -> Load:
    """The demo's slice: images of random sizes."""
    sizes = np.random.default_rng(2024).integers(*IMAGE_BYTES, nb_images)
    return Load(f"slice of {nb_images} images", tuple(int(size) for size in sizes))


def rows(size: int, nbytes: int) -> Load:
    """A batch of like elements, `nbytes` in all."""
    return Load(f"{size} B elements", (size,) * (nbytes // size), batch=True)


def huge(nbytes: int) -> Load:
    """One element."""
    return Load(f"one element of {nbytes / 1e6:.0f} MB", (nbytes,))
