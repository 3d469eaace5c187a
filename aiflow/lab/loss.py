"""Random loss at the switch: the remaining goodput over four ports, for slices without a pause between them.

Each frame that enters the switch is dropped with the same probability, data and feedback alike. The upper bound of the
goodput is 1 - p of a run without loss, because lost frames are retransmitted.
"""

from __future__ import annotations

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import TCP, Route, System, ours, running

__all__ = ["run"]

PORTS = 4
SECONDS = 22.0
SLICE_IMAGES = 64
LEAST_SHARE = 0.954
LEAST = {0.001: 0.995, 0.01: 0.98, 0.05: 0.92, 0.1: 0.86}  # relative to the goodput without loss
SPURIOUS = 0.01
TCP_PART = {0.05: 16, 0.1: 64}  # fraction of the slices: TCP needs minutes for all of them


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("loss", "Random loss at the switch")
    losses = (0.0, 0.05) if bench.quick else (0.0, *LEAST)
    nb_slices = 4 if bench.quick else _slices(bench)
    per_slice = 8 if bench.quick else SLICE_IMAGES
    systems: tuple[System, ...] = ours(), TCP
    plan = [(n, system, loss) for n in range(bench.repeats) for system in systems for loss in losses]
    layout = Layout(senders=1, receivers=1, ports=PORTS, switches=1, rates_bps=(bench.rate_bps,))
    with (
        Cluster(layout, name=owned_name("loss"), owned=True) as cluster,
        bench.bar("loss: random loss at the switch", len(plan)) as bar,
    ):
        for n in range(bench.repeats):
            for system in systems:
                cluster.switch(0).lose(0)
                with running(cluster, system, [Route(0, 1, PORTS)], bench.images, bench.faults) as trial:
                    trial.send(per_slice)
                    for loss in losses:
                        bar.show(plan.index((n, system, loss)))
                        cluster.switch(0).lose(loss, seed=n + 1)
                        count = nb_slices if system is not TCP else max(1, nb_slices // TCP_PART.get(loss, 1))
                        measured = trial.send(count * per_slice, slices=count)
                        scenario = f"{loss:.1%} loss"
                        each = row(n, system.label, measured, scenario=scenario, probability=loss)
                        clean = results.rows[-1]["clean_share"] if loss else each["share"]
                        results.rows.append(each | {"clean_share": clean, "kept": each["share"] / clean})
        bar.show(len(plan))
    results.summarise("scenario", "probability", "system", "elements")
    _check(results, losses)
    return results


def _slices(bench: Bench) -> int:
    """Return the number of slices for this time, at the line rate less the headers."""
    nbytes = sum(bench.images.nbytes(i) for i in range(SLICE_IMAGES))
    return round(SECONDS * PORTS * bench.rate_bps * paper.header_bound() / 8 / nbytes)


def _check(results: Results, losses: tuple[float, ...]) -> None:
    results.theory = {"header_bound": paper.header_bound(), "least": LEAST}

    def of_ours(value: str, loss: float) -> float:
        return results.median(value, system="aiflow", probability=loss)

    clean = of_ours("share", 0.0)
    results.check("share of line rate without loss", f"≥ {LEAST_SHARE}", clean, clean >= LEAST_SHARE)
    for loss in losses[1:]:
        kept = of_ours("kept", loss)
        results.check(f"goodput at {loss:.1%} loss in that without", f"≥ {LEAST[loss]}", kept, kept >= LEAST[loss])
        ahead = of_ours("share", loss) / results.median("share", system="TCP", probability=loss)
        results.check(f"ahead of TCP at {loss:.1%} loss", "> 1", ahead, ahead > 1)
    retransmitted, spurious = (
        sum(each[key] for each in results.rows if each["system"] == "aiflow") for key in ("retransmitted", "spurious")
    )
    share = spurious / retransmitted if retransmitted else 0.0
    results.check("spurious retransmissions, of all retransmissions", f"≤ {SPURIOUS}", share, share <= SPURIOUS)
    results.check_delivery()
