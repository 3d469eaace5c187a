"""Both directions at once over the same ports, beside one direction at a time, against limits. Needs root.

    python bench/both_ways.py [af_packet af_xdp memif] [--rounds 7] [--seconds 3] [--out bench-results]

Two processes, each on a core of its own, have a Sender and a Receiver on the same ports. A round sends one way, the
other way, and both ways. Each takes the same time, in changing order, with slices in flight without a pause. Rates are
of bytes that were acknowledged between two readings of the clock. `shaped` has 200 Mbit/s at each port: by the loop
(`link_speed=`), and over af_packet by the kernel's shaper, too. There each direction must keep 0.97 of its rate alone.
Otherwise the sum must keep 0.95 of one direction, and each direction 0.4. The receiving side checks that each slice is
the next one, and compares one of its elements. Each process has a network namespace of its own, which ends with it. The
program ends with 1 when a limit is missed. `local` is for comparison: its two directions have ports of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import veth
from contest import BusyMeter, Process
from intervals import Median

from aiflow.lab import entering, namespaces

RATE_BPS = 200_000_000
BURST_BYTES, QUEUE_BYTES = 128 << 10, 1 << 20  # of the kernel's shaper
ELEMENTS, ELEMENT_BYTES = 8, 512 << 10
ROTATION, IN_FLIGHT = 3, 4  # slices
SETTLE_S = 0.4  # from the first slice of a turn to the first reading of the clock
TIMEOUT_S = 60
BUSY = 0.05
KERNEL = "af_packet", "af_xdp"  # drivers of kernel interfaces
DRIVERS = *KERNEL, "memif"
TURNS = ("a",), ("b",), ("a", "b")
"""Who sends."""
LIMITS = {"shaped": {"a": 0.97, "b": 0.97}, "unshaped": {"a": 0.4, "b": 0.4, "sum": 0.95}}


@dataclass(frozen=True)
class Outcome:
    """A rate with both directions at once ÷ the rate of one direction alone, and its least value."""

    case: str
    what: str
    one_gb_per_s: float
    ratio: Median
    limit: float

    @property
    def met(self) -> bool:
        """Whether the ratio is at or above its limit."""
        return self.ratio.median >= self.limit

    def __str__(self) -> str:
        return (
            f"{self.case:20} {self.what:4} {self.one_gb_per_s:7.4f} GB/s alone, both ways {self.ratio.median:6.3f} "
            f"of it ({self.ratio.low:.3f} to {self.ratio.high:.3f}), limit {self.limit}: "
            f"{'met' if self.met else 'MISSED'}"
        )


class Flow:
    """Slices of one sender: each has its number in the first element."""

    def __init__(self, tx: Any) -> None:
        random = np.random.default_rng(2024)
        self._tx = tx
        self._arrays = [_arrays(random) for _ in range(ROTATION)]
        self._tickets: deque[Any] = deque()
        self._ended = 0  # bytes of slices that have ended
        self._lock = threading.Lock()
        self.nb_sent = 0

    def run(self, until: float) -> None:
        """Send until this time, and wait for the delivery of all."""
        while True:
            while len(self._tickets) < IN_FLIGHT and time.monotonic() < until:
                elements = [np.array([self.nb_sent]), *self._arrays[self.nb_sent % ROTATION]]
                self._tickets.append(self._tx.send(elements, wait=False))
                self.nb_sent += 1
            if not self._tickets:
                return
            report = self._tickets[0].result(TIMEOUT_S)
            with self._lock:
                self._tickets.popleft()
                self._ended += report.nbytes

    def acknowledged(self) -> tuple[int, float]:
        """Return the bytes acknowledged so far, and the time of this reading."""
        with self._lock:
            return self._ended + sum(ticket.progress[0] for ticket in tuple(self._tickets)), time.monotonic()


def _arrays(random: Any) -> list[np.ndarray[Any, Any]]:
    return [random.integers(0, 256, ELEMENT_BYTES, np.uint8) for _ in range(ELEMENTS)]


class Inflow(threading.Thread):
    """Receives the slices of a `Flow` and checks them. `received` is their number."""

    def __init__(self, rx: Any) -> None:
        super().__init__(name="inflow", daemon=True)
        random = np.random.default_rng(2024)
        self._rx = rx
        self._arrays = [_arrays(random) for _ in range(ROTATION)]
        self.received = 0
        self.wrong = ""

    def await_number(self, number: int) -> None:
        """Wait until this number of slices was received: delivered slices may not have been looked at yet."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.received < number and time.monotonic() < deadline:
            time.sleep(0.01)

    def run(self) -> None:
        for time_slice in self._rx:
            (number,), which = time_slice[0].array, self.received % ELEMENTS
            same = np.array_equal(time_slice[1 + which].array, self._arrays[self.received % ROTATION][which])
            if number != self.received or not same:
                self.wrong = f"slice {self.received} did not arrive as it was sent, but as number {number}"
            self.received += 1


