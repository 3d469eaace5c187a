"""What a receiver's user says of a slice's elements, as it travels: for each reason, the numbers of elements.

Numbers as ranges, so that a full disk under twenty thousand files is a line. A text that would be too long for the wire
(include/aiflow/wire/verdict.h) takes neighbours along: too many elements are then said to have failed, never too few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["MOST_BYTES", "heard", "told"]

MOST_BYTES = 60000
_MOST_REASON = 400  # characters, or fewer where many reasons take too much
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
    """Half as many ranges, which cover the same."""
    return [[ranges[i][0], ranges[min(i + 1, len(ranges) - 1)][1]] for i in range(0, len(ranges), 2)]


def _grouped(failed: Mapping[int, str], most: int) -> list[tuple[str, list[list[int]]]]:
    """The elements of each reason, whose first `most` characters count."""
    by_reason: dict[str, list[int]] = {}
    for number in sorted(failed):
        reason = str(failed[number])[:most]
        if reason not in by_reason and len(by_reason) == _MOST_REASONS:
            reason = next(reversed(by_reason))  # what so many reasons have in common, one may stand for
        by_reason.setdefault(reason, []).append(number)
    return [(reason, _ranges(numbers)) for reason, numbers in by_reason.items()]


def told(failed: Mapping[int, str]) -> bytes:
    """Which elements failed, and why.

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
    """The inverse of `told`, of a slice of `nb_elements`; a text in other words is the reason for all of it."""
    failed: dict[int, str] = {}
    try:
        for reason, ranges in json.loads(text):
            for first, last in ranges:
                if len(failed) < nb_elements:  # a stranger's ranges may overlap, a hundred thousand times
                    failed.update(dict.fromkeys(range(max(first, 0), min(last + 1, nb_elements)), str(reason)))
    except (RecursionError, TypeError, ValueError):
        failed = {}
    return failed or dict.fromkeys(range(nb_elements), text)
