"""Print Markdown tables from the JSON file of a run: for docs/performance.md, and for the end of the run.

python bench/tables.py bench-results/bench.json > bench-results/tables.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

BUSY = 0.05  # share of the machine used by other processes that the table mentions

Info = dict[str, Any]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---'] + ['--:'] * (len(head) - 1))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _ratio(ratio: Info) -> str:
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} – {ratio['high']:.2f})"


def _rate(per_s: float) -> str:
    return f"{per_s / 1e6:.2f} M/s" if per_s >= 1e5 else f"{per_s:,.0f}/s"


def _carry(rows: list[Info]) -> Iterator[str]:
    for load in dict.fromkeys(row["load"] for row in rows):
        of_load = [row for row in rows if row["load"] == load]
        first = of_load[0]
        many = first["slice_elements"] > 1
        yield f"### {load}: {first['slice_elements']:,} elements, {first['slice_bytes'] / 1e6:.0f} MB a slice"
        yield ""
        rates = ["GB/s", "elements"] if many else ["GB/s"]
        head = ["beside", *rates, *(f"aiflow {rate}" for rate in rates)]
        yield from _table(
            [*head, "aiflow ÷ it (95 %)", "its CPU s/GB", "aiflow CPU s/GB", "its CPU ÷ ours (95 %)", "others"],
            (
                [
                    row["name"],
                    f"{row['gb_per_s']:.2f}",
                    *([_rate(row["elements_per_s"])] if many else []),
                    f"{row['aiflow_gb_per_s']:.2f}",
                    *([_rate(row["aiflow_elements_per_s"])] if many else []),
                    _ratio(row["ratios"]["speed"]),
                    f"{row['cpu_s_per_gb']:.2f}",
                    f"{row['aiflow_cpu_s_per_gb']:.2f}",
                    _ratio(row["ratios"]["cpu"]),
                    f"{row['others']:.0%}",
                ]
                for row in of_load
            ),
        )


def _talk(rows: list[Info]) -> Iterator[str]:
    for polling in (True, False):
        of_kind = [row for row in rows if row["polling"] == polling]
        if not of_kind:
            continue
        yield f"### 1 KB there and back, {'both sides poll' if polling else 'both sides sleep when idle'}"
        yield ""
        yield from _table(
            ["beside", "p50 µs", "p99 µs", "aiflow p50 µs", "aiflow p99 µs", "aiflow ÷ it, p50", "aiflow ÷ it, p99",
             "its CPU µs a call", "aiflow CPU µs a call", "others"],
            (
                [
                    row["name"],
                    *(f"{row[key] * 1e6:.1f}" for key in ("p50", "p99", "aiflow_p50", "aiflow_p99")),
                    f"**{1 / row['ratios']['p50']['median']:.2f}**",
                    f"**{1 / row['p99_ratio']['median']:.2f}**",
                    *(f"{row[key] * 1e6:.0f}" for key in ("cpu_s_per_call", "aiflow_cpu_s_per_call")),
                    f"{row['others']:.0%}",
                ]
                for row in of_kind
            ),
        )  # fmt: skip


def _idle(rows: list[Info]) -> Iterator[str]:
    for row in rows:
        yield "### Idle pair, both processes, % of one CPU"
        yield ""
        names = row["shares"]
        yield from _table(["", *names], [["idle", *(f"{share:.2%}" for share in names.values())]])


def _transfer(rows: list[Info]) -> Iterator[str]:
    def cell(value: float | None, form: str) -> str:
        return "—" if value is None else format(value, form)

    yield "### Beside testpmd (C, looks at no payload) and a paired memcpy"
    yield ""
    yield from _table(
        ["case", "driver", "copies", "GB/s", "÷ memcpy", "frames/s", "testpmd", "÷ testpmd", "others"],
        (
            [
                row["name"],
                row["driver"],
                str(row["copies"]),
                cell(row["gb_per_s"], ".2f"),
                cell(row["of_memcpy"], ".2f"),
                f"{row['frames_per_s']:,.0f}",
                cell(row["testpmd_frames_per_s"], ",.0f"),
                cell(row["of_testpmd"], ".2f"),
                f"{row['others']:.0%}",
            ]
            for row in rows
        ),
    )


def _versions(infos: list[Info]) -> Iterator[str]:
    versions = {}
    for info in infos:
        if "about" in info:
            versions[info["name"]] = info["about"]["version"]
        if "aiflow_about" in info:
            about = info["aiflow_about"]
            versions["aiflow"] = f"{about['version']}, {about['driver']}, {about['memory']}"
    if versions:
        yield "Versions: " + "; ".join(f"{name} {version}" for name, version in versions.items()) + "."
        yield ""


def markdown(infos: list[Info]) -> str:
    """Return all tables for these cases (the `extra_info` of each)."""
    kinds = {"carry": _carry, "talk": _talk, "idle": _idle, "transfer": _transfer}
    lines: list[str] = []
    for kind, lines_of in kinds.items():
        if rows := [info for info in infos if info.get("kind") == kind]:
            lines += lines_of(rows)
    lines += _versions(infos)
    if busy := sorted({info["others"] for info in infos if info.get("others", 0) > BUSY}):
        lines += [
            f"Others used up to {busy[-1]:.0%} of the machine: do not quote cases with more than {BUSY:.0%}.",
            "",
        ]
    return "\n".join(lines)


def infos_of(run: Info) -> list[Info]:
    """Return the `extra_info` of every case of a pytest-benchmark JSON file."""
    return [benchmark["extra_info"] for benchmark in run["benchmarks"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="JSON file of a run")
    run = json.loads(parser.parse_args().run.read_text())
    cpu = run["machine_info"]["cpu"].get("brand_raw", "")
    print(f"Measured {run['datetime'][:16]} UTC on {run['machine_info']['node']}, {cpu}.\n")
    print(markdown(infos_of(run)))


if __name__ == "__main__":
    main()
