"""The demo's picture: a contact sheet of the received photographs, and the throughput of each port over time."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aiflow.cli.figures import bytes_text, cold_start, rate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _FAINT, _PAPER = "#1d2433", "#5b6475", "#dfe3ea", "#fbfbf9"
_GOOD, _BAD = "#1a7f5a", "#b3261e"
_COLOURS = "#14506b", "#2a9d8f", "#e9b44c", "#e07a5f", "#7a5c99", "#5390d9", "#90be6d", "#b56576"
_WIDTH, _HEIGHT, _DPI = 1920, 1080, 100  # pixels
_BIN_SECONDS = 0.05
_GAP = 3  # pixels between thumbnails
_LEFT = 0.65  # left edge of the right half, as a share of the width

Samples = list[tuple[float, dict[str, int]]]


def draw(path: Path, thumbnails: npt.NDArray[np.uint8], samples: Samples, document: dict[str, Any]) -> None:
    """Draw and write the picture.

    Parameters
    ----------
    path : Path
        A PNG file. An existing file is replaced.
    thumbnails : ndarray of uint8, shape (photographs, side, side, 3)
        Decoded from the received photographs.
    samples : list of (seconds, {port: bytes})
        Readings of the receiver's port table: time and bytes since its start.
    document : dict
        The demo's results, as ``--json`` prints them.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": "DejaVu Sans", "text.color": _INK, "axes.edgecolor": _FAINT}):
        figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor=_PAPER)
        FigureCanvasAgg(figure)
        _contact_sheet(figure, thumbnails)
        _headline(figure, document, len(thumbnails))
        _throughput(figure.add_axes((_LEFT, 0.375, 0.975 - _LEFT, 0.305)), samples, document)
        _shares(figure.add_axes((_LEFT, 0.15, 0.975 - _LEFT, 0.11)), document["ports"])
        _small_print(figure, document)
        temporary = path.with_name(f".{path.name}.part")
        try:
            figure.savefig(temporary, format="png", facecolor=_PAPER)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _contact_sheet(figure: Figure, thumbnails: npt.NDArray[np.uint8]) -> None:
    """Place the thumbnails pixel for pixel, without resampling."""
    from PIL import Image

    left, top, width, height = 44, 978, 1150, 890  # pixels; top counts from below
    nb_columns, pitch = _grid(len(thumbnails), width, height)
    side = pitch - _GAP
    nb_rows = math.ceil(len(thumbnails) / nb_columns)
    sheet = np.empty((nb_rows * pitch - _GAP, nb_columns * pitch - _GAP, 3), np.uint8)
    sheet[:] = np.array([int(_PAPER[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    for number, thumbnail in enumerate(thumbnails):
        y, x = (pitch * index for index in divmod(number, nb_columns))
        tile = Image.fromarray(thumbnail).resize((side, side), Image.Resampling.LANCZOS)
        sheet[y : y + side, x : x + side] = np.asarray(tile)
    figure.figimage(sheet, left, top - len(sheet))
    figure.text(left / _WIDTH, 1008 / _HEIGHT, "Every photograph as the receiver decoded it", size=14, weight="bold")


def _grid(nb_images: int, width: int, height: int) -> tuple[int, int]:
    """Return the number of columns and the pitch in pixels that maximise the size of square images."""
    pitches = {n: min(width // n, height // math.ceil(nb_images / n)) for n in range(1, nb_images + 1)}
    nb_columns = max(pitches, key=lambda n: (pitches[n], n))
    return nb_columns, min(pitches[nb_columns], 240)


def _headline(figure: Figure, document: dict[str, Any], nb_photos: int) -> None:
    identical = document["identical"]
    colour = _GOOD if document["error"] is None else _BAD
    figure.text(_LEFT, 0.9, f"{identical} of {nb_photos}", size=44, weight="bold", color=colour)
    figure.text(_LEFT, 0.862, "photographs identical byte for byte, and decoded", size=15, color=_SOFT)
    facts = (
        (bytes_text(document["nbytes"]), "in one time slice"),
        (f"{1e3 * document['seconds']:.0f} ms", "send to delivered"),
        (
            rate_text(document["goodput_bps"]),
            "its goodput",
        ),
    )
    for (number, meaning), x in zip(facts, (_LEFT, _LEFT + 0.104, _LEFT + 0.212), strict=True):
        figure.text(x, 0.792, number, size=21, weight="bold")
        figure.text(x, 0.767, meaning, size=11, color=_SOFT)


def _throughput(axes: Axes, samples: Samples, document: dict[str, Any]) -> None:
    """Plot the ports' received bits per second, stacked, in bins of 50 ms."""
    names, times, rates = rates_by_port(samples)
    how = f"stacked, in bins of {1e3 * _BIN_SECONDS:.0f} ms"
    if cold_start(document["slices"]):
        how += "; slow at first where the kernel clears new memory"
    _title(axes, "Received by each port, Gbit/s", how)
    _plain(axes)
    if not names:
        axes.text(0.5, 0.5, "over before it could be sampled", ha="center", color=_SOFT, transform=axes.transAxes)
        return
    axes.stackplot(
        times, rates, colors=[_COLOURS[i % len(_COLOURS)] for i in range(len(names))], linewidth=0, step=None
    )
    axes.set_xlim(times[0], times[-1])
    axes.set_ylim(0, 1.12 * max(rates.sum(axis=0).max(), 1e-9))
    axes.yaxis.grid(True, color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds since the first byte", size=11, color=_SOFT)
    slices = document["slices"]
    if len(slices) > 1:
        median = statistics.median(row["goodput_bps"] for row in slices[1:])
        axes.text(
            0.995,
            0.965,
            f"{len(slices)} slices one after the other, {bytes_text(sum(row['nbytes'] for row in slices))}; "
            f"median goodput {rate_text(median)}",
            size=10.5,
            color=_SOFT,
            ha="right",
            va="top",
            transform=axes.transAxes,
        )


def rates_by_port(samples: Samples) -> tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Turn byte counts into rates.

    Parameters
    ----------
    samples : list of (seconds, {port: bytes})
        In order of time. A port that is missing from a reading has received nothing.

    Returns
    -------
    names : list of str
        Ports in drawing order. Empty if nothing was received.
    times : ndarray, shape (bins,)
        Middle of each bin, seconds since the last reading before the first byte.
    rates : ndarray, shape (ports, bins)
        Gbit/s.
    """
    names = sorted({name for _, row in samples for name in row}, key=lambda name: (len(name), name))
    clock = np.array([seconds for seconds, _ in samples])
    counts = np.array([[row.get(name, 0) for _, row in samples] for name in names], np.float64)
    counts = np.maximum.accumulate(counts, axis=-1)  # a closed port has left the table; its bytes still count
    total = counts.sum(axis=0) if names else np.empty(0)
    moving = np.flatnonzero(np.diff(total) > 0)
    if moving.size == 0:
        return [], np.empty(0), np.empty((0, 0))
    begin, end = clock[moving[0]], clock[moving[-1] + 1]
    edges = np.linspace(begin, end, max(2, round((end - begin) / _BIN_SECONDS) + 1))
    read = np.array([np.interp(edges, clock, row) for row in counts])
    rates = np.diff(read, axis=1) / np.diff(edges) * 8 / 1e9
    times = (edges[1:] + edges[:-1]) / 2 - begin
    if times.size == 1:  # a line needs two points
        times, rates = edges - begin, np.repeat(rates, 2, axis=1)
    return names, times, rates


def _shares(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw each port's part of the first slice as a labelled bar. The bars are also the legend of the curve."""
    _title(axes, "What each port carried of the first slice", "bytes of frames, and frames")
    axes.set_axis_off()
    total = sum(row["nbytes"] for row in rows) or 1
    at = 0.0
    for number, row in enumerate(sorted(rows, key=lambda row: (len(row["name"]), row["name"]))):
        share = row["nbytes"] / total
        axes.barh(0, share, left=at, height=0.55, color=_COLOURS[number % len(_COLOURS)], edgecolor=_PAPER, linewidth=2)
        if share > 0.1:
            axes.text(
                at + share / 2,
                0,
                f"#{row['name'].rpartition('#')[2]}",
                ha="center",
                va="center",
                size=14,
                color="white",
                weight="bold",
            )
            label = f"{bytes_text(row['nbytes'])}\n{row['frames']:,} frames"
            axes.text(at + share / 2, -0.42, label, ha="center", va="top", size=10.5, color=_SOFT, linespacing=1.4)
        at += share
    axes.set_xlim(0, 1)
    axes.set_ylim(-1.1, 0.4)


def _small_print(figure: Figure, document: dict[str, Any]) -> None:
    drivers = ", ".join(sorted({row["driver"] for row in document["ports"]}))
    scheme = document["endpoint"].partition(":")[0]
    lines = (
        f"Two processes on one host over {scheme}: ({drivers}, shared memory): these rates are its",
        f"memory's and cores', not a network's. {document['frames_sent']:,} frames carried the first slice,",
        f"{document['frames_retransmitted']:,} more were retransmitted.   aiflow {document['version']}",
    )
    figure.text(_LEFT, 0.042, "\n".join(lines), size=10.5, color=_SOFT, linespacing=1.5)


def _title(axes: Axes, text: str, explanation: str) -> None:
    axes.annotate(text, (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points", size=14, weight="bold")
    axes.annotate(
        explanation, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", size=10.5, color=_SOFT
    )


def _plain(axes: Axes) -> None:
    axes.set_facecolor(_PAPER)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=11, labelcolor=_SOFT)
