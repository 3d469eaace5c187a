"""A median with its 95 % confidence interval, for any distribution, from order statistics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Median:
    """Median of measurements, with its 95 % interval. For fewer than six values the interval is their range."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the median and interval of `values`, at least one."""
        ordered = sorted(values)
        n, below, k = len(ordered), 0.0, 0
        while (below := below + math.comb(n, k) / 2**n) <= 0.025:
            k += 1
        k = max(k, 1)
        return cls(statistics.median(ordered), ordered[k - 1], ordered[n - k], n)

    @classmethod
    def of_ratios(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Self:
        """Return the median and interval of ratios measured in pairs."""
        return cls.of([over / under for over, under in zip(numerators, denominators, strict=True)])

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON file."""
        return asdict(self)
