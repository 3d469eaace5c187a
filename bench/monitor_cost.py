"""The cost of monitor and scheduler: slices with both on and both off, in turn, over two equal local paths.

    python bench/monitor_cost.py [--rounds 41] [--images 256]

Off is `policy="pull"` without samples. On is `policy="score"` with a sample every 0.1 s, and one reading of the port
table per slice. Each round sends one slice over either path, in alternating order. The result is the median of the
rounds' ratios, with its 95 % interval by resampling. Other load on the machine widens the interval; that of the sending
process's CPU time is less affected.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from receiving import ReceiverProcess
from transfer import ROTATION, make_slices, pinned

import aiflow

ON: dict[str, Any] = {"policy": "score", "link_speed": "400gbit", "monitor_interval": 0.1}
OFF: dict[str, Any] = {"policy": "pull", "monitor_interval": 0}


def main() -> None:
    """Run the rounds and print the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    slices = make_slices(arguments.images)
    with ExitStack() as life:
        life.enter_context(pinned(cores[0]))
        ends = []
        for label, options in (("on", ON), ("off", OFF)):
            name = f"local:cost-{label}-{os.getpid()}"
            remote = life.enter_context(ReceiverProcess(name, cores[1 % len(cores)]))
            ends.append((remote, life.enter_context(aiflow.Sender(name, **options)), label == "on"))

        def timed(end: tuple[ReceiverProcess, aiflow.Sender, bool], number: int) -> tuple[float, float]:
            remote, tx, look = end
            began = time.process_time()
            report = tx.send(slices[number % ROTATION], timeout=60)
            if look:
                assert len(tx.port_table.as_array()) == 1
            cpu = time.process_time() - began
            remote.answer()  # the slice is verified while no clock runs
            return float(report.seconds), cpu

        for number in range(ROTATION):
            for end in ends:
                timed(end, number)
        ratios: list[tuple[float, float]] = []
        for number in range(arguments.rounds):
            order = (0, 1) if number % 2 else (1, 0)
            took = {at: timed(ends[at], number) for at in order}
            ratios.append((took[0][0] / took[1][0], took[0][1] / took[1][1]))
    random = np.random.default_rng(1)
    for what, values in zip(("time", "CPU time"), zip(*ratios, strict=True), strict=True):
        medians = np.median(random.choice(values, (2000, len(values))), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        print(f"{what}, on / off: {statistics.median(values):.4f} (95 %: {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
