"""Run contestants in turn from the command line, to tune one of them.

    python bench/side_by_side.py demo aiflow "pyzmq ipc" memcpy --rounds 9
    python bench/side_by_side.py latency aiflow iceoryx2 --polling

LOAD is demo, huge, a number of bytes (small elements by the batch call), or latency (1 KB there and back).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Sequence

from contest import BusyMeter, Conversation, Link, take_turns
from loads import Load, demo, huge, rows
from peers import CONTESTANTS, missing

LATENCY_BYTES = 1024
CALLS = 1000  # a round
WARM_UP = 1
ROWS_BYTES = {64: 12_800_000, 512: 51_200_000, 4096: 1 << 27}  # bytes of a batch, by the size of its elements
HUGE_BYTES = 1 << 27


def load_of(name: str) -> Load:
    """Return the load of a name."""
    if name == "demo":
        return demo()
    if name == "huge":
        return huge(HUGE_BYTES)
    return rows(int(name), ROWS_BYTES.get(int(name), 1 << 26))


def talk(names: Sequence[str], polling: bool, rounds: int, cores: tuple[int, int]) -> None:
    """Make calls of each in turn."""
    with contextlib.ExitStack() as life:
        pairs = [life.enter_context(Conversation(name, LATENCY_BYTES, polling, cores)) for name in names]
        for number in range(1 + rounds):
            for pair in pairs:
                if number == 1:
                    pair.rounds.clear()
                pair.round(CALLS)
        for pair in pairs:
            p50, p99 = (statistics.median(one.quantile(share) for one in pair.rounds) * 1e6 for share in (0.5, 0.99))
            cpu = statistics.median(one.cpu for one in pair.rounds) / CALLS * 1e6
            print(f"{pair.name:20} p50 {p50:8.1f} µs, p99 {p99:8.1f} µs, {cpu:7.1f} µs of CPU per call")


def carry(names: Sequence[str], load: Load, rounds: int, cores: tuple[int, int]) -> None:
    """Send slices of each in turn."""
    with contextlib.ExitStack() as life:
        links = [life.enter_context(Link(name, load, cores)) for name in names]
        busy = BusyMeter([pid for link in links for pid in link.pids])
        take_turns(links, rounds, WARM_UP)
        others = busy.others()
        for link in links:
            seconds = statistics.median(one.seconds for one in link.rounds)
            source, sink = (
                statistics.median(getattr(one, f"cpu_{end}") for one in link.rounds) for end in ("source", "sink")
            )
            gb = load.nbytes / 1e9
            print(
                f"{link.name:20} {gb / seconds:7.3f} GB/s {len(load.sizes) / seconds / 1e6:8.4f} M elements/s, "
                f"CPU {(source + sink) / gb:6.3f} s/GB ({source / gb:.3f} + {sink / gb:.3f}), "
                f"idle {link.idle(1):.2%}"
            )
        print(f"others: {others:.0%} of the machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load")
    parser.add_argument("contestants", nargs="*", default=["aiflow"], help=", ".join(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--polling", action="store_true", help="latency: both sides poll")
    options = parser.parse_args()
    for name in options.contestants:
        if name not in CONTESTANTS:
            parser.error(f"{name!r} is not one of {', '.join(CONTESTANTS)}")
        if why := missing(name):
            parser.error(f"{name}: {why}")
    numbers = sorted(os.sched_getaffinity(0))
    cores = numbers[0], numbers[1 % len(numbers)]
    if options.load == "latency":
        talk(options.contestants, options.polling, options.rounds, cores)
    else:
        carry(options.contestants, load_of(options.load), options.rounds, cores)


if __name__ == "__main__":
    main()
