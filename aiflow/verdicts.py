"""What a receiver's user says of a slice's elements, as it travels: for each reason, the numbers of elements.

Numbers as ranges, so that a full disk under twenty thousand files is a line. A text that would be too long for the wire
(include/aiflow/verdict.h) takes neighbours along: too many elements are then said to have failed, never too few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["MOST_BYTES", "heard", "told"]

MOST_BYTES = 60000
_MOST_REASON = 400
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
    by_reason: dict[str, list[int]] = {}
    for number in sorted(failed):
        reason = str(failed[number])[:_MOST_REASON]
        if reason not in by_reason and len(by_reason) == _MOST_REASONS:
            reason = next(reversed(by_reason))  # what so many reasons have in common, one may stand for
        by_reason.setdefault(reason, []).append(number)
    rows = [(reason, _ranges(numbers)) for reason, numbers in by_reason.items()]
    while len(text := json.dumps(rows, separators=(",", ":")).encode()) > MOST_BYTES:
        rows = [(reason, _coarser(ranges)) for reason, ranges in rows]
    return text


def heard(text: str, nb_elements: int) -> dict[int, str]:
    """The inverse of `told`, of a slice of `nb_elements`; a text in other words is the reason for all of it."""
    failed: dict[int, str] = {}
    try:
        for reason, ranges in json.loads(text):
            for first, last in ranges:
                failed.update(dict.fromkeys(range(max(first, 0), min(last + 1, nb_elements)), str(reason)))
    except (TypeError, ValueError):
        failed = {}
    return failed or dict.fromkeys(range(nb_elements), text)
