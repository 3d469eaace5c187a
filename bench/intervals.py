"""Medians and ratios with their 95 % confidence intervals, for any distribution.

Medians take theirs from order statistics. Ratios of quantiles, and medians of pairs, take theirs from rounds that are
drawn with replacement.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

RESAMPLES = 2000


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


def of_quantiles(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], share: float
) -> tuple[float, float, Median]:
    """Return a quantile of all values of either side, and the ratio of both, ours ÷ theirs.

    Values of one round depend on each other, so the interval draws whole rounds, of both sides at the same places.
    """
    both = np.array(ours), np.array(theirs)
    of_ours, of_theirs = (float(np.quantile(side, share)) for side in both)
    random, rounds = np.random.default_rng(1), len(ours)
    drawn = [random.integers(0, rounds, rounds) for _ in range(RESAMPLES)]
    ratios = [float(np.quantile(both[0][at], share) / np.quantile(both[1][at], share)) for at in drawn]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return of_ours, of_theirs, Median(of_ours / of_theirs, float(low), float(high), rounds)


def of_pairs(numerators: Sequence[float], denominators: Sequence[float]) -> Median:
    """Return the median of the ratios of pairs. Its interval has 95 % of the medians of pairs that are drawn again."""
    ratios = np.array(numerators, float) / np.array(denominators, float)
    drawn = np.random.default_rng(1).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return Median(float(np.median(ratios)), float(low), float(high), len(ratios))
