"""Plots of the results: aiflow, the paper, the line-rate limit, and TCP and ZeroMQ on the same links."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aiflow.lab.results import Results

__all__ = ["draw"]

_INK, _SOFT, _FAINT, _PAPER = "#1d2433", "#5b6475", "#dfe3ea", "#fbfbf9"
_COLOURS = {
    "aiflow": "#14506b", "credit": "#14506b", "pull": "#14506b", "the paper": "#e07a5f", "TCP": "#7a5c99",
    "ZeroMQ": "#90be6d", "reverse": "#2a9d8f", "static": "#b3261e", "bare law": "#e9b44c",
}  # fmt: skip


def draw(results: Results, path: Path) -> None:
    """Plot the results of an experiment as a PNG file.

    Parameters
    ----------
    results : Results
    path : Path
        An existing file is replaced.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": "DejaVu Sans", "text.color": _INK, "axes.edgecolor": _FAINT, "font.size": 10}):
        figure = Figure(figsize=(11, 5.2), dpi=120, facecolor=_PAPER, layout="constrained")
        FigureCanvasAgg(figure)
        _PICTURES[results.name](figure, results)
        figure.savefig(path, format="png", facecolor=_PAPER)


def _axes(figure: Figure, nb_columns: int, column: int, title: str, xlabel: str, ylabel: str) -> Axes:
    axes: Axes = figure.add_subplot(1, nb_columns, column)
    axes.set_facecolor(_PAPER)
    axes.set_title(title, loc="left", size=12, weight="bold", color=_INK)
    axes.set_xlabel(xlabel, color=_SOFT)
    axes.set_ylabel(ylabel, color=_SOFT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelcolor=_SOFT)
    axes.grid(True, color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _line(axes: Axes, label: str, points: dict[Any, float], **style: Any) -> None:
    axes.plot(
        list(points), list(points.values()), markersize=5, label=label, color=_COLOURS.get(label, _SOFT),
        **{"marker": "o", "linewidth": 2.4 if label in ("aiflow", "credit") else 1.6, **style},
    )  # fmt: skip


def _column(rows: list[dict[str, Any]], x: str, y: str, **where: Any) -> dict[Any, float]:
    return {r[x]: r[y] for r in rows if all(r[key] == value for key, value in where.items())}


def _limit(axes: Axes, value: float, text: str) -> None:
    axes.axhline(value, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        text, (1, value), (-4, 4), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", size=9,
        color=_SOFT,
    )  # fmt: skip


def _powers_of_two(axes: Axes, values: list[Any]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])


def _fig6(figure: Figure, results: Results) -> None:
    rows, theory = results.medians, results.theory
    counts = sorted({r["ports"] for r in rows})
    axes = _axes(figure, 2, 1, "Share of the line rate that is payload", "ports in parallel", "")
    for system in ("aiflow", "TCP", "ZeroMQ"):
        _line(axes, system, _column(rows, "ports", "share", system=system))
    _line(axes, "the paper", {n: theory["paper"][n] for n in counts}, linestyle="--")
    _limit(axes, theory["header_bound"], f"upper bound after headers: {theory['header_bound']:.3f}")
    axes.set_ylim(0.4, 1.02)
    _powers_of_two(axes, counts)
    axes.legend(frameon=False, loc="lower left")

    axes = _axes(figure, 2, 2, "Speed-up over one port", "ports in parallel", "times")
    for system in ("aiflow", "TCP", "ZeroMQ"):
        seconds = _column(rows, "ports", "seconds", system=system)
        _line(axes, system, {n: seconds[counts[0]] / seconds[n] for n in counts})
    _line(axes, "the paper", {n: theory["paper_speedup"][n] for n in counts}, linestyle="--")
    axes.plot(counts, counts, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="number of ports")
    _powers_of_two(axes, counts)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)


