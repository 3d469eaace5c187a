"""Compare two runs by the ratios of their cases, measured in pairs, with an interval for each median.

    bench/compare BASELINE.json NEW.json

It exits with 1 and lists the cases if a ratio of NEW is worse: if the upper end of its interval is below the lower end
of the baseline's by more than the tolerance. Absolute times are not compared. pytest-benchmark compares them, but they
are meaningless on another day or machine.

Rates and latencies are judged only if no other process used the machine in both runs. A neighbour slows two sides that
need their cores at the same time more than a single copying thread. CPU seconds are always judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 0.05
BUSY = 0.05  # share of the machine used by other processes
ALWAYS = frozenset({"cpu"})  # ratios that other processes do not affect
WORSE, BETTER, SAME, BUSY_MACHINE, NEW_ONLY, GONE = "WORSE", "better", "same", "busy", "new", "gone"

Info = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Verdict on one ratio of one case. `base` and `new` are its medians and intervals, None if a run lacks it."""

    case: str
    ratio: str
    base: Info | None
    new: Info | None
    state: str

    @property
    def change(self) -> float | None:
        """Change of the median, relative to the baseline."""
        return self.new["median"] / self.base["median"] - 1 if self.base and self.new else None


def _ratios(run: Info) -> dict[tuple[str, str], tuple[Info, float]]:
    return {
        (benchmark["name"], name): (ratio, benchmark["extra_info"].get("others", 0.0))
        for benchmark in run["benchmarks"]
        for name, ratio in benchmark["extra_info"].get("ratios", {}).items()
    }


def _state(name: str, base: Info, new: Info, others: float, tolerance: float) -> str:
    if others > BUSY and name not in ALWAYS:
        return BUSY_MACHINE
    if new["high"] < (1 - tolerance) * base["low"]:
        return WORSE
    if base["high"] < (1 - tolerance) * new["low"]:
        return BETTER
    return SAME


def compare(baseline: Info, new: Info, tolerance: float = TOLERANCE) -> list[Verdict]:
    """Return a verdict on each ratio of either run.

    Parameters
    ----------
    baseline, new : dict
        pytest-benchmark's JSON files, parsed.
    tolerance : float
        Minimum distance of the intervals, relative to the ratio.
    """
    old, now = _ratios(baseline), _ratios(new)
    verdicts = []
    for key in [*old, *(key for key in now if key not in old)]:
        base_ratio, base_others = old.get(key, (None, 0.0))
        new_ratio, new_others = now.get(key, (None, 0.0))
        if base_ratio is None or new_ratio is None:
            state = GONE if new_ratio is None else NEW_ONLY
        else:
            state = _state(key[1], base_ratio, new_ratio, max(base_others, new_others), tolerance)
        verdicts.append(Verdict(*key, base_ratio, new_ratio, state))
    return verdicts


def _cell(ratio: Info | None) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f})" if ratio else "—"


def lines(verdicts: list[Verdict]) -> Iterator[str]:
    """Yield the lines of the table, worse ratios first."""
    width = max(len(verdict.case) for verdict in verdicts)
    yield f"{'case':{width}} {'ratio':7} {'baseline':22} {'new':22} {'change':>7}"
    for verdict in sorted(verdicts, key=lambda verdict: verdict.state != WORSE):
        change = "" if verdict.change is None else f"{verdict.change:+.1%}"
        cells = f"{_cell(verdict.base):22} {_cell(verdict.new):22}"
        yield f"{verdict.case:{width}} {verdict.ratio:7} {cells} {change:>7}  {verdict.state}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, metavar="BASELINE.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"share (default {TOLERANCE})")
    options = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in (options.baseline, options.new)]
    verdicts = compare(*runs, options.tolerance)
    judged = [verdict for verdict in verdicts if verdict.state in (WORSE, BETTER, SAME)]
    if verdicts:
        print("\n".join(lines(verdicts)))
    if not judged:
        print("Nothing could be judged: the runs have no ratio in common, or the machine was busy in both.")
        return 2
    worse = [verdict for verdict in judged if verdict.state == WORSE]
    print(
        f"{len(judged)} ratios judged, {len(worse)} worse by more than {options.tolerance:.0%} beyond their intervals."
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
