"""Fig. 8: one switch and two. The sum of the 8 ports exceeds the rate of a switch's backplane."""

from __future__ import annotations

from contextlib import ExitStack

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import TCP, ZEROMQ, Route, System, ours, running

__all__ = ["run"]

SIZES = 256, 512, 1024, 2048, 4096
PORTS = 4  # per sender, of two
TRUNK = 7  # in multiples of a port's rate
ROUTES = [Route(0, 2, PORTS), Route(1, 3, PORTS)]


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("fig8", "One switch and two")
    sizes = (32, 64) if bench.quick else SIZES
    runs: list[tuple[int, System, int]] = [
        (n, system, switches)
        for n in range(bench.repeats)
        for system in (ours(), TCP, ZEROMQ)
        for switches in ((1, 2) if n % 2 == 0 else (2, 1))
    ]
    with ExitStack() as stack:
        clusters = {
            switches: stack.enter_context(
                Cluster(
                    Layout(switches=switches, rates_bps=(bench.rate_bps,), trunk_bps=TRUNK * bench.rate_bps),
                    name=owned_name(f"fig8_{switches}"),
                    owned=True,
                )
            )
            for switches in (1, 2)
        }
        bar = stack.enter_context(bench.bar("fig8: one switch and two", len(runs)))
        for done, (n, system, switches) in enumerate(runs):
            bar.show(done)
            # TCP and ZeroMQ are measured at the largest size only, to save time.
            wanted = sizes if system.label == "aiflow" else sizes[-1:]
            with running(clusters[switches], system, ROUTES, bench.images, bench.faults) as trial:
                trial.send(sizes[-1])  # as in fig6: the first slice uses new memory, which the kernel must clear
                for nb_elements in wanted:
                    results.rows.append(row(n, system.label, trial.send(nb_elements), switches=switches))
        bar.show(len(runs))
    results.summarise("system", "switches", "elements")
    _check(results, sizes)
    return results


def _check(results: Results, sizes: tuple[int, ...]) -> None:
    ideal = 2 * PORTS / TRUNK - 1
    gains = {
        size: results.median("seconds", system="aiflow", switches=1, elements=size)
        / results.median("seconds", system="aiflow", switches=2, elements=size)
        - 1
        for size in sizes
    }
    results.theory = {
        "ideal_gain": ideal, "paper_gain": paper.FIG8_GAIN, "gains": gains, "header_bound": paper.header_bound(),
    }  # fmt: skip
    gain = gains[sizes[-1]]
    results.check(f"gain of two switches, {sizes[-1]} elements", f"≥ {0.95 * ideal:.4f}", gain, gain >= 0.95 * ideal)
    worst = min(gains.values())
    results.check("least gain at any size", "≥ 0", worst, worst >= 0)
    results.check_delivery()