def _fig7(figure: Figure, results: Results) -> None:
    one = [r for r in results.medians if r["scenario"] == "one sender"]
    two = [r for r in results.medians if r["scenario"] == "two senders"]
    sizes = sorted({r["elements"] for r in one})
    axes = _axes(figure, 3, 1, "Frames lost at the switch", "elements of 170 KB", "% of the frames sent")
    for label in ("credit", "reverse", "static", "bare law"):
        _line(axes, label, {n: 100 * loss for n, loss in _column(one, "elements", "loss", system=label).items()})
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 100)
    _powers_of_two(axes, sizes)
    axes.legend(frameon=False)

    axes = _axes(figure, 3, 2, "Time over the minimum", "elements of 170 KB", "")
    for label in ("credit", "reverse", "static", "TCP"):
        shares = _column(one, "elements", "share", system=label)
        _line(axes, label, {n: results.theory["frame_bound"] / share for n, share in shares.items()})
    _powers_of_two(axes, sizes)
    axes.legend(frameon=False)

    axes = _axes(figure, 3, 3, "Two senders onto one: loss", "", "% of the frames sent")
    labels = ["credit", "reverse", "static", "bare law"]
    losses = [100 * _column(two, "system", "loss").get(label, 0.0) for label in labels]
    bars = axes.bar(labels, losses, color=[_COLOURS[label] for label in labels], width=0.6)
    axes.bar_label(bars, [f"{loss:.2g}" for loss in losses], padding=3, color=_SOFT)
    expected = [0.0, *(100 * results.theory[key] for key in ("overload_reverse", "overload_static", "bare_law_two"))]
    axes.scatter(labels, expected, marker="_", s=900, color=_INK, label="theory", zorder=3)
    axes.legend(frameon=False, loc="upper left", markerscale=0.4)


def _fig8(figure: Figure, results: Results) -> None:
    rows, theory = results.medians, results.theory
    sizes = sorted({r["elements"] for r in rows})
    axes = _axes(figure, 2, 1, "Time of the slice", "elements", "seconds")
    for switches, style in ((1, "--"), (2, "-")):
        points = _column(rows, "elements", "seconds", system="aiflow", switches=switches)
        axes.plot(
            list(points), list(points.values()), marker="o", linestyle=style, color=_COLOURS["aiflow"],
            label=f"aiflow, {switches} switch" + "es" * (switches > 1), linewidth=2.2,
        )  # fmt: skip
    for system in ("TCP", "ZeroMQ"):
        for switches, marker in ((1, "v"), (2, "^")):
            points = _column(rows, "elements", "seconds", system=system, switches=switches)
            label = f"{system}, {switches}"
            axes.scatter(list(points), list(points.values()), marker=marker, color=_COLOURS[system], label=label)
    _powers_of_two(axes, sizes)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.legend(frameon=False)

    axes = _axes(figure, 2, 2, "Gain of the second switch", "elements", "% of bandwidth")
    _line(axes, "aiflow", {size: 100 * gain for size, gain in theory["gains"].items()})
    _limit(axes, 100 * theory["ideal_gain"], f"limit of the backplanes: {100 * theory['ideal_gain']:.1f}")
    axes.scatter(sizes[-1:], [100 * theory["paper_gain"]], color=_COLOURS["the paper"], label="the paper", zorder=3)
    for system in ("TCP", "ZeroMQ"):
        ones, twos = (_column(rows, "elements", "seconds", system=system, switches=n) for n in (1, 2))
        gains = {size: 100 * (ones[size] / twos[size] - 1) for size in ones if size in twos}
        axes.scatter(list(gains), list(gains.values()), color=_COLOURS[system], marker="s", label=system)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]), top=max(18.0, axes.get_ylim()[1]))
    _powers_of_two(axes, sizes)
    axes.legend(frameon=False, loc="lower right")


def _policies(figure: Figure, results: Results) -> None:
    rates = "/".join(f"{rate / 1e6:g}" for rate in results.theory["rates_bps"])
    axes = _axes(figure, 1, 1, f"Time over the ideal, ports of {rates} Mbit/s", "", "")
    times = dict(sorted(_column(results.medians, "system", "over_ideal").items(), key=lambda item: item[1]))
    colours = [_COLOURS.get(label, "#5390d9") for label in times]
    bars = axes.bar(list(times), list(times.values()), color=colours, width=0.6)
    axes.bar_label(bars, [f"{time:.2f}" for time in times.values()], padding=3, color=_SOFT)
    _limit(axes, 1.0, "the ideal: bytes over the sum of the rates")


