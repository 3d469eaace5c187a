"""Port choice on ports of different speed: the time of every policy relative to the ideal, bytes over total rate."""

from __future__ import annotations

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import TCP, ZEROMQ, Route, System, ours, running

__all__ = ["run"]

POLICIES = "pull", "score", "weighted", "least_queue", "round_robin"
SPEEDS = 1.0, 1.0, 0.5, 0.1  # relative to the port rate
NB_IMAGES = 256
TOLERATED = {"pull": 1.05, "score": 1.15}


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("policies", "Ports of unequal speed")
    rates = tuple(round(speed * bench.rate_bps) for speed in SPEEDS)
    nb_images = 16 if bench.quick else NB_IMAGES
    systems: list[System] = [ours(policy, policy=policy, link_speed=list(rates)) for policy in POLICIES]
    systems += [TCP, ZEROMQ]
    # One switch per port: a sender's fast port always reaches the receiver's fast port.
    layout = Layout(switches=len(rates), rates_bps=rates)
    runs = [(n, system) for n in range(bench.repeats) for system in systems]
    with Cluster(layout, name=owned_name("policies"), owned=True) as cluster, bench.bar("policies", len(runs)) as bar:
        for done, (n, system) in enumerate(runs):
            bar.show(done)
            with running(cluster, system, [Route(0, 2, len(rates))], bench.images, bench.faults) as trial:
                measured = trial.send(nb_images)
                ideal = 8 * measured.nbytes / sum(rates) / paper.header_bound()
                results.rows.append(row(n, system.label, measured) | {"over_ideal": measured.seconds / ideal})
        bar.show(len(runs))
    results.summarise("system", "elements")
    results.theory = {"header_bound": paper.header_bound(), "rates_bps": rates}
    for policy, most in TOLERATED.items():
        over = results.median("over_ideal", system=policy)
        results.check(f"time of {policy} in the ideal time", f"≤ {most}", over, over <= most)
    results.check_delivery()
    return results
