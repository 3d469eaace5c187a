"""Formatting of figures: sizes, rates, the rows of a port table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_FEW = 20


def bytes_text(nbytes: float) -> str:
    """Format a number of bytes in powers of 1000: ``137.0 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"


def count(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def first_few(lines: Iterable[str]) -> list[str]:
    """Return the first lines of a list, and a line with the number of the others."""
    lines = list(lines)
    if len(lines) <= _FEW:
        return lines
    return [*lines[:_FEW], f"{len(lines) - _FEW:,} more; --json lists them all"]


def rate_text(bps: float) -> str:
    """Format bits per second: ``9.60 Gbit/s``."""
    if bps >= 1e9:
        return f"{bps / 1e9:.2f} Gbit/s"
    return f"{bps / 1e6:.1f} Mbit/s"


def cold_start(slices: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether one of the first three slices was much slower than most: it used new memory."""
    rates = [row["goodput_bps"] for row in slices]
    return len(rates) > 3 and min(rates[:3]) < 0.5 * statistics.median(rates)


def port_rows(table: Iterable[Any]) -> list[dict[str, Any]]:
    """Convert a port table, or the ports of a report, to dicts with name, driver, frames and nbytes of each port."""
    return [{name: getattr(row, name) for name in ("name", "driver", "frames", "nbytes")} for row in table]


def print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the traffic of each port. Without rows, print nothing."""
    if not rows:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading, justify in (
        ("port", "left"),
        ("driver", "left"),
        ("frames", "right"),
        ("bytes", "right"),
        ("", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    total = sum(row["nbytes"] for row in rows) or 1
    for row in rows:
        share = f"{100 * row['nbytes'] / total:.0f} %"
        table.add_row(Text(row["name"]), row["driver"], f"{row['frames']:,}", f"{row['nbytes']:,}", share)
    console.print(table, soft_wrap=False)
