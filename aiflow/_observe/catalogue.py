"""The table of all figures that a Sender or Receiver shows: name, kind, unit, meaning, and where each comes from.

`aiflow top`, the JSON of a snapshot, Prometheus and the page docs/observe.md take them from here. The sources are plain
attributes of `aiflow._observe.snapshot`'s views; this module imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["FIGURES", "Figure", "markdown", "of_level", "values"]


class Figure(NamedTuple):
    """One figure.

    Attributes
    ----------
    name : str
        Key in a snapshot. Prometheus calls it ``aiflow_`` and this; a counter has ``_total`` at its end there, too.
    level : {"side", "peer", "port"}
        What it describes: a Sender or Receiver, a receiver that a Sender is joined to, or a port.
    kind : {"counter", "gauge"}
        A counter only grows while its subject lives.
    unit : str
        "" for a number of things.
    help : str
        What it means.
    of : callable
        View → value; None where there is none. With a `label`: a mapping.
    roles : tuple of str
        Whose it is.
    label : str
        The values are by this, such as the reason of a drop; "" for a single value.
    """

    name: str
    level: str
    kind: str
    unit: str
    help: str
    of: Callable[[Any], Any]
    roles: tuple[str, ...] = ("sender", "receiver")
    label: str = ""


BOTH, TX, RX = ("sender", "receiver"), ("sender",), ("receiver",)
SECONDS = 1e-9  # of a nanosecond

FIGURES = (
    # ---- a Sender or Receiver ----
    Figure(
        "slices",
        "side",
        "counter",
        "",
        "Slices delivered; one to several receivers counts once",
        lambda v: v.ended["slices"],
    ),
    Figure("elements", "side", "counter", "", "Elements of the slices delivered", lambda v: v.ended["elements"]),
    Figure("bytes", "side", "counter", "bytes", "Bytes of these elements", lambda v: v.ended["bytes"]),
    Figure("slices_failed", "side", "counter", "", "Slices that were not delivered", lambda v: v.ended["failed"], TX),
    Figure(
        "slice_seconds",
        "side",
        "counter",
        "seconds",
        "Sum of the time from the call, or from when a receiver was there, to the confirmation; slices delivered only",
        lambda v: v.ended["ns"] * SECONDS,
        TX,
    ),
    Figure(
        "slice_frames",
        "side",
        "counter",
        "",
        "Frames that carried the slices delivered",
        lambda v: v.ended["frames"],
        TX,
    ),
    Figure(
        "slice_frames_retransmitted",
        "side",
        "counter",
        "",
        "Retransmissions among these frames",
        lambda v: v.ended["retransmits"],
        TX,
    ),
    Figure("slices_in_flight", "side", "gauge", "", "Slices posted that have not ended", lambda v: v.in_flight, TX),
    Figure("reports", "side", "counter", "", "Feedback frames heard", lambda v: v.counters["reports"], TX),
    Figure("probes", "side", "counter", "", "Probes sent", lambda v: v.counters["probes"], TX),
    Figure(
        "spurious_losses",
        "side",
        "counter",
        "",
        "Frames judged lost that were only late",
        lambda v: v.counters["spurious"],
        TX,
    ),
    Figure(
        "frames_dropped",
        "side",
        "counter",
        "",
        "Frames that were not taken. Those that a loop drops for all count for each Sender and Receiver that it drives",
        lambda v: v.drops,
        label="reason",
    ),
    Figure("memory_bytes", "side", "gauge", "bytes", "Memory that slices hold", lambda v: v.store.used, RX),
    Figure("memory_limit_bytes", "side", "gauge", "bytes", "The Receiver's memory=", lambda v: v.store.limit, RX),
    Figure(
        "memory_held_bytes",
        "side",
        "gauge",
        "bytes",
        "Part of the memory that the user's slices hold",
        lambda v: v.held_bytes,
        RX,
    ),
    Figure("slices_held", "side", "gauge", "", "Slices that the user has and did not release", lambda v: v.nb_held, RX),
    Figure(
        "memory_awaited_bytes",
        "side",
        "gauge",
        "bytes",
        "Size of the slice that waits for memory",
        lambda v: v.starving[0],
        RX,
    ),
    Figure("senders", "side", "gauge", "", "Senders with a session", lambda v: v.nb_sessions, RX),
    Figure(
        "senders_gone",
        "side",
        "counter",
        "",
        "Senders that left without a goodbye",
        lambda v: v.counters["senders_gone"],
        RX,
    ),
    Figure(
        "arrival_seconds",
        "side",
        "counter",
        "seconds",
        "Time by what arrives: nothing (idle), data (arriving), or data that waits for memory (memory)",
        lambda v: v.seconds_of(v.agent.waits()),
        RX,
        "state",
    ),
    Figure(
        "reader_behind_seconds",
        "side",
        "counter",
        "seconds",
        "Time in which a whole slice waited for the user to take it",
        lambda v: v.agent.behind_ns * SECONDS,
        RX,
    ),
    Figure(
        "caller_wait_seconds",
        "side",
        "counter",
        "seconds",
        "Time that the user's calls waited: for a slice to come, or for one to be delivered",
        lambda v: v.caller_wait_ns * SECONDS,
    ),
    Figure("callers_waiting", "side", "gauge", "", "Calls of the user that wait now", lambda v: v.callers_waiting),
    Figure(
        "loop_busy_seconds",
        "side",
        "counter",
        "seconds",
        "Time of the loop's iterations that moved frames; without a CPU it counts, too",
        lambda v: v.loop.busy_ns * SECONDS,
    ),
    Figure(
        "loop_rest_seconds",
        "side",
        "counter",
        "seconds",
        "Time that the loop rested because of max_cores=",
        lambda v: v.loop.rested_ns * SECONDS,
    ),
    Figure("loop_cpu", "side", "gauge", "", "CPU that the loop was driven on last", lambda v: v.loop.cpu()),
    # ---- a receiver of a Sender ----
    Figure("peer_joined", "peer", "gauge", "", "1: the Sender is joined to it", lambda v: int(v.joined), TX),
    Figure("peer_slices", "peer", "counter", "", "Slices or parts delivered to it", lambda v: v.ended["slices"], TX),
    Figure("peer_bytes", "peer", "counter", "bytes", "Bytes delivered to it", lambda v: v.ended["bytes"], TX),
    Figure(
        "peer_free_bytes",
        "peer",
        "gauge",
        "bytes",
        "Free bytes of its memory, by its newest feedback",
        lambda v: v.free,
        TX,
    ),
    Figure(
        "wait_seconds",
        "peer",
        "counter",
        "seconds",
        "Time by what the Sender waited for: a slice (application), this receiver (receiver), the delivery of data "
        "that is granted (path), memory (memory), or the user's confirmation there (confirmation)",
        lambda v: v.waits,
        TX,
        "state",
    ),
    # ---- a port ----
    Figure("port_transmit_frames", "port", "counter", "", "Frames sent", lambda v: v.counters.tx_frames),
    Figure(
        "port_transmit_bytes", "port", "counter", "bytes", "Bytes sent, headers included", lambda v: v.counters.tx_bytes
    ),
    Figure("port_receive_frames", "port", "counter", "", "Frames received", lambda v: v.counters.rx_frames),
    Figure(
        "port_receive_bytes",
        "port",
        "counter",
        "bytes",
        "Bytes received, headers included",
        lambda v: v.counters.rx_bytes,
    ),
    Figure(
        "port_retransmitted_frames", "port", "counter", "", "Retransmissions sent", lambda v: v.counters.retransmits, TX
    ),
    Figure("port_lost_frames", "port", "counter", "", "Frames judged lost", lambda v: v.counters.lost, TX),
    Figure(
        "port_congestion_signals",
        "port",
        "counter",
        "",
        "Signs of congestion, at each of which the pacer slowed down",
        lambda v: v.counters.signals,
        TX,
    ),
    Figure(
        "port_rx_nombuf", "port", "counter", "", "Frames dropped for want of an mbuf", lambda v: v.counters.rx_nombuf
    ),
    Figure(
        "port_tx_nombuf",
        "port",
        "counter",
        "",
        "Times that a frame to send waited for an mbuf",
        lambda v: v.counters.tx_nombuf,
    ),
    Figure(
        "port_busy_seconds",
        "port",
        "counter",
        "seconds",
        "Time in which frames were in flight",
        lambda v: v.counters.busy_ns * SECONDS,
        TX,
    ),
    Figure("port_usable", "port", "gauge", "", "1: a path goes over it", lambda v: int(v.counters.usable)),
    Figure("port_in_flight_frames", "port", "gauge", "", "Frames in flight", lambda v: v.counters.in_flight, TX),
    Figure(
        "port_window_frames",
        "port",
        "gauge",
        "",
        "The most frames in flight; a Receiver's: the size of the receive ring",
        lambda v: v.counters.window,
    ),
    Figure(
        "port_rtt_seconds", "port", "gauge", "seconds", "Smoothed round trip", lambda v: v.counters.rtt_ns * SECONDS, TX
    ),
    Figure(
        "port_send_interval_seconds",
        "port",
        "gauge",
        "seconds",
        "From the start of a frame to that of the next, by the pacer",
        lambda v: v.counters.gap_ns * SECONDS,
        TX,
    ),
    Figure(
        "port_loss_ratio",
        "port",
        "gauge",
        "ratio",
        "Share of the present slice's frames that did not arrive",
        lambda v: v.metrics.drop_rate,
    ),
    Figure("port_score", "port", "gauge", "ratio", "The paper's score: 1 for a free port", lambda v: v.port_score, TX),
    Figure(
        "port_link_speed_bits_per_second",
        "port",
        "gauge",
        "bits_per_second",
        "Speed of the link, as configured or as the driver reports it",
        lambda v: v.link_speed_bps,
    ),
)
"""All figures. A test checks that the names are fit for Prometheus, and that each gets a value in a real run."""


def of_level(level: str, role: str) -> Iterator[Figure]:
    """The figures of a level that a Sender or a Receiver has."""
    return (figure for figure in FIGURES if figure.level == level and role in figure.roles)


def values(level: str, role: str, view: Any) -> dict[str, Any]:
    """Name → value of a view; figures without a value are left out.

    Parameters
    ----------
    level : {"side", "peer", "port"}
    role : {"sender", "receiver"}
    view : object
        What the sources read.
    """
    found = {}
    for figure in of_level(level, role):
        value = figure.of(view)
        if value is not None:
            found[figure.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def markdown() -> str:
    """The table of docs/observe.md."""
    lines = ["| Metric | Kind | Labels | Of | Meaning |", "|---|---|---|---|---|"]
    labels = {"side": "", "peer": "`peer` ", "port": "`port` `driver` "}
    for figure in FIGURES:
        total = "_total" if figure.kind == "counter" else ""
        own = labels[figure.level] + (f"`{figure.label}`" if figure.label else "")
        whose = " and ".join(role.capitalize() for role in figure.roles)
        lines.append(f"| `aiflow_{figure.name}{total}` | {figure.kind} | {own.strip()} | {whose} | {figure.help} |")
    return "\n".join(lines)
