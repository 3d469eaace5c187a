"""The views: one function for each class that a notebook shows. Each reads what it is given, and changes nothing."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from aiflow._html.markup import bar, block, bytes_of, heading, note, pictures, preformatted, rate_of, table
from aiflow._html.thumbnails import SIZE, Budget, looks_like_image, thumbnail
from aiflow.errors import ConfigError

__all__ = ["of_element", "of_port_table", "of_report", "of_side", "of_slice"]

NB_PICTURES = 12
NB_STREAMS = 20
NB_LOOKED_AT = 48
"""Elements whose bytes are read in search of pictures."""

NO_PILLOW = "Pictures need Pillow: pip install 'aiflow-dpdk[notebook]'"


def of_report(report: Any) -> str:
    """A `SliceReport`."""
    head = heading(
        f"slice {report.slice_id}",
        f"delivered: {report.elements:,} elements, {bytes_of(report.nbytes)} in {report.seconds * 1e3:.1f} ms "
        f"= {rate_of(report.goodput_bps)}",
    )
    parts = [head]
    if report.ports:
        total = sum(port.nbytes for port in report.ports) or 1
        rows = (
            (port.name, port.driver, f"{port.frames:,}", bytes_of(port.nbytes), bar(port.nbytes / total))
            for port in report.ports
        )
        parts.append(table(("port", "driver", "frames", "sent", "share"), rows, left=2))
    if len(report.receivers) > 1:
        to = ((r.name, f"{r.elements:,}", bytes_of(r.nbytes), "yes" if r.delivered else "no") for r in report.receivers)
        parts.append(table(("receiver", "elements", "bytes", "delivered"), to))
    said = f"{report.frames_sent:,} frames, {report.frames_retransmitted:,} of them retransmitted"
    if report.connecting > 0.05:
        said += f". It waited {report.connecting:.1f} s for a receiver before that"
    return block(*parts, note(said))


def of_port_table(cells: list[list[str]]) -> str:
    """A `PortTable`: its head and rows, as text."""
    head, *rows = [["–" if cell == "nan" else cell for cell in row] for row in cells]
    return block(table(head, rows, left=4) if rows else note("No port is up yet."))


def of_slice(time_slice: Any, title: str) -> str:
    """A `TimeSlice` or a `Shard`: pictures of elements that are images, and a row for each stream."""
    facts = f"{len(time_slice):,} elements, {bytes_of(time_slice.nbytes)}"
    parts = [heading(title, facts)]
    try:
        found = [element for element in islice(time_slice, NB_LOOKED_AT) if looks_like_image(element)]
        parts += _pictures(found)
    except ConfigError as error:  # released
        return block(heading(title, facts), note(str(error)))
    streams = time_slice._by_stream()
    rows = [
        (
            name,
            f"{sum(run.nb_elements for run in runs):,}",
            _one({str(run.form.dtype) for run in runs}),
            _one({str(list(run.form.shape)) for run in runs}),
            bytes_of(sum(run.nbytes * run.nb_elements for run in runs)),
        )
        for name, runs in islice(streams.items(), NB_STREAMS)
    ]
    if rows:
        parts.append(table(("stream", "elements", "dtype", "shape", "bytes"), rows))
    if len(streams) > NB_STREAMS:
        parts.append(note(f"and {len(streams) - NB_STREAMS:,} more streams"))
    return block(*parts)


def of_element(element: Any) -> str:
    """An `Element`: its picture, or its first numbers."""
    title = element.stream
    facts = f"{element.dtype} {list(element.shape)}, {bytes_of(element.nbytes)}, element {element.number} of its slice"
    try:
        if looks_like_image(element):
            shown = _pictures([element], size=2 * SIZE)
        else:
            shown = [preformatted(np.array2string(element.array, threshold=24, edgeitems=3))]
    except ConfigError as error:  # released
        shown = [note(str(error))]
    return block(heading(title, facts), *shown)


def of_side(side: Any, title: str, state: str) -> str:
    """A `Sender` or a `Receiver`: its endpoints and their drivers, its ports, and the frames that it did not take."""
    parts = [heading(title, state)]
    described = side.describe()
    rows = [(row["endpoint"], row["driver"], row["state"], row["nb_ports"]) for row in described]
    parts.append(table(("endpoint", "driver", "state", "ports"), rows, left=3))
    parts += [note(hint) for row in described for hint in row["hints"]]
    ports = [
        (row.name, f"{row.frames:,}", bytes_of(row.nbytes), rate_of(row.rate_bps), bar(row.buffer_occupancy))
        for row in side.port_table
    ]
    if ports:
        parts.append(table(("port", "frames", "bytes", "rate now", "window in use"), ports))
    counted = ", ".join(f"{name} {count:,}" for name, count in side.counters.items() if count)
    if counted:
        parts.append(note(f"counters: {counted}"))
    return block(*parts)


def _pictures(elements: list[Any], size: int = SIZE) -> list[str]:
    budget = Budget()
    try:
        shown = ((thumbnail(element, size, budget), element) for element in elements)
        made = list(islice(((address, _caption(element)) for address, element in shown if address), NB_PICTURES))
    except ImportError:
        return [note(NO_PILLOW)]
    return [pictures(made)] if made else []


def _caption(element: Any) -> str:
    return str(element.stream)


def _one(texts: set[str]) -> str:
    """The only one, or how many there are."""
    return next(iter(texts)) if len(texts) == 1 else f"{len(texts)} kinds"
