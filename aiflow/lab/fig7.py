"""Fig. 7: flow control. 170 KB elements over 4 ports in 1024-byte frames, then two senders onto one receiver's ports.

The senders' own links are ten times as fast as the switch's ports. Excess frames are therefore lost as in a real
network: at a switch port with a full queue. The ports have half the cluster's rate: a sender that shares its core with
the emulated network must be able to exceed the rate of the ports.
"""

from __future__ import annotations

from aiflow.lab import paper
from aiflow.lab.cluster import Cluster, owned_name
from aiflow.lab.results import Results
from aiflow.lab.runs import Bench, row
from aiflow.lab.topology import Layout
from aiflow.lab.trial import TCP, Route, System, ours, running

__all__ = ["run"]

FRAME_BYTES = 1024
ELEMENT_BYTES = 170_000
PORTS = 4
SIZES = 64, 128, 256, 512, 1024, 2048
OVERLOAD_ELEMENTS = 1024  # of both senders together
GAIN = 22.5
GAP_US, BASE_US = 8.0, 1.5  # at 1 Gbit/s


def systems(bench: Bench) -> dict[str, System]:
    """Return the flow controls by their labels in the results."""
    from aiflow import FlowControl

    def system(label: str, flow_control: object) -> System:
        return ours(label, flow_control=flow_control, frame_size=FRAME_BYTES, link_speed=_rate_bps(bench))

    return {
        "credit": ours("credit", frame_size=FRAME_BYTES),  # it must discover the rate of the switch's ports
        "reverse": system("reverse", "reverse"),
        "static": system("static", "static"),
        "bare law": system("bare law", FlowControl("reverse", capped=False)),
        "TCP": TCP,
    }


def run(bench: Bench) -> Results:
    """Measure."""
    results = Results("fig7", "Flow control")
    known = systems(bench)
    sizes = SIZES[:2] if bench.quick else SIZES
    overload = sizes[-1] if bench.quick else OVERLOAD_ELEMENTS
    elements = bench.cut(ELEMENT_BYTES)
    rate = _rate_bps(bench)
    layout = Layout(rates_bps=(rate,), link_bps=10 * rate, burst_bytes=16 << 10)
    plan = [("one sender", n, label) for n in range(bench.repeats) for label in known]
    plan += [("two senders", n, label) for n in range(bench.repeats) for label in known]
    with (
        Cluster(layout, name=owned_name("fig7"), owned=True) as cluster,
        bench.bar("fig7: flow control", len(plan)) as bar,
    ):
        for done, (load, n, label) in enumerate(plan):
            bar.show(done)
            routes = [Route(0, 2, PORTS)] if load == "one sender" else [Route(0, 2, PORTS), Route(1, 2, PORTS)]
            wanted = [overload] if load == "two senders" else [sizes[-1]] if label == "bare law" else sizes
            with running(cluster, known[label], routes, elements, bench.faults) as trial:
                for nb_elements in wanted:
                    measured = trial.send(nb_elements)
                    results.rows.append(row(n, label, measured, scenario=load) | _by_frame(measured.frames, measured))
        bar.show(len(plan))
    results.summarise("scenario", "system", "elements")
    _check(results, sizes[-1])
    return results


def _rate_bps(bench: Bench) -> int:
    return bench.rate_bps // 2


def _by_frame(frames: int, measured: object) -> dict[str, float]:
    lost = measured.lost.in_network  # type: ignore[attr-defined]
    return {"loss": lost / frames if frames else float("nan")}


def _check(results: Results, largest: int) -> None:
    results.theory = {
        "paper_loss_ratio": paper.FIG7_LOSS_RATIO,
        "overload_static": _static_loss(2 * _surplus()),
        "overload_reverse": _reverse_loss(2.0),
        "single_static": _static_loss(_surplus()),
        "bare_law_two": _reverse_loss(2 * _bare_surplus()),
        "bare_law_one": _reverse_loss(_bare_surplus()),
        "frame_bound": paper.header_bound(FRAME_BYTES),
    }

    def one(label: str, column: str) -> float:
        return results.median(column, scenario="one sender", system=label, elements=largest)

    def two(label: str, column: str) -> float:
        return results.median(column, scenario="two senders", system=label)

    static = one("static", "lost")
    results.check(f"static loses frames, {largest} elements", "> 0", static, static > 0)
    ratio = one("reverse", "lost") / static if static else float("nan")
    results.check(f"loss under reverse in static's, {largest} elements", f"≤ {paper.FIG7_LOSS_RATIO}", ratio,
                  ratio <= paper.FIG7_LOSS_RATIO)  # fmt: skip
    slower = one("reverse", "seconds") / one("static", "seconds")
    results.check("reverse's time in static's", "≤ 1.25", slower, slower <= 1.25)
    for name, loss in (("one sender", one("credit", "loss")), ("two senders", two("credit", "loss"))):
        results.check(f"loss under credit, {name}", "≤ 0.0001", loss, loss <= 1e-4)
    used = two("credit", "share") / paper.header_bound(FRAME_BYTES)
    results.check("use of the bottleneck under credit, two senders", "≥ 0.95", used, used >= 0.95)
    uneven = two("credit", "slowest_over_fastest") - 1
    results.check("two senders under credit finish apart by", "≤ 0.05", uneven, uneven <= 0.05)
    results.check_delivery()


def _surplus() -> float:
    """Load that one static sender offers to a port, relative to the port's rate."""
    return FRAME_BYTES * 8 / (GAP_US * 1000)


def _bare_surplus() -> float:
    """Load that the bare law offers without loss."""
    return FRAME_BYTES * 8 / (BASE_US * 1000)


def _static_loss(overload: float) -> float:
    """(ρ − 1) / ρ: the load above the port's rate."""
    return (overload - 1) / overload


def _reverse_loss(overload: float) -> float:
    """(ρ − 1) / (ρ + k): the equilibrium of the interval's law."""
    return (overload - 1) / (overload + GAIN)
