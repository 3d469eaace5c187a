"""Fig. 6: parallel ports. 512 images over 1, 2, 4 and 8 ports (8: two senders), as a share of the line rate."""

from __future__ import annotations

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import TCP, ZEROMQ, Route, ours, running

__all__ = ["run"]

SYSTEMS = ours(), TCP, ZEROMQ


def routes(count: int) -> list[Route]:
    """1 to 4 ports belong to one sender; 8 ports to two senders, with one receiver each."""
    return [Route(0, 2, count)] if count <= 4 else [Route(0, 2, count // 2), Route(1, 3, count // 2)]


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("fig6", "Ports in parallel")
    counts = (1, 2) if bench.quick else (1, 2, 4, 8)
    nb_images = 16 if bench.quick else 512
    runs = [(n, count, system) for n in range(bench.repeats) for count in counts for system in SYSTEMS]
    with (
        Cluster(Layout(rates_bps=(bench.rate_bps,)), name=owned_name("fig6"), owned=True) as cluster,
        bench.bar("fig6: ports in parallel", len(runs)) as bar,
    ):
        for done, (n, count, system) in enumerate(runs):
            bar.show(done)
            with running(cluster, system, routes(count), bench.images, bench.faults) as trial:
                # A process's first slice uses new memory, which the kernel must clear first. If this takes a relevant
                # part of the time, the second slice counts, for all systems.
                if count > 1:
                    trial.send(nb_images)
                results.rows.append(row(n, system.label, trial.send(nb_images), ports=count))
        bar.show(len(runs))
    results.summarise("system", "ports", "elements")
    results.theory = {"header_bound": paper.header_bound()}
    results.theory |= {"paper": paper.FIG6_SHARE, "paper_speedup": paper.FIG6_SPEEDUP}
    for count in counts:
        share = results.median("share", system="aiflow", ports=count)
        least = (0.98 if count == 8 else 0.99) * paper.header_bound()
        results.check(f"share of line rate, {count} ports", f"≥ {least:.4f}", share, share >= least)
        peer = max(results.median("share", system=system.label, ports=count) for system in SYSTEMS[1:])
        results.check(f"ahead of the best kernel peer, {count} ports", "> 1", share / peer, share > peer)
    if 8 in counts:
        one, eight = (results.median("seconds", system="aiflow", ports=count) for count in (1, 8))
        ratio = eight / one
        results.check("8-port time in the 1-port time", "≤ 0.128", ratio, ratio <= 0.128)
    results.check_delivery()
    return results
