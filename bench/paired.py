"""Two built trees in turn: the benchmark's slice through aiflow of one, then of the other, and the ratio of each pair.

    python bench/paired.py TREE_A TREE_B [--pairs N] [--case memif-16384]

What the machine does meanwhile meets both runs of a pair alike, or shows as a wide interval. A ratio is B ÷ A, of
bytes a second: above 1 B is faster. Each run is bench/test_transfer.py of this tree in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent


def run(tree: Path, case: str, rounds: int) -> dict[str, Any]:
    """One case with the package of `tree`: what bench/README.md says of the JSON file's ``extra_info``."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out.json"
        node = f"{BENCH / 'test_transfer.py'}::test_transfer[{case}]"
        options = ["--benchmark-enable", "--no-testpmd", f"--rounds={rounds}", f"--benchmark-json={out}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *options, node],
            cwd=tree,  # the first place where `python -m` looks for aiflow
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            raise SystemExit(f"{tree}: the benchmark failed\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        (benchmark,) = json.loads(out.read_text())["benchmarks"]
    extra: dict[str, Any] = benchmark["extra_info"]
    if Path(extra["package"]) != tree / "aiflow":
        raise SystemExit(f"{extra['package']} was measured in place of {tree}/aiflow: build that tree in place")
    return extra


def interval(values: list[float]) -> tuple[float, float] | None:
    """Where the median lies, 19 times of 20, whatever the distribution: order statistics; None for fewer than 6."""
    n, below, k = len(values), 0.0, 0
    while (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[n - k]) if k else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE", help="a checkout, built in place")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15, help="slices measured a run, after four that warm up")
    parser.add_argument("--case", default="memif-16384", help="as in the benchmark's table")
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    ratios: list[float] = []
    rates: tuple[list[float], list[float]] = [], []
    for pair in range(options.pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        got = {which: run(trees[which], options.case, options.rounds) for which in order}
        for which in order:
            rates[which].append(got[which]["gb_per_s"])
        ratios.append(got[1]["gb_per_s"] / got[0]["gb_per_s"])
        print(
            f"pair {pair + 1:3}: A {got[0]['gb_per_s']:.3f} GB/s, B {got[1]['gb_per_s']:.3f} GB/s, "
            f"ratio {ratios[-1]:.3f}; others {got[0]['others']:.0%} and {got[1]['others']:.0%}",
            flush=True,
        )
    for label, tree, seen in zip("AB", trees, rates, strict=True):
        print(f"{label} {tree}: median {statistics.median(seen):.3f} GB/s")
    span = interval(ratios)
    print(
        f"B ÷ A: median {statistics.median(ratios):.3f}, "
        + (f"95 % interval {span[0]:.3f} to {span[1]:.3f}" if span else "too few pairs for an interval")
    )


if __name__ == "__main__":
    main()
