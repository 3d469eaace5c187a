"""Splitting elements into parts that are even by bytes. Plain Python, the same result everywhere."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["SLACK", "even"]

SLACK = 1.05
"""The largest part is at most this many times the mean, whenever the elements allow it."""

SEARCH_MOST = 200
"""Elements among which an even split is searched for, where placing the largest first has found none …"""

STEPS_MOST = 20_000
"""… and how many placements are tried. Counted, not timed: every machine finds the same."""

Numbers = np.ndarray[Any, np.dtype[np.intp]]


def even(sizes: Sequence[int] | np.ndarray[Any, Any], n: int) -> Numbers:
    """Split elements into `n` parts even by bytes.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each element.
    n : int
        Parts, at least 1.

    Returns
    -------
    ndarray of int
        The part of each element, 0 … n - 1. Elements of one size that follow each other stay together where that is
        as even. The same input gives the same result everywhere.

    Notes
    -----
    The largest first, each onto the lightest part (Graham 1969). Where that misses `SLACK`, by differences (Karmarkar
    and Karp 1982), then by search. The problem is NP-hard: of more than `SEARCH_MOST` elements, or after `STEPS_MOST`
    placements, the best that was found is taken.
    """
    array = np.asarray(sizes, np.int64)
    parts = _largest_first(array, n)
    if not len(array) or n == 1:
        return parts
    target = max(int(array.max()), int(SLACK * int(array.sum()) / n))
    for better in (_by_differences, _by_search):
        if _largest(array, parts, n) <= target or len(array) > SEARCH_MOST:
            break
        found = better(array, n, target)
        if found is not None and _largest(array, found, n) < _largest(array, parts, n):
            parts = found
    return parts


def _largest(sizes: Numbers, parts: Numbers, n: int) -> int:
    loads = np.zeros(n, np.int64)
    np.add.at(loads, parts, sizes)
    return int(loads.max())


def _largest_first(sizes: Numbers, n: int) -> Numbers:
    parts = np.zeros(len(sizes), np.intp)
    loads = [(0, 0, part) for part in range(n)]  # bytes, elements, part: a heap
    order = np.argsort(-sizes, kind="stable")
    edges = np.flatnonzero(np.diff(sizes[order])) + 1
    for like in np.split(order, edges):  # of one size
        size, at = (int(sizes[like[0]]), 0) if len(like) else (0, 0)
        while at < len(like):
            left = len(like) - at
            if left >= n and (size == 0 or max(loads)[0] - loads[0][0] <= size):
                # Level: everybody gets as many, the lightest one more, each in one piece.
                shares = [left // n + (rank < left % n) for rank in range(n)]
                ranked = sorted(loads)
                parts[like[at:]] = np.repeat([part for _, _, part in ranked], shares)
                loads = sorted(
                    (load + share * size, count + share, part)
                    for (load, count, part), share in zip(ranked, shares, strict=True)
                )
                at = len(like)
            else:
                load, count, part = loads[0]
                parts[like[at]] = part
                heapq.heapreplace(loads, (load + size, count + 1, part))
                at += 1
    return parts


def _by_differences(sizes: Numbers, n: int, target: int) -> Numbers | None:  # noqa: ARG001
    """Join the two splits that are least even, the heaviest part of the one with the lightest of the other."""
    heap = []
    for number, size in enumerate(sizes.tolist()):
        split: list[tuple[int, list[int]]] = [(0, []) for _ in range(n - 1)]
        heap.append((-size, number, [*split, (size, [number])]))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, first, one = heapq.heappop(heap)
        _, _, other = heapq.heappop(heap)
        joined = sorted(
            ((a + b, x + y) for (a, x), (b, y) in zip(one, reversed(other), strict=True)), key=lambda part: part[0]
        )
        heapq.heappush(heap, (joined[0][0] - joined[-1][0], first, joined))
    parts = np.zeros(len(sizes), np.intp)
    for part, (_, numbers) in enumerate(heap[0][2]):
        parts[numbers] = part
    return parts


def _by_search(sizes: Numbers, n: int, target: int) -> Numbers | None:
    """A split of which no part is larger than `target`; None if there is none, or the search gave up."""
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order].tolist()
    loads = [0] * n
    placed: list[int] = []
    tried: list[set[int]] = [set()]  # loads that the element at this depth has been put on: like parts are one
    for _ in range(STEPS_MOST):
        depth = len(placed)
        if depth == len(ordered):
            parts = np.zeros(len(sizes), np.intp)
            parts[order] = placed
            return parts
        size = ordered[depth]
        fits = [part for part in range(n) if loads[part] + size <= target and loads[part] not in tried[depth]]
        if fits:
            part = max(fits, key=lambda part: loads[part])  # the fullest that takes it
            tried[depth].add(loads[part])
            loads[part] += size
            placed.append(part)
            tried.append(set())
        elif depth == 0:
            return None
        else:
            tried.pop()
            loads[placed.pop()] -= ordered[depth - 1]
    return None