@contextlib.contextmanager
def _ends(driver: str, names: Sequence[str], me: str, speed: int | None) -> Iterator[tuple[Any, Any]]:
    """Yield a Sender and a Receiver of this process: on the same ports, but for "local"."""
    import aiflow

    peer = "b" if me == "a" else "a"
    here, there = names if me == "a" else reversed(names)
    options: dict[str, Any] = {} if speed is None else {"link_speed": speed}
    with contextlib.ExitStack() as life:
        out: Any = f"{driver}:{there}"
        back: Any = f"{driver}:{here}"
        if driver == "memif":
            out = back = life.enter_context(aiflow.Ports([f"memif:{names[0]}*2"]))
        elif driver != "local":
            out = back
        rx = life.enter_context(aiflow.Receiver(back, name=me, memory="256MiB"))
        yield life.enter_context(aiflow.Sender(out, to=peer, name=me, peer_timeout=30, **options)), rx


def _process(pipe: Connection, driver: str, names: Sequence[str], me: str, core: int, speed: int | None) -> None:
    os.sched_setaffinity(0, {core})
    if driver in KERNEL:
        entering.enter_new()
        pipe.send(("entered", None))
        pipe.recv()
    with _ends(driver, names, me, speed) as (tx, rx):
        flow, inflow = Flow(tx), Inflow(rx)
        inflow.start()
        pipe.send(("ready", None))
        while (message := pipe.recv())[0] != "close":
            begin, end = message[1:]
            with ThreadPoolExecutor(1) as sending:
                sent = sending.submit(flow.run, end)
                readings = []
                for when in (begin, end):
                    time.sleep(max(0.0, when - time.monotonic()))
                    readings.append(flow.acknowledged())
            sent.result()  # raises its error
            (before, since), (after, until) = readings
            pipe.send(("ok", ((after - before) / (until - since), flow.nb_sent)))
        inflow.await_number(message[1] if len(message) > 1 else 0)
        pipe.send(("ok", (inflow.received, inflow.wrong)))
    pipe.send(("closed", None))
    pipe.recv()  # the other end closes, too: our end of the wire goes with this process


