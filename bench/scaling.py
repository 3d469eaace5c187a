"""The cost of a slice against its size, and the numbers of elements, ports and senders: curves, exponents, a plot.

    python bench/scaling.py --out bench-results

Every point of a curve has a new receiver and new senders. Each process is pinned to one core; the receiver has its own,
the senders share the others. After some slices for warm-up, the medians of CPU seconds (all processes) and of seconds
are taken. The exponent is that of a power law through the upper half of the points: in the lower half, the constant
cost of a slice hides the cost of an element. An exponent above 1.1 is an error: no cost may grow faster than linearly.
Several senders send at once in one round, and one after the other in the next. At once they may cost 1.1 times the CPU
time. Other benchmarks verify the content.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from contest import Process
from loads import ROTATION, Load, rows

STEEPEST = 1.1
AT_ONCE = 1.1  # CPU time of senders at once, ÷ that of the same senders one after the other
ROUNDS, WARM_UP = 7, 3
POINT_S = 6.0  # time for the rounds of a point; at least LEAST are measured
LEAST = 3
TIMEOUT_S = 60.0
MEMORY = 1 << 30
PORT_BYTES = 64 << 20  # beside its `memory` a receiver has mbufs for each port of each sender
KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Setting:
    """One point: what is sent, by how many senders, over how many ports each, into how much memory."""

    load: Load
    senders: int = 1
    ports: int = 1
    memory: int = MEMORY


@dataclass(frozen=True)
class Point:
    """Cost at `x`. `memory` is the receiver's maximum above its initial memory, `allowed` its limit, in bytes.

    `in_turn_s` has the CPU seconds of the same senders one after the other; 0 for a single one.
    """

    x: float
    cpu_s: float
    seconds: float
    memory: int
    allowed: int
    nbytes: int
    in_turn_s: float = 0.0


@dataclass(frozen=True)
class Curve:
    """Points, and the exponents of cost ~ x ** exponent."""

    name: str
    unit: str
    points: list[Point]

    def exponent(self, what: str) -> float:
        """Return the exponent of `what` ("cpu_s", "seconds", "memory") in the upper half of the points."""
        upper = [point for point in self.points[len(self.points) // 2 - 1 :] if getattr(point, what) > 0]
        if len(upper) < 2:
            return 0.0
        slope, _ = np.polyfit(
            np.log([point.x for point in upper]), np.log([getattr(point, what) for point in upper]), 1
        )
        return float(slope)

    @property
    def exponents(self) -> dict[str, float]:
        """All exponents."""
        return {what: self.exponent(what) for what in ("cpu_s", "seconds", "memory")}


def elements_of(count: int, size: int) -> Load:
    """Return a load of equal arrays."""
    return Load(f"{count} × {size} B", (size,) * count)


CURVES: dict[str, tuple[str, list[tuple[float, Setting]]]] = {
    "elements, send_batch": (
        "elements of 64 B",
        [(count, Setting(rows(64, 64 * count))) for count in (1_000, 10_000, 100_000, 300_000, 1_000_000)],
    ),
    "elements, send": (
        "arrays of 4 KB",
        [(count, Setting(elements_of(count, 4 * KB))) for count in (100, 1_000, 3_000, 10_000, 30_000)],
    ),
    "element size": (
        "bytes, 64 elements",
        [(size, Setting(elements_of(64, size))) for size in (1 * KB, 16 * KB, 256 * KB, 1 * MB, 4 * MB)],
    ),
    "slice size": (
        "bytes, in elements of 256 KB",
        [(mb * MB, Setting(elements_of(4 * mb, 256 * KB))) for mb in (2, 8, 32, 128, 384)],
    ),
    "receiver's memory=": (
        "bytes, slices of 64 MB",
        [(mb * MB, Setting(elements_of(256, 256 * KB), memory=mb * MB)) for mb in (128, 256, 1024, 4096)],
    ),
    "ports": (
        "ports, 64 MB",
        [(ports, Setting(elements_of(256, 256 * KB), ports=ports)) for ports in (1, 2, 4, 8, 16)],
    ),
    "senders": (
        "senders, 16 MB each",
        [(senders, Setting(elements_of(64, 256 * KB), senders=senders)) for senders in (1, 2, 4, 8, 16)],
    ),
}  # fmt: skip


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sender(pipe: Connection, address: str, load: Load, core: int) -> None:
    os.sched_setaffinity(0, {core})
    import aiflow

    slices = load.slices()
    with aiflow.Sender(address) as tx:
        pipe.send(("ready", None))
        number = 0
        while pipe.recv()[0] != "close":
            cpu = time.process_time()
            elements = slices[number % ROTATION]
            if load.batch:
                tx.send_batch("rows", elements, timeout=TIMEOUT_S)
            else:
                tx.send(elements, timeout=TIMEOUT_S)
            pipe.send(("ok", time.process_time() - cpu))
            number += 1


def _receiver(pipe: Connection, address: str, senders: int, memory: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    import aiflow

    with aiflow.Receiver(address, memory=memory) as rx:
        began = _resident()
        pipe.send(("ready", None))
        while pipe.recv()[0] != "close":
            cpu, most = time.process_time(), 0
            for _ in range(senders):
                with rx.recv(TIMEOUT_S) as time_slice:
                    arrays = list(time_slice.as_arrays().values()) if len(time_slice) > 1 else list(time_slice)
                    most = max(most, _resident())
                    del arrays
            pipe.send(("ok", (time.process_time() - cpu, most - began)))


def measure(x: float, setting: Setting, core: int, cores: Sequence[int], rounds: int) -> Point:
    """Measure one point with new processes: the receiver on `core`, the senders on `cores`."""
    address = f"local:scaling-{os.getpid()}-{time.monotonic_ns()}"
    ports = f"*{setting.ports}" if setting.ports > 1 else ""
    with contextlib.ExitStack() as life:

        def start(*args: Any) -> Process:
            process = Process(*args)
            life.callback(process.close)
            return process

        # the receiver grants each sender the ports that it asks for
        receiver = start(_receiver, address + ports, setting.senders, setting.memory, core)
        receiver.answer()
        senders = [
            start(_sender, address + ports, setting.load, cores[number % len(cores)])
            for number in range(setting.senders)
        ]
        for sender in senders:
            sender.answer()
        cpu, in_turn, seconds, memory = [], [], [], 0
        deadline = time.monotonic() + POINT_S
        for number in range(WARM_UP + rounds):
            if number >= WARM_UP + LEAST and time.monotonic() > deadline:
                break
            receiver.tell("round")
            begin = time.monotonic()
            for sender in senders:
                sender.tell("round")
            used = sum(sender.answer() for sender in senders)
            received, most = receiver.answer()
            if number >= WARM_UP:
                seconds.append(time.monotonic() - begin)
                cpu.append(used + received)
            if len(senders) > 1:
                receiver.tell("round")
                used = sum(sender.ask("round") for sender in senders)
                received, most = receiver.answer()
                if number >= WARM_UP:
                    in_turn.append(used + received)
            memory = max(memory, most)
    nbytes = setting.load.nbytes * setting.senders
    allowed = setting.memory + PORT_BYTES * setting.ports * setting.senders
    one_by_one = statistics.median(in_turn) if in_turn else 0.0
    return Point(x, statistics.median(cpu), statistics.median(seconds), memory, allowed, nbytes, one_by_one)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Plot all curves on logarithmic axes, with their exponents."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    columns = 3
    figure, grid = plt.subplots(
        -(-len(curves) // columns), columns, figsize=(14, 10), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, curve in zip(grid.flat, curves, strict=False):
        xs = [point.x for point in curve.points]
        for what, label in (("cpu_s", "CPU s, all processes"), ("seconds", "s")):
            ys = [getattr(point, what) for point in curve.points]
            axes.loglog(xs, ys, marker="o", label=f"{label}: exponent {curve.exponent(what):.2f}")
        if curve.exponent("memory") > 0.3:
            memory = axes.twinx()
            memory.loglog(xs, [point.memory for point in curve.points], marker=".", color="tab:green")
            memory.set_ylabel("receiver's memory, bytes", color="tab:green")
        last = curve.points[-1]
        axes.loglog(xs, [last.cpu_s * x / last.x for x in xs], color="grey", lw=0.8, ls=":", label="linear")
        axes.set(title=curve.name, xlabel=curve.unit)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    figure.suptitle("Cost of a slice")
    figure.savefig(path, dpi=110)


def write(curves: Sequence[Curve], out: Path) -> None:
    """Write scaling.json, scaling.csv, scaling.png and scaling.md."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "scaling.json").open("w") as file:
        json.dump([{**asdict(curve), "exponents": curve.exponents} for curve in curves], file, indent=1)
    with (out / "scaling.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "x", "cpu_s", "seconds", "memory", "allowed", "nbytes", "in_turn_s"])
        for curve in curves:
            writer.writerows([curve.name, *asdict(point).values()] for point in curve.points)
    with (out / "scaling.md").open("w") as file:
        file.write("\n".join(table(curves)) + "\n")
    draw(curves, out / "scaling.png")


def table(curves: Sequence[Curve]) -> list[str]:
    """Return the exponents as a Markdown table."""
    lines = [
        "| cost against | from – to | exponent of CPU time | of time | of the receiver's memory |",
        "|---|--:|--:|--:|--:|",
    ]
    for curve in curves:
        first, last = curve.points[0].x, curve.points[-1].x
        values = " | ".join(f"{value:.2f}" for value in curve.exponents.values())
        lines.append(f"| {curve.name} ({curve.unit}) | {first:,.0f} – {last:,.0f} | {values} |")
    return lines


def too_steep(curves: Sequence[Curve]) -> list[str]:
    """Return the costs that grow faster than linearly, and points above the memory limit."""
    found = []
    for curve in curves:
        for what in ("cpu_s", "memory"):
            if curve.exponent(what) > STEEPEST:
                found.append(f"{curve.name}: {what} grows with exponent {curve.exponent(what):.2f}, above {STEEPEST}")
        for point in curve.points:
            if point.memory > point.allowed:
                over = f"{point.memory} bytes, above the {point.allowed} of its memory= and mbufs"
                found.append(f"{curve.name}: the receiver took {over}")
            if point.cpu_s > AT_ONCE * point.in_turn_s > 0:
                ratio = point.cpu_s / point.in_turn_s
                found.append(f"{curve.name}: {point.x:,.0f} at once cost {ratio:.2f} of one by one, above {AT_ONCE}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="*", help=f"default: all of {', '.join(CURVES)}")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    numbers = sorted(os.sched_getaffinity(0))
    core = numbers.pop() if len(numbers) > 1 else numbers[0]
    curves = []
    for name in options.curves or CURVES:
        unit, settings = CURVES[name]
        curve = Curve(name, unit, [])
        for x, setting in settings:
            curve.points.append(measure(x, setting, core, numbers, options.rounds))
            point = curve.points[-1]
            shown = f"{name}: {x:,.0f}: {point.cpu_s * 1e3:.3f} ms of CPU, {point.seconds * 1e3:.3f} ms"
            if point.in_turn_s:
                shown += f"; one after the other {point.in_turn_s * 1e3:.3f} ms, {point.cpu_s / point.in_turn_s:.3f}"
            print(shown, flush=True)
        curves.append(curve)
    write(curves, options.out)
    print("\n".join(table(curves)))
    steep = too_steep(curves)
    for line in steep:
        print(line, file=sys.stderr)
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
