"""Plot a run: GB/s and CPU seconds of all peers by load, latencies, and the cost of an idle pair.

python bench/pictures.py bench-results/bench.json bench-results/bench.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from tables import Info, infos_of

mpl.use("Agg")

import matplotlib.pyplot as plt

OURS, THEIRS = "tab:red", "tab:gray"
COLUMNS = 3


def _ours(rows: list[Info], key: str) -> float:
    """Return the figure of aiflow, over all peers that it was measured with."""
    return statistics.median(row[f"aiflow_{key}"] for row in rows)


def _bars(axes: Any, values: dict[str, float], title: str, unit: str, form: str) -> None:
    names = sorted(values, key=lambda name: values[name])
    colours = [OURS if name.startswith("aiflow") else THEIRS for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(bars, fmt=form, padding=2, fontsize="small")
    axes.set(title=title, xlabel=unit)
    axes.margins(x=0.18)


def _panels(infos: list[Info]) -> list[tuple[dict[str, float], str, str, str]]:
    """Yield values by name, title, unit and format of each set of bars."""
    panels = []
    carried = [info for info in infos if info.get("kind") == "carry"]
    for load in dict.fromkeys(info["load"] for info in carried):
        rows = [info for info in carried if info["load"] == load]
        small = rows[0]["slice_elements"] > 1000
        key, unit, scale = ("elements_per_s", "M elements/s", 1e-6) if small else ("gb_per_s", "GB/s", 1)
        values = {row["name"]: row[key] * scale for row in rows}
        panels.append(({**values, "aiflow": _ours(rows, key) * scale}, load, unit, "%.2f"))
        cpu = {row["name"]: row["cpu_s_per_gb"] for row in rows}
        if not small:
            panels.append(({**cpu, "aiflow": _ours(rows, "cpu_s_per_gb")}, load, "CPU s/GB, both sides", "%.2f"))
    talks = [info for info in infos if info.get("kind") == "talk"]
    for polling in (True, False):
        rows = [info for info in talks if info["polling"] == polling]
        for key in ("p50", "p99") if rows else ():
            values = {row["name"]: row[key] * 1e6 for row in rows}
            how = "both sides poll" if polling else "idle back-off"
            panels.append(
                ({**values, "aiflow": _ours(rows, key) * 1e6}, f"1 KB there and back, {how}", f"µs, {key}", "%.0f")
            )
    for info in infos:
        if info.get("kind") == "idle":
            values = {name: 100 * share for name, share in info["shares"].items()}
            panels.append((values, "idle pair", "% of one CPU", "%.2f"))
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="JSON file of a run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args()
    panels = _panels(infos_of(json.loads(options.run.read_text())))
    if not panels:
        print("no cases beside peers in this run: no picture")
        return
    lines = -(-len(panels) // COLUMNS)
    figure, grid = plt.subplots(lines, COLUMNS, figsize=(15, 3.4 * lines), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _bars(axes, *panel)
    figure.savefig(options.picture, dpi=100)


if __name__ == "__main__":
    main()
