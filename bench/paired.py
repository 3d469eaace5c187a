"""Compare two built trees: send the benchmark's slice with aiflow of each tree in turn, and print the ratio.

    python bench/paired.py TREE_A TREE_B [--pairs N] [--rows BYTES | --talk BYTES] [--frame BYTES]

A pair is a sender and a receiver of each tree, all open at the same time. They take turns of two slices, so that other
load on the machine affects both equally. With --rows a slice has the same number of bytes in rows of that size, sent by
`send_batch`. With --frame the Ethernet frames have that size. With --talk it is 2000 round trips of that size, with
both sides polling, and the trees are open one after the other. A tree paired with itself shows the noise of the
machine. The result of a pair is the median of the ratios of its slices. Each pair starts new processes, because the
placement in memory matters. Ratios are B ÷ A of bytes, or round trips, per second: above 1, B is faster. Each tree is
driven by the modules in its own bench/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

WARM_UP = 2  # turns
CALLS = 2000  # round trips instead of a slice: the first dozens are cold


class Side:
    """The two ends of a case, with the package of `tree`, in separate processes."""

    def __init__(self, tree: Path, options: argparse.Namespace) -> None:
        sizes = ["--rows", str(options.rows), "--talk", str(options.talk), "--frame", str(options.frame)]
        self._process = subprocess.Popen(  # -P: the modules beside this file are the tree's own
            [sys.executable, "-P", __file__, "--serve", options.driver, *sizes],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "bench")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        package = self._answer()["package"]
        if Path(package) != tree / "aiflow":
            raise SystemExit(f"{package} would be measured in place of {tree}/aiflow: build that tree in place")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("one side has failed; see its error above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rate(self) -> float:
        """Send a slice. Return GB/s, or round trips per millisecond."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)
        return float(self._answer()["rate"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


def serve_calls(nbytes: int) -> None:
    """Run the calling process of a side: `CALLS` round trips for each line of standard input."""
    import numpy as np

    import aiflow

    cores = sorted(os.sched_getaffinity(0))
    name = f"paired-{os.getpid()}"
    turns, turn = os.pipe()  # an end of file ends the answerer
    if not os.fork():
        os.close(turn)
        os.sched_setaffinity(0, {cores[-1]})
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with contextlib.suppress(aiflow.AiflowError), _both(f"local:{name}-back", f"local:{name}") as (tx, rx):
            while os.read(turns, 1):
                for _ in range(CALLS):
                    with rx.recv(60) as time_slice:
                        tx.send([time_slice[0].array], timeout=60)
        os._exit(0)
    os.sched_setaffinity(0, {cores[0]})
    call = np.ones(nbytes, np.uint8)
    with _both(f"local:{name}", f"local:{name}-back") as (tx, rx):
        print(json.dumps({"package": os.path.dirname(os.path.realpath(aiflow.__file__))}), flush=True)
        for _ in sys.stdin:
            os.write(turn, b"t")
            begin = time.perf_counter()
            for _ in range(CALLS):
                tx.send([call], timeout=60)
                with rx.recv(60) as answer:
                    assert answer.nbytes == nbytes
            print(json.dumps({"rate": CALLS / (time.perf_counter() - begin) / 1e3}), flush=True)


@contextlib.contextmanager
def _both(out: str, back: str) -> Iterator[tuple[Any, Any]]:
    import aiflow

    with aiflow.Receiver(back, memory="64MiB", idle="spin") as rx, aiflow.Sender(out, idle="spin") as tx:
        yield tx, rx


def serve(driver: str, row_bytes: int, frame_bytes: int) -> None:
    """Run the sending process of a side: a slice for each line of standard input, verified afterwards."""
    import numpy as np
    from transfer import ROTATION, Case, Transfer, make_slices, versions

    class Rows(Transfer):
        def send(self) -> None:
            (rows,) = self.slices[self._sent % ROTATION]
            self.reports.append(self.tx.send_batch("rows", rows, timeout=60))
            self._sent += 1
            self._unverified = True

    cores = sorted(os.sched_getaffinity(0))
    case = Case(driver, frame_bytes or None)
    if row_bytes:
        generator = np.random.default_rng(1)
        shape = (1 << 27) // row_bytes, row_bytes
        slices = [[generator.integers(0, 256, shape, np.uint8)] for _ in range(ROTATION)]
        of_case = Rows(case, slices, (cores[0], cores[-1]))
    else:
        of_case = Transfer(case, make_slices(512), (cores[0], cores[-1]))
    with of_case as transfer:
        print(json.dumps(versions()), flush=True)
        for _ in sys.stdin:
            transfer.prepare()
            transfer.send()
            print(json.dumps({"rate": transfer.nbytes / transfer.reports[-1].seconds / 1e9}), flush=True)
        transfer.verify()


def interval(values: list[float]) -> str:
    """Return the 95 % interval of the median, for any distribution, from order statistics."""
    n, below, k = len(values), 0.0, 0
    while (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    ordered = sorted(values)
    return f"95 % interval {ordered[k - 1]:.3f} to {ordered[n - k]:.3f}" if k else "too few pairs for an interval"


def together(trees: tuple[Path, Path], pair: int, options: argparse.Namespace) -> list[tuple[float, ...]]:
    """Return the rates of both trees, open at the same time, in turns.

    A turn is two slices: the second finds its tree's bytes in the caches, and is faster.
    """
    first, second = trees if pair % 2 else trees[::-1]
    with Side(first, options) as one, Side(second, options) as other:
        rates = [
            tuple(statistics.harmonic_mean([side.rate(), side.rate()]) for side in (one, other))
            for _ in range(WARM_UP + options.slices)
        ]
    return rates if pair % 2 else [turn[::-1] for turn in rates]


def apart(trees: tuple[Path, Path], pair: int, options: argparse.Namespace) -> list[tuple[float, ...]]:
    """Return the rates of both trees, one after the other: an idle loop that looks around would disturb the other."""
    rates: dict[int, list[float]] = {}
    for which in (0, 1) if pair % 2 else (1, 0):
        with Side(trees[which], options) as side:
            rates[which] = [side.rate() for _ in range(WARM_UP + options.slices)]
    return list(zip(rates[0], rates[1], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, metavar="TREE", help="two checkouts, built in place")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--slices", type=int, default=20, help="turns of each side in a pair, after two for warm-up")
    parser.add_argument("--driver", default="memif", help="memif or vhost")
    parser.add_argument("--rows", type=int, default=0, metavar="BYTES", help="rows of this size instead of images")
    parser.add_argument("--frame", type=int, default=0, metavar="BYTES", help="Ethernet frames of this size")
    parser.add_argument("--talk", type=int, default=0, metavar="BYTES", help="polled round trips of this size")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve_calls(options.talk) if options.talk else serve(options.serve, options.rows, options.frame)
    if len(options.trees) != 2:
        parser.error("give two trees")
    a, b = (tree.resolve() for tree in options.trees)
    ratios, unit = [], "calls/ms" if options.talk else "GB/s"
    for pair in range(options.pairs):
        rates = (apart if options.talk else together)((a, b), pair, options)[WARM_UP:]
        ratios.append(statistics.median(of_b / of_a for of_a, of_b in rates))
        of_a, of_b = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"pair {pair + 1:3}: A {of_a:.3f} {unit}, B {of_b:.3f} {unit}, ratio {ratios[-1]:.3f}", flush=True)
    print(f"B ÷ A: median {statistics.median(ratios):.3f}, {interval(ratios)}")
    return None


if __name__ == "__main__":
    main()
