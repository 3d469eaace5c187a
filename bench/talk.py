"""Round trips beside pyzmq, a TCP socket and a bare burst loop, and the CPU time of an idle pair, against limits.

    python bench/talk.py [asleep spaced polled idle] [--shared] [--rounds 15] [--seconds 60] [--out bench-results]

A call is 1 KB there and back over `local:`, between two processes with a core each. All pairs of a case are open at the
same time and take turns, round by round, in changing order. In `asleep` calls follow each other, and every pair sleeps
while it waits, as its users do. In `spaced` a pause of 1 to 5 ms is drawn before each call, so that both sides sleep
when it comes. In `polled` all sides poll, and the yardstick is `bare_loop.c`. `idle` counts the CPU time of all threads
of a connected pair without work. Ratios are quantiles of all calls, ours ÷ theirs. Their 95 % intervals come from
rounds drawn with replacement. With `--shared` each of our processes has both directions on the same `Ports`, in place
of a port for each. The program ends with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contest import BusyMeter, Conversation
from intervals import Median, of_quantiles
from peers import missing

NBYTES = 1024
WARM_UP = 2  # rounds
IDLE_SETTLE_S = 2.0
IDLE_LIMIT = 0.002  # of a core
BUSY = 0.05  # share of the machine used by others that causes a warning
OURS, OURS_SHARED = "aiflow", "aiflow, shared ports"


@dataclass(frozen=True)
class Case:
    """How calls are made, and the limit of ours ÷ theirs for each peer and quantile."""

    calls: int
    pause: tuple[float, float]
    polling: bool
    limits: dict[tuple[str, float], float]


LIMITS_ASLEEP = {
    ("pyzmq ipc", 0.5): 0.85,
    ("pyzmq ipc", 0.99): 1.0,
    ("TCP sockets", 0.5): 1.25,
}
CASES = {
    "asleep": Case(1000, (0.0, 0.0), False, LIMITS_ASLEEP),
    "spaced": Case(200, (0.001, 0.005), False, LIMITS_ASLEEP),
    "polled": Case(1000, (0.0, 0.0), True, {("bare loop, four copies", 0.5): 2.0}),
}


@dataclass(frozen=True)
class Outcome:
    """One ratio, ours ÷ theirs, with its interval and limit."""

    case: str
    what: str
    ours: float
    theirs: float
    ratio: Median
    limit: float

    @property
    def met(self) -> bool:
        """Whether the ratio is at or below its limit."""
        return self.ratio.median <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.case:8} {self.what:31} {self.ours * 1e6:8.1f} ÷ {self.theirs * 1e6:8.1f} µs = "
            f"{self.ratio.median:6.3f} ({self.ratio.low:.3f} to {self.ratio.high:.3f}), limit {self.limit}: "
            f"{'met' if self.met else 'MISSED'}"
        )


def converse(name: str, case: Case, ours: str, rounds: int, cores: tuple[int, int]) -> list[Outcome]:
    """Run the rounds of a case and return a line for each limit."""
    peers = list(dict.fromkeys(peer for peer, _ in case.limits))
    for peer in [peer for peer in peers if missing(peer)]:
        print(f"{peer} is left out: {missing(peer)}", file=sys.stderr)
        peers.remove(peer)
    with contextlib.ExitStack() as life:
        pairs = {peer: life.enter_context(Conversation(peer, NBYTES, case.polling, cores)) for peer in (ours, *peers)}
        busy = BusyMeter([pid for pair in pairs.values() for pid in pair.pids])
        for number in range(WARM_UP + rounds):
            if number == WARM_UP:
                for pair in pairs.values():
                    pair.rounds.clear()
            for pair in pairs.values() if number % 2 else reversed(pairs.values()):
                pair.round(case.calls, case.pause)
        others = busy.others()
        seconds = {peer: [one.seconds for one in pair.rounds] for peer, pair in pairs.items()}
        cpu = {peer: sum(one.cpu for one in pair.rounds) / rounds / case.calls for peer, pair in pairs.items()}
    for peer, used in cpu.items():
        print(f"{name:8} {peer:31} {used * 1e6:8.1f} µs of CPU a call", flush=True)
    if others > BUSY:
        print(f"{name:8} others used {others:.0%} of the machine: do not quote these figures", flush=True)
    found = []
    for (peer, share), limit in case.limits.items():
        if peer in peers:
            times = of_quantiles(seconds[ours], seconds[peer], share)
            found.append(Outcome(name, f"p{share * 100:g} beside {peer}", *times, limit))
    return found


def idle(ours: str, seconds: float, cores: tuple[int, int]) -> dict[str, Any]:
    """Return the share of a core that an idle pair of ours takes, with its limit."""
    with Conversation(ours, NBYTES, False, cores) as pair:
        pair.round(100)
        time.sleep(IDLE_SETTLE_S)
        share = pair.idle(seconds)
    met = share < IDLE_LIMIT
    print(f"idle     {share:.3%} of a core over {seconds:.0f} s, limit {IDLE_LIMIT:.1%}: {'met' if met else 'MISSED'}")
    return {"share": share, "seconds": seconds, "limit": IDLE_LIMIT, "met": met}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: {', '.join(CASES)} and idle")
    parser.add_argument("--shared", action="store_true", help="our directions share their ports")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="of idleness")
    parser.add_argument("--out", type=Path, help="directory for talk.json")
    options = parser.parse_args(arguments)
    for name in options.cases:
        if name not in (*CASES, "idle"):
            parser.error(f"{name!r} is not one of {', '.join(CASES)}, idle")
    ours = OURS_SHARED if options.shared else OURS
    wanted = options.cases or [*CASES, "idle"]
    numbers = sorted(os.sched_getaffinity(0))
    cores = numbers[0], numbers[-1]
    document: dict[str, Any] = {"ratios": []}
    met = True
    for name in wanted:
        if name == "idle":
            document["idle"] = idle(ours, options.seconds, cores)
            met &= document["idle"]["met"]
            continue
        for outcome in converse(name, CASES[name], ours, options.rounds, cores):
            print(outcome, flush=True)
            document["ratios"].append({**asdict(outcome), "met": outcome.met})
            met &= outcome.met
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "talk.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
