"""What the experiments send: photographs, as long as they are or cut to one length, as many as are asked for."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Elements", "balanced"]


@dataclass(frozen=True)
class Elements:
    """An endless row of images: number i is photograph i modulo their count.

    Attributes
    ----------
    directory : Path
    names : tuple of str
        Of the photographs in it.
    sizes : tuple of int
        Their bytes.
    cut : int, optional
        Bytes of every element: so many of its photograph's first; default: all.
    """

    directory: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    cut: int | None = None

    def nbytes(self, number: int) -> int:
        """Bytes of element `number`."""
        size = self.sizes[number % len(self.sizes)]
        return size if self.cut is None else min(size, self.cut)

    def load(self) -> Loaded:
        """Read the photographs."""
        return Loaded(self, [np.fromfile(self.directory / name, np.uint8)[: self.cut] for name in self.names])


class Loaded:
    """Elements in memory."""

    def __init__(self, elements: Elements, photographs: list[npt.NDArray[np.uint8]]) -> None:
        self.elements = elements
        self._photographs = photographs

    def __getitem__(self, number: int) -> npt.NDArray[np.uint8]:
        return self._photographs[number % len(self._photographs)]

    def equal(self, number: int, content: Any) -> bool:
        """Say whether this is what element `number` was."""
        return bool(np.array_equal(self[number], np.frombuffer(content, np.uint8)))


def balanced(sizes: list[int], nb_parts: int) -> list[list[int]]:
    """Deal numbers out over parts so that the parts' bytes are as even as can be: the largest first, to the emptiest.

    Returns
    -------
    list of list of int
        The numbers of each part, in order.
    """
    parts = [(0, part) for part in range(nb_parts)]
    dealt: list[list[int]] = [[] for _ in range(nb_parts)]
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        nbytes, part = heapq.heappop(parts)
        dealt[part].append(number)
        heapq.heappush(parts, (nbytes + sizes[number], part))
    return [sorted(part) for part in dealt]