class Ends:
    """Both processes."""

    def __init__(self, driver: str, names: Sequence[str], cores: Sequence[int], speed: int | None) -> None:
        self.processes = {
            me: Process(_process, driver, names, me, core, speed) for me, core in zip("ab", cores, strict=True)
        }
        self.nb_sent = dict.fromkeys("ab", 0)
        try:
            if driver in KERNEL:
                self._wire(names, speed if driver == "af_packet" else None)
            for process in self.processes.values():
                process.answer()
        except BaseException:
            self.close()
            raise

    def _wire(self, names: Sequence[str], speed: int | None) -> None:
        """Join the namespaces of both by a pair of interfaces."""
        for process in self.processes.values():
            process.answer()
        one, other = (namespaces.Namespace.of_process(process.pid) for process in self.processes.values())
        one.veth(names[0], other, names[1], offloads=speed is None)
        for namespace, interface in ((one, names[0]), (other, names[1])):
            if speed:
                namespace.shape(interface, speed, BURST_BYTES, QUEUE_BYTES)
        for process in self.processes.values():
            process.tell("wired")

    def turn(self, senders: Sequence[str], seconds: float) -> dict[str, float]:
        """Let these send, and return the bytes per second of each."""
        begin = time.monotonic() + SETTLE_S
        for me in senders:
            self.processes[me].tell("turn", begin, begin + seconds)
        rates = {}
        for me in senders:
            rates[me], self.nb_sent[me] = self.processes[me].answer()
        return rates

    def verify(self) -> None:
        """Check that all slices have arrived as they were sent, and close both ends."""
        peers = {"a": "b", "b": "a"}
        found = {me: process.ask("close", self.nb_sent[peers[me]]) for me, process in self.processes.items()}
        for process in self.processes.values():
            process.answer()
        for me, peer in peers.items():
            received, wrong = found[me]
            if wrong or received != self.nb_sent[peer]:
                raise AssertionError(wrong or f"{received} of {self.nb_sent[peer]} slices arrived at {me}")

    def close(self) -> None:
        """End both processes."""
        for process in self.processes.values():
            process.close()


def compare(driver: str, shape: str, rounds: int, seconds: float, cores: Sequence[int]) -> list[Outcome]:
    """Run the rounds of a case and return a line for each limit."""
    case = f"{driver}, {shape}"
    speed = RATE_BPS if shape == "shaped" else None
    with contextlib.ExitStack() as life:
        names = [f"end-{me}" if driver in KERNEL else f"both-{me}-{os.getpid()}" for me in "ab"]
        ends = Ends(driver, names, cores, speed)
        life.callback(ends.close)
        for turn in TURNS:  # the first slices use new memory
            ends.turn(turn, seconds / 3)
        busy = BusyMeter([process.pid for process in ends.processes.values()])
        measured: list[dict[str, float]] = []
        for number in range(rounds):
            rates = {}
            for turn in (*TURNS[number % 3 :], *TURNS[: number % 3]):
                rates[turn] = ends.turn(turn, seconds)
            alone = {me: rates[me,][me] for me in "ab"}
            both = rates["a", "b"]
            one = statistics.fmean(alone.values())
            measured.append({me: both[me] / alone[me] for me in "ab"} | {"sum": sum(both.values()) / one, "one": one})
        others = busy.others()
        ends.verify()
    if others > BUSY:
        print(f"{case}: others used {others:.0%} of the machine: do not quote these figures", flush=True)
    one = statistics.median(each["one"] for each in measured) / 1e9
    return [
        Outcome(case, what, one, Median.of([each[what] for each in measured]), limit)
        for what, limit in LIMITS[shape].items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drivers", nargs="*", metavar="DRIVER", help=f"default: {', '.join(DRIVERS)}; also: local")
    parser.add_argument("--shapes", default="shaped,unshaped")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--out", type=Path, help="directory for both_ways.json")
    options = parser.parse_args(arguments)
    drivers = options.drivers or DRIVERS
    if unknown := [driver for driver in drivers if driver not in (*DRIVERS, "local")]:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(DRIVERS)}, local")
    if any(driver in KERNEL for driver in drivers) and (why := veth.missing()):
        parser.error(why)
    numbers = sorted(os.sched_getaffinity(0))
    outcomes = []
    for driver in drivers:
        for shape in options.shapes.split(","):
            for outcome in compare(driver, shape, options.rounds, options.seconds, (numbers[0], numbers[-1])):
                print(outcome, flush=True)
                outcomes.append(outcome)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        document = [{**asdict(outcome), "met": outcome.met} for outcome in outcomes]
        (options.out / "both_ways.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(outcome.met for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