def _loss(figure: Figure, results: Results) -> None:
    rows = results.medians
    losses = sorted({r["probability"] for r in rows})
    ticks = [f"{loss:.1%}" for loss in losses]
    axes = _axes(figure, 2, 1, "Share of the line rate that is payload", "frames lost at the switch", "")
    for system in ("aiflow", "TCP"):
        shares = _column(rows, "probability", "share", system=system)
        _line(axes, system, {tick: shares[loss] for tick, loss in zip(ticks, losses, strict=True)})
    _limit(axes, results.theory["header_bound"], "upper bound after headers")
    axes.set_ylim(bottom=0, top=1.02)
    axes.legend(frameon=False, loc="lower left")

    axes = _axes(figure, 2, 2, "Goodput relative to that without loss", "frames lost at the switch", "%")
    for system in ("aiflow", "TCP"):
        kept = _column(rows, "probability", "kept", system=system)
        _line(axes, system, {tick: 100 * kept[loss] for tick, loss in zip(ticks, losses, strict=True)})
    ideal = {tick: 100 * (1 - loss) for tick, loss in zip(ticks, losses, strict=True)}
    dashed: dict[str, Any] = {"color": _INK, "linewidth": 1, "linestyle": (0, (4, 3))}
    axes.plot(list(ideal), list(ideal.values()), label="upper bound", **dashed)
    least = {tick: 100 * results.theory["least"][loss] for tick, loss in zip(ticks, losses, strict=True) if loss}
    axes.scatter(list(least), list(least.values()), marker="_", s=400, color=_COLOURS["static"], label="required")
    axes.set_ylim(bottom=70, top=101)
    axes.legend(frameon=False, loc="lower left")


def _cut(figure: Figure, results: Results) -> None:
    axes = _axes(figure, 2, 1, "Arrived bytes", "seconds", "MB")
    colours = dict(zip(results.theory["traces"], ("#14506b", "#e07a5f", "#2a9d8f"), strict=True))
    for scenario, points in results.theory["traces"].items():
        axes.plot(*zip(*points, strict=True), color=colours[scenario], linewidth=1.8, label=scenario)
        if scenario != "uncut":
            axes.axvline(results.theory["struck"][scenario], color=colours[scenario], linewidth=1, linestyle=":")
    axes.legend(frameon=False, loc="lower right")

    axes = _axes(figure, 2, 2, "The longest pause", "", "ms")
    stalls = _column(results.medians, "scenario", "stall_ms")
    bars = axes.bar(list(stalls), list(stalls.values()), color=[colours[scenario] for scenario in stalls], width=0.5)
    axes.bar_label(bars, [f"{stall:.1f}" for stall in stalls.values()], padding=3, color=_SOFT)
    _limit(axes, stalls["uncut"] + 10, "10 ms beyond the uncut run's")


def _relay(figure: Figure, results: Results) -> None:
    axes = _axes(figure, 1, 1, "Share of the line rate that is payload", "", "")
    shares = _column(results.medians, "scenario", "share")
    bars = axes.bar(
        list(shares), list(shares.values()), color=["#2a9d8f", _COLOURS["aiflow"]][: len(shares)], width=0.4
    )
    axes.bar_label(bars, [f"{share:.4f}" for share in shares.values()], padding=3, color=_SOFT)
    _limit(axes, results.theory["header_bound"], "upper bound after headers")
    least = results.theory["least"] * shares["two nodes"]
    axes.scatter(["three nodes"], [least], marker="_", s=900, color=_COLOURS["static"], label="required", zorder=3)
    axes.set_ylim(0, 1.2)
    axes.legend(frameon=False, loc="upper left", markerscale=0.4)


_PICTURES = {
    "fig6": _fig6, "fig7": _fig7, "fig8": _fig8, "policies": _policies, "loss": _loss, "cut": _cut, "relay": _relay,
}  # fmt: skip
