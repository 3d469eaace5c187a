"""A chain of three nodes beside two: the node in the middle receives and sends on, over the same ports.

Each port carries frames both ways at once, so the chain can carry what two nodes carry. A slice is sent on when it is
whole; the time of one slice is all that the chain may add.
"""

from __future__ import annotations

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import Measured, Route, ours, running

__all__ = ["run"]

PORTS = 2
SECONDS = 22.0
SLICE_IMAGES = 4  # short slices: the chain takes the time of one longer
LEAST = 0.97
SCENARIOS = {"two nodes": Route(0, 2, PORTS), "three nodes": Route(0, 2, PORTS, through=1)}


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("relay", "A relay between two nodes, over the same ports")
    nb_slices = 4 if bench.quick else _slices(bench)
    plan = [
        (n, scenario)
        for n in range(bench.repeats)
        for scenario in (SCENARIOS if n % 2 == 0 else list(reversed(SCENARIOS)))
    ]
    layout = Layout(senders=1, receivers=2, ports=PORTS, switches=1, rates_bps=(bench.rate_bps,))
    with (
        Cluster(layout, name=owned_name("relay"), owned=True) as cluster,
        bench.bar("relay: two nodes and three", len(plan)) as bar,
    ):
        for done, (n, scenario) in enumerate(plan):
            bar.show(done)
            with running(cluster, ours(), [SCENARIOS[scenario]], bench.images, bench.faults) as trial:
                trial.send(SLICE_IMAGES)  # new memory, which the kernel must clear
                measured = trial.send(nb_slices * SLICE_IMAGES, slices=nb_slices)
                each = row(n, "aiflow", measured, scenario=scenario, slices=nb_slices)
                results.rows.append(each | _until_arrival(measured))
        bar.show(len(plan))
    results.summarise("scenario", "system", "elements")
    _check(results)
    return results


def _slices(bench: Bench) -> int:
    """Return the number of slices for this time, at the line rate less the headers."""
    nbytes = sum(bench.images.nbytes(i) for i in range(SLICE_IMAGES))
    return round(SECONDS * PORTS * bench.rate_bps * paper.header_bound() / 8 / nbytes)


def _until_arrival(measured: Measured) -> dict[str, float]:
    """Return the time until the last slice was received, and its share of the line: a relay may still hold slices."""
    seconds = measured.seconds + (measured.arrived_ns - measured.end_ns) / 1e9
    return {"seconds": seconds, "share": measured.share * measured.seconds / seconds}


def _check(results: Results) -> None:
    results.theory = {"header_bound": paper.header_bound(), "least": LEAST}
    two, three = (results.median("share", scenario=scenario) for scenario in SCENARIOS)
    results.check("three nodes in what two nodes carry", f"≥ {LEAST}", three / two, three / two >= LEAST)
    results.check_delivery()
