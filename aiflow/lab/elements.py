"""The elements of the experiments: any number of photographs, complete or cut to one length."""

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
    """An endless sequence of images: number i is photograph i modulo their count.

    Attributes
    ----------
    directory : Path
    names : tuple of str
        Names of the photographs in it.
    sizes : tuple of int
        Their sizes in bytes.
    cut : int, optional
        Size of every element: the first bytes of its photograph. Default: all of it.
    """

    directory: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    cut: int | None = None

    def nbytes(self, number: int) -> int:
        """Return the size of element `number`."""
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
        """Return whether this is the content of element `number`."""
        return bool(np.array_equal(self[number], np.frombuffer(content, np.uint8)))


def balanced(sizes: list[int], nb_parts: int) -> list[list[int]]:
    """Distribute elements over parts of about equal size: the largest first, each to the smallest part.

    Returns
    -------
    list of list of int
        The elements of each part, in order.
    """
    parts = [(0, part) for part in range(nb_parts)]
    dealt: list[list[int]] = [[] for _ in range(nb_parts)]
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        nbytes, part = heapq.heappop(parts)
        dealt[part].append(number)
        heapq.heappush(parts, (nbytes + sizes[number], part))
    return [sorted(part) for part in dealt]
