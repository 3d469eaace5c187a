"""Common parts of the experiments: images, repeated runs, rows of results, and result files."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiflow._terminal.text import jsonable
from aiflow.lab import plots
from aiflow.lab.elements import Elements
from aiflow.lab.results import Results, Row
from aiflow.lab.trial import Measured

__all__ = ["Bar", "Bench", "row", "write"]


class Bar(Protocol):
    """A progress bar."""

    def show(self, done: float, total: float | None = None) -> None:
        """Move the bar."""


class _NoBar:
    def show(self, done: float, total: float | None = None) -> None:
        pass


@contextlib.contextmanager
def _silent(text: str, total: int) -> Any:
    del text, total
    yield _NoBar()


@dataclass(frozen=True)
class Bench:
    """Parameters of the experiments.

    Attributes
    ----------
    images : Elements
        Photographs.
    rate_bps : int
        Rate of a port.
    repeats : int
        Runs of each measurement. They are interleaved: all systems once per round.
    quick : bool
        A few small slices, as a functional check; the figures mean little.
    bar : callable
        Returns a progress bar for a text and a total.
    faults : dict, optional
        Faults to inject at aiflow's senders (`aiflow.config.FAULTS`).
    """

    images: Elements
    rate_bps: int = 100_000_000
    repeats: int = 3
    quick: bool = False
    bar: Callable[[str, int], AbstractContextManager[Bar]] = _silent
    faults: dict[str, Any] | None = None

    def cut(self, nbytes: int) -> Elements:
        """Return the images, each cut to this number of bytes."""
        return Elements(self.images.directory, self.images.names, self.images.sizes, nbytes)


def row(run: int, system: str, measured: Measured, **keys: Any) -> Row:
    """Return a run as a row of the results."""
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
    """Write the JSON, CSV and PNG files.

    Returns
    -------
    list of Path
    """
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
