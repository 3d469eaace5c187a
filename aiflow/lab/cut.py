"""Paths that fail during a slice: an unplugged cable, then a switch that drops every frame while its links are up.

The receiver's trace has the bytes of the slice that had arrived over time. Its longest pause is the stall. From the
trace and the time of the fault follows the ideal time that the remaining ports need for the rest.
"""

from __future__ import annotations

import bisect
import time
from functools import partial
from itertools import pairwise
from typing import Any

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.laberror import LabError
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import Measured, Route, ours, running

__all__ = ["run"]

PORTS, SWITCHES = 4, 2
NB_IMAGES = 512
STRUCK = 1  # number of the unplugged port, and of the switch that drops frames
LEFT = {"uncut": PORTS, "a port cut": PORTS - 1, "a switch swallows": PORTS - PORTS // SWITCHES}
MOST_STALL_MS, MOST_OVER = 10.0, 1.05
_PATIENCE_S, _LOOK_S = 60.0, 0.002
_PICTURE_NS = 5_000_000
_NEAR_NS = 300_000_000  # after the fault: longer than the silence after which a path is suspended


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("cut", "Paths that fail during a slice")
    results.theory = {"header_bound": paper.header_bound(), "traces": {}, "struck": {}}
    nb_images = 192 if bench.quick else NB_IMAGES
    nbytes = sum(bench.images.nbytes(i) for i in range(nb_images))
    plan = [(n, scenario) for n in range(bench.repeats) for scenario in LEFT]
    layout = Layout(senders=1, receivers=1, ports=PORTS, switches=SWITCHES, rates_bps=(bench.rate_bps,))
    with (
        Cluster(layout, name=owned_name("cut"), owned=True) as cluster,
        bench.bar("cut: paths that fail during a slice", len(plan)) as bar,
    ):
        for done, (n, scenario) in enumerate(plan):
            bar.show(done)
            struck: list[int] = []
            with running(cluster, ours(), [Route(0, 1, PORTS)], bench.images, bench.faults) as trial:
                trial.send(nb_images)
                measured = trial.send(nb_images, during=partial(_strike, cluster, scenario, nbytes // 3, struck))
            _turn(cluster, scenario, mended=True)
            figures = _figures(measured, struck[0], LEFT[scenario], bench.rate_bps)
            results.rows.append(row(n, "aiflow", measured, scenario=scenario) | figures)
            results.theory["traces"].setdefault(scenario, _thinned(measured))
            results.theory["struck"].setdefault(scenario, (struck[0] - measured.trace[0][0]) / 1e9)
        bar.show(len(plan))
    results.summarise("scenario", "system", "elements")
    _check(results)
    return results


def _strike(cluster: Cluster, scenario: str, after_bytes: int, struck: list[int]) -> None:
    """Inject the fault after this number of bytes has reached the receiver, and record the time."""

    def arrived() -> int:
        return sum(port.rx_bytes for name, port in cluster.node(1).counters().items() if name.startswith("p"))

    before, deadline = arrived(), time.monotonic() + _PATIENCE_S
    while arrived() < before + after_bytes:
        if time.monotonic() > deadline:
            raise LabError(f"half of the slice did not arrive within {_PATIENCE_S:.0f} s")
        time.sleep(_LOOK_S)
    _turn(cluster, scenario, mended=False)
    struck.append(time.monotonic_ns())


def _turn(cluster: Cluster, scenario: str, *, mended: bool) -> None:
    """Inject a scenario's fault, or repair it."""
    if scenario == "a port cut":
        port = cluster.layout.ports_of(0)[STRUCK]
        cluster.switch(port.switch).plug(port.switch_interface, up=mended)
    elif scenario == "a switch swallows":
        cluster.switch(STRUCK).lose(0 if mended else 1)


def _figures(measured: Measured, struck_ns: int, ports_left: int, rate_bps: int) -> dict[str, Any]:
    """Compute the stall, its begin, and the time from the fault to the end over the ideal of the remaining ports.

    A stall is an interval in which all readings saw the same bytes; `near` means soon after the fault. The longest gap
    between readings is reported separately.
    """
    trace = measured.trace
    at = bisect.bisect_right([ns for ns, _, _ in trace], struck_ns) - 1
    left = measured.nbytes - trace[at][2]
    if at < 0 or left <= 0:
        raise LabError("the slice ended before the fault; repeat the experiment")
    ideal = 8 * left / (ports_left * rate_bps * paper.header_bound())
    near = [each for each in trace[:-1] if 0 <= each[1] - struck_ns <= _NEAR_NS] or [(0, 0, 0)]
    stall_ns, since_ns = max((last - first, first) for first, last, _ in trace[:-1])
    return {
        "stall_ms": stall_ns / 1e6,
        "stall_begins": (since_ns - struck_ns) / 1e9,
        "stall_near_ms": max(last - first for first, last, _ in near) / 1e6,
        "unseen_ms": max(later[0] - before[1] for before, later in pairwise(trace)) / 1e6,
        "bytes_left": left,
        "seconds_left": (measured.end_ns - struck_ns) / 1e9,
        "over_ideal": (measured.end_ns - struck_ns) / 1e9 / ideal,
    }


def _thinned(measured: Measured) -> list[tuple[float, float]]:
    """Return the trace for the plot: seconds and megabytes, one point every few milliseconds."""
    first, points, last = measured.trace[0][0], [], 0
    for ns, _, nbytes in measured.trace:
        if ns - last >= _PICTURE_NS:
            points.append(((ns - first) / 1e9, nbytes / 1e6))
            last = ns
    return points


def _check(results: Results) -> None:
    uncut = results.median("stall_ms", scenario="uncut")
    for scenario in list(LEFT)[1:]:
        longer = results.median("stall_ms", scenario=scenario) - uncut
        over = results.median("over_ideal", scenario=scenario)
        what = f"{scenario}: stall beyond the uncut run's, ms"
        results.check(what, f"≤ {MOST_STALL_MS:g}", longer, longer <= MOST_STALL_MS)
        results.check(f"{scenario}: time in that of the ports left", f"≤ {MOST_OVER}", over, over <= MOST_OVER)
    swallowed = results.median("lost", scenario="a switch swallows")
    results.check("frames that the switch swallowed", "> 0", swallowed, swallowed > 0)
    results.check_delivery()
