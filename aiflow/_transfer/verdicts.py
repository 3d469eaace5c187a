"""The verdict of a receiver's user on the elements of a slice, as text: for each reason, the numbers of elements.

Numbers are ranges, so that a full disk under twenty thousand files takes one line. Where the text would be too long for
the wire (include/aiflow/wire/verdict.h), ranges grow to include neighbours: it may report too many failed elements,
never too few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["MOST_BYTES", "heard", "told"]

MOST_BYTES = 60000
_MOST_REASON = 400  # characters, or fewer where many reasons take too much space
_MOST_REASONS = 50


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Ascending numbers as [first, last] pairs."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] >= number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def _coarser(ranges: list[list[int]]) -> list[list[int]]:
    """Half the ranges, which cover at least the same numbers."""
    return [[ranges[i][0], ranges[min(i + 1, len(ranges) - 1)][1]] for i in range(0, len(ranges), 2)]


def _grouped(failed: Mapping[int, str], most: int) -> list[tuple[str, list[list[int]]]]:
    """The elements of each reason; reasons are cut to `most` characters."""
    by_reason: dict[str, list[int]] = {}
    for number in sorted(failed):
        reason = str(failed[number])[:most]
        if reason not in by_reason and len(by_reason) == _MOST_REASONS:
            reason = next(reversed(by_reason))  # beyond the limit, the last reason stands for the rest
        by_reason.setdefault(reason, []).append(number)
    return [(reason, _ranges(numbers)) for reason, numbers in by_reason.items()]


def told(failed: Mapping[int, str]) -> bytes:
    """Encode which elements failed, and why.

    Parameters
    ----------
    failed : mapping of int to str
        Number of an element → why.

    Returns
    -------
    bytes
        At most `MOST_BYTES`.
    """
    rows, most = _grouped(failed, _MOST_REASON), _MOST_REASON
    while sum(len(json.dumps(reason)) for reason, _ in rows) > MOST_BYTES // 2:
        most //= 2
        rows = _grouped(failed, most)
    while len(text := json.dumps(rows, separators=(",", ":")).encode()) > MOST_BYTES:
        rows = [(reason, _coarser(ranges)) for reason, ranges in rows]
    return text


def heard(text: str, nb_elements: int) -> dict[int, str]:
    """Decode `told` for a slice of `nb_elements`. Any other text is the reason for all elements."""
    failed: dict[int, str] = {}
    try:
        for reason, ranges in json.loads(text):
            for first, last in ranges:
                if len(failed) < nb_elements:  # a hostile peer may send overlapping ranges without end
                    failed.update(dict.fromkeys(range(max(first, 0), min(last + 1, nb_elements)), str(reason)))
    except (RecursionError, TypeError, ValueError):
        failed = {}
    return failed or dict.fromkeys(range(nb_elements), text)
