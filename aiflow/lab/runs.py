"""What every experiment has: images, repeated runs, rows of results, and files to keep them in."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiflow.lab.elements import Elements
from aiflow.lab.trial import Measured

__all__ = ["DELIVERY", "Bar", "Bench", "Check", "Results", "median", "row", "write"]

DELIVERY = "runs in which an element was lost or changed"
Row = dict[str, Any]


class Bar(Protocol):
    """A progress bar."""

    def show(self, done: float, total: float | None = None) -> None:
        """Move it."""


class _NoBar:
    def show(self, done: float, total: float | None = None) -> None:
        pass


@contextlib.contextmanager
def _silent(text: str, total: int) -> Any:
    del text, total
    yield _NoBar()


@dataclass(frozen=True)
class Bench:
    """How experiments are run.

    Attributes
    ----------
    images : Elements
        Photographs.
    rate_bps : int
        Of a port.
    repeats : int
        Runs of each measurement. They are interleaved: every system once, then every system again.
    quick : bool
        Small slices and few of them, to see that all of it works; the figures mean little.
    bar : callable
        Gives a progress bar for a text and a total.
    faults : dict, optional
        Made on purpose by our senders (`aiflow.config.FAULTS`).
    """

    images: Elements
    rate_bps: int = 100_000_000
    repeats: int = 3
    quick: bool = False
    bar: Callable[[str, int], AbstractContextManager[Bar]] = _silent
    faults: dict[str, Any] | None = None

    def cut(self, nbytes: int) -> Elements:
        """The images, each cut to so many bytes."""
        return Elements(self.images.directory, self.images.names, self.images.sizes, nbytes)


@dataclass(frozen=True)
class Check:
    """One thing that ought to be so.

    Attributes
    ----------
    what : str
    limit : str
        What it ought to be.
    value : float
        What it is.
    met : bool
    """

    what: str
    limit: str
    value: float
    met: bool


@dataclass
class Results:
    """What an experiment gave.

    Attributes
    ----------
    name, title : str
    rows : list of dict
        Every run.
    medians : list of dict
        The runs of each measurement made one.
    checks : list of Check
    theory : dict
        Figures that the results are held against.
    seconds : float
        How long it took.
    """

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    medians: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    theory: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def check(self, what: str, limit: str, value: float, met: bool) -> None:
        """Add one."""
        self.checks.append(Check(what, limit, float(value), bool(met)))

    def check_delivery(self) -> None:
        """Every element of every run arrived identical."""
        lost = sum(not each["delivered"] for each in self.rows)
        self.check(DELIVERY, "0", lost, lost == 0)

    def summarise(self, *keys: str) -> None:
        """Make a median of the runs that agree in `keys`; numbers are medians, `delivered` holds for all of them."""
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
        """One number of the medians."""
        return median(self.medians, value, **where)


def median(rows: Iterable[Row], value: str, **where: Any) -> float:
    """The median of a column over the rows where others are as given; NaN without such rows."""
    found = [float(r[value]) for r in rows if all(r[key] == wanted for key, wanted in where.items())]
    return statistics.median(found) if found else float("nan")


def row(run: int, system: str, measured: Measured, **keys: Any) -> Row:
    """A run as a row of the results."""
    each = measured.each_seconds
    return {
        **keys,
        "system": system,
        "run": run,
        "elements": measured.elements,
        "nbytes": measured.nbytes,
        "seconds": measured.seconds,
        "share": measured.share,
        "frames": measured.frames,
        "retransmitted": measured.retransmitted,
        "spurious": measured.spurious,
        "lost": measured.lost.in_network,
        "refused_at_sender": measured.lost.links,
        "slowest_over_fastest": max(each) / min(each),
        "delivered": measured.delivered,
        "load": measured.load,
    }


def write(results: Results, directory: Path, bench: Bench) -> list[Path]:
    """Write JSON, CSV and the picture.

    Returns
    -------
    list of Path
    """
    from aiflow.cli.outcome import jsonable
    from aiflow.lab import plots

    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{results.name}.{suffix}" for suffix in ("json", "csv", "png")]
    document = {
        "experiment": results.name,
        "title": results.title,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": results.seconds,
        "quick": bench.quick,
        "repeats": bench.repeats,
        "rate_bps": bench.rate_bps,
        "faults": bench.faults,
        "machine": _machine(),
        "checks": [vars(check) for check in results.checks],
        "theory": results.theory,
        "medians": results.medians,
        "runs": results.rows,
    }
    paths[0].write_text(json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n")
    with paths[1].open("w", newline="") as stream:
        columns = list(dict.fromkeys(name for each in results.rows for name in each))
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(results.rows)
    plots.draw(results, paths[2])
    return paths


def _machine() -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "load": os.getloadavg()[0],
    }
