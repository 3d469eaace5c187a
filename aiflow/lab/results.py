"""Results of an experiment: the rows of its runs, their medians, and checks against theory."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DELIVERY", "Check", "Results", "Row", "median"]

DELIVERY = "runs in which an element was lost or changed"
Row = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A requirement on a figure.

    Attributes
    ----------
    what : str
    limit : str
        The required value.
    value : float
        The measured value.
    met : bool
    """

    what: str
    limit: str
    value: float
    met: bool


@dataclass
class Results:
    """Results of an experiment.

    Attributes
    ----------
    name, title : str
    rows : list of dict
        Every run.
    medians : list of dict
        The median of the runs of each measurement.
    checks : list of Check
    theory : dict
        Theoretical figures for comparison.
    seconds : float
        Duration of the experiment.
    """

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    medians: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    theory: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def check(self, what: str, limit: str, value: float, met: bool) -> None:
        """Add a check."""
        self.checks.append(Check(what, limit, float(value), bool(met)))

    def check_delivery(self) -> None:
        """Check that every element of every run arrived identical."""
        lost = sum(not each["delivered"] for each in self.rows)
        self.check(DELIVERY, "0", lost, lost == 0)

    def summarise(self, *keys: str) -> None:
        """Combine the runs with equal `keys`: numbers become medians, `delivered` is true if it is for all of them."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for each in self.rows:
            groups.setdefault(tuple(each[key] for key in keys), []).append(each)
        for values, rows in groups.items():
            numbers = {
                name: statistics.median(r[name] for r in rows)
                for name, value in rows[0].items()
                if name not in keys and name != "run" and isinstance(value, int | float) and not isinstance(value, bool)
            }
            spread = {"share_min": min(r["share"] for r in rows), "share_max": max(r["share"] for r in rows)}
            self.medians.append(
                {**dict(zip(keys, values, strict=True)), **numbers, **spread, "runs": len(rows),
                 "delivered": all(r["delivered"] for r in rows)}
            )  # fmt: skip

    def median(self, value: str, **where: Any) -> float:
        """Return one number of the medians."""
        return median(self.medians, value, **where)


def median(rows: Iterable[Row], value: str, **where: Any) -> float:
    """Return the median of a column over the rows with the given values; NaN without such rows."""
    found = [float(r[value]) for r in rows if all(r[key] == wanted for key, wanted in where.items())]
    return statistics.median(found) if found else float("nan")
