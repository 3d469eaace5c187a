"""What each slice asks of the ports, beside what they can give: B_total = 8·M / T (the paper's section 3.2)."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from aiflow import scheduler
from aiflow.errors import DemandWarning

__all__ = ["DemandMeter", "RateEstimate", "Speeds"]

REMEMBERED, ENOUGH = 8, 3
"""Slices that the estimate remembers, and how many it needs: a single one may have had bad luck."""

Speeds = list[float | None]
"""Link speed of each port with a path, in bit/s; None where it is not known."""


class RateEstimate:
    """The rate that the ports were seen to give, by the newest slices."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)  # bytes, bit/s
        self._until = 0.0

    def note(self, outgoing: Any) -> None:
        """Remember a delivered slice: its rate, without its wait for the receiver and for slices before it."""
        if outgoing.waited is None:  # a single frame, which measures the round trip
            return
        done_at = outgoing.posted_at + outgoing.seconds
        seconds = done_at - max(outgoing.posted_at + outgoing.waited, self._until)
        self._until = max(self._until, done_at)
        if seconds > 0 and outgoing.nbytes:
            self._seen.append((outgoing.nbytes, 8 * outgoing.nbytes / seconds))

    def bps(self, nbytes: int) -> float | None:
        """The best rate of slices at least half as large as `nbytes`, in bit/s; None when there are too few.

        Smaller slices measure the round trip.
        """
        rates = [rate for size, rate in tuple(self._seen) if 2 * size >= nbytes]
        return max(rates) if len(rates) >= ENOUGH else None


class DemandMeter:
    """Compares each slice with what the ports can give, and warns once until a demand is met again.

    Parameters
    ----------
    seconds : float or None
        Length of a slice; None: nothing is compared.
    speeds : callable
        Returns the ports' `Speeds` now.
    guard : threading.RLock
        Held while a demand is noted.

    Attributes
    ----------
    newest : scheduler.Demand or None
        Of the newest slice.
    unmet : int
        Slices that asked for too much.
    """

    def __init__(self, seconds: float | None, speeds: Callable[[], Speeds], guard: Any) -> None:
        self.seconds = seconds
        self.speeds = speeds
        self.rates = RateEstimate()
        self.newest: scheduler.Demand | None = None
        self.unmet = 0
        self._warned = False
        self._guard = guard

    def weigh(self, nbytes: int, speeds: Speeds) -> scheduler.Demand | None:
        """Compare a slice of `nbytes` with the ports' speeds, and with the rate that they were seen to give.

        None where neither is known, as before the first slice over ports whose driver makes its speed up.
        """
        assert self.seconds is not None
        demands = []
        known = [speed for speed in speeds if speed]
        if known and len(known) == len(speeds):
            demands.append(scheduler.demand(nbytes, self.seconds, known))
        seen = self.rates.bps(nbytes)
        if seen is not None:
            demands.append(scheduler.demand(nbytes, self.seconds, [seen], payload_share=1.0))
        return min(demands, key=lambda demand: demand.available_bps, default=None)

    def check(self, nbytes: int, stacklevel: int) -> None:
        """Note what a slice that is about to be posted asks for, and warn if that is too much."""
        if self.seconds is not None:
            with self._guard:
                demand = self.note(nbytes, self.speeds())
            self.warn(demand, stacklevel + 1)

    def note(self, nbytes: int, speeds: Speeds) -> scheduler.Demand | None:
        """Make this slice's demand the newest."""
        self.newest = self.weigh(nbytes, speeds)
        if self.newest is not None:
            self.unmet += not self.newest.met
            self._warned &= not self.newest.met
        return self.newest

    def warn(self, demand: scheduler.Demand | None, stacklevel: int) -> None:
        """Warn of a demand that is not met, once until one is met again."""
        if demand is not None and not demand.met and not self._warned:
            self._warned = True
            warnings.warn(demand.explain(), DemandWarning, stacklevel=stacklevel)
