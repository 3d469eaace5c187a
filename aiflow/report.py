"""Reports to the user: of a slice, and the port path table (Table 2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from aiflow.monitor import Monitor, PortFigures

__all__ = ["PortReport", "PortRow", "PortTable", "ReceiverReport", "SliceReport"]


class PortReport(NamedTuple):
    """One port's part in a slice: frames and bytes it sent, headers included."""

    name: str
    driver: str
    frames: int
    nbytes: int


class ReceiverReport(NamedTuple):
    """One receiver's part in a slice."""

    name: str
    elements: int
    nbytes: int
    delivered: bool


@dataclass(frozen=True, init=False)
class SliceReport:
    """The result of `Sender.send`: the receiver holds all of the slice.

    Attributes
    ----------
    slice_id : int
        Number within the session; with several receivers, the first one's.
    elements : int
        Elements sent.
    nbytes : int
        Their bytes.
    seconds : float
        From the call until the receiver's confirmation that it holds everything. When no receiver was there at the
        call, the time counts from when one joined.
    connecting : float
        Seconds before that, from the call until a receiver was there; 0.0 when one was there already.
    goodput_bps : float
        Element bits per second: 8 × nbytes / seconds.
    frames_sent, frames_retransmitted : int
        Frames of the slice, and how many of them were retransmissions.
    placed_bytes : int
        Of `nbytes`: written straight into the memory of receivers on this host. Frames carried the others.
    lent_bytes : int
        Of `nbytes`: on loan, so that receivers on this host read them where they lie (`Sender.loan`).
    ports : tuple of PortReport
        A row a port.
    receivers : tuple of ReceiverReport
        A row a receiver.
    """

    slice_id: int
    elements: int
    nbytes: int
    seconds: float
    frames_sent: int
    frames_retransmitted: int
    ports: tuple[PortReport, ...]
    receivers: tuple[ReceiverReport, ...]
    connecting: float
    placed_bytes: int
    lent_bytes: int

    def __init__(
        self,
        slice_id: int,
        elements: int,
        nbytes: int,
        seconds: float,
        frames_sent: int,
        frames_retransmitted: int,
        ports: tuple[PortReport, ...] = (),
        receivers: tuple[ReceiverReport, ...] = (),
        connecting: float = 0.0,
        placed_bytes: int = 0,
        lent_bytes: int = 0,
    ) -> None:
        vars(self).update(  # a frozen dataclass's own __init__ takes a microsecond more
            slice_id=slice_id,
            elements=elements,
            nbytes=nbytes,
            seconds=seconds,
            frames_sent=frames_sent,
            frames_retransmitted=frames_retransmitted,
            ports=ports,
            receivers=receivers,
            connecting=connecting,
            placed_bytes=placed_bytes,
            lent_bytes=lent_bytes,
        )

    @property
    def goodput_bps(self) -> float:
        """Element bits per second."""
        return 8 * self.nbytes / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        connecting = f" after {self.connecting:.1f} s of connecting" if self.connecting > 0.05 else ""
        lines = [
            f"slice {self.slice_id}: {self.elements} elements, {self.nbytes:,} bytes in {self.seconds * 1e3:.1f} ms"
            f"{connecting} = {self.goodput_bps / 1e9:.3f} Gbit/s, {self.frames_sent} frames, "
            f"{self.frames_retransmitted} retransmitted"
        ]
        if self.placed_bytes:
            lines[0] += f", {self.placed_bytes:,} bytes written in place"
        if self.lent_bytes:
            lines[0] += f", {self.lent_bytes:,} bytes on loan"
        lines += [f"  {port.name} ({port.driver}): {port.frames} frames, {port.nbytes:,} bytes" for port in self.ports]
        if len(self.receivers) > 1:
            lines += [f"  → {to.name}: {to.elements} elements, {to.nbytes:,} bytes" for to in self.receivers]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_report(self)


COLUMNS = np.dtype(
    [
        ("port_id", "u2"),
        ("dest_mac", "S18"),
        ("lcore_id", "u2"),
        ("tx_rate", "f4"),
        ("bandwidth_rate", "f4"),
        ("drop_rate", "f4"),
        ("buffer_occupancy", "f4"),
        ("port_score", "f4"),
        ("send_interval", "u4"),
        ("updated_time", "u8"),
    ]
)
"""Table 2's ten columns, in its order and widths."""


@dataclass(frozen=True)
class PortRow:
    """A row of the port path table: Table 2's columns, and the counters behind them.

    Attributes
    ----------
    port_id : int
        DPDK's number of the port.
    dest_mac : str
        MAC address that its path leads to, "" before a receiver answered.
    lcore_id : int
        The CPU that its loop was last driven on; 65535 when that is not known.
    tx_rate : float
        Frames per second in the newest interval: sent by a Sender's port, received by a Receiver's.
    bandwidth_rate : float
        Bits per second in that interval ÷ the link's speed; NaN where that is not known (`link_speed=`).
    drop_rate : float
        Share of the present slice's frames that did not arrive, as the receiver counts them.
    buffer_occupancy : float
        Frames in flight ÷ the most that may be.
    port_score : float
        The paper's score: the higher, the more of the port is free.
    send_interval : int
        Nanoseconds from the start of a frame to that of the next, as the pacer keeps it now; 0: none.
    updated_time : int
        Wall clock of this snapshot, ns.
    name, driver : str
        Name of the port, and of its DPDK driver.
    frames, nbytes : int
        Sent by a Sender's port, received by a Receiver's, headers included.
    frames_again, frames_lost : int
        Frames of a Sender's port that were retransmitted, and those judged lost.
    in_flight, window : int
        Frames of a Sender's port that are unacknowledged now, and the most that may be. A Receiver's `window` is the
        size of the receive ring.
    rtt_ns : int
        Smoothed round trip in ns; 0 when not known.
    rate_bps : float
        Bits per second in the newest interval, headers included.
    link_speed_bps : float or None
        As configured, or as the driver reports; None for virtual ports, whose drivers report no real speed.
    switch : str or None
        The switch that the port hangs on, where that was given or asked for.
    rx_nombuf : int
        Received frames dropped because the pool had no mbuf to move them into.
    tx_nombuf : int
        Times that the pool had no mbuf for a frame to send; the frame waits.
    by_reference : int
        Frames that the port sent by reference: the driver, or the card itself, read the payload out of the user's
        memory.
    """

    port_id: int
    dest_mac: str
    lcore_id: int
    tx_rate: float
    bandwidth_rate: float
    drop_rate: float
    buffer_occupancy: float
    port_score: float
    send_interval: int
    updated_time: int
    name: str
    driver: str
    frames: int
    nbytes: int
    frames_again: int
    frames_lost: int
    in_flight: int
    window: int
    rtt_ns: int
    rate_bps: float
    link_speed_bps: float | None
    switch: str | None = None
    rx_nombuf: int = 0
    tx_nombuf: int = 0
    by_reference: int = 0

    @property
    def bytes(self) -> int:
        """The same as `nbytes`."""
        return self.nbytes


class PortTable:
    """A snapshot of the port path table: a sequence of `PortRow`."""

    def __init__(self, rows: list[PortRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PortRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> PortRow:
        return self.rows[index]

    def as_array(self) -> np.ndarray[Any, Any]:
        """A structured ndarray of Table 2's ten columns."""
        table = np.zeros(len(self.rows), COLUMNS)
        for at, row in enumerate(self.rows):
            for name in COLUMNS.names or ():
                value = getattr(row, name)
                table[at][name] = value.encode() if name == "dest_mac" else value
        return table

    _SHOWN = (
        *("port_id", "name", "driver", "dest_mac", "tx_rate", "bandwidth_rate", "drop_rate", "buffer_occupancy"),
        *("port_score", "send_interval", "frames", "nbytes", "frames_again"),
    )

    def _cells(self) -> list[list[str]]:
        cells = [list(self._SHOWN)]
        for row in self.rows:
            values = [getattr(row, name) for name in self._SHOWN]
            cells.append([f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in values])
        return cells

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(len(line[k]) for line in cells) for k in range(len(self._SHOWN))]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
        )

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_port_table(self._cells())


def port_table(monitor: Monitor) -> PortTable:
    """The table of a Sender's or Receiver's ports, as it is now."""
    now = time.time_ns()
    cpu = monitor.agent.loop.cpu()
    return PortTable([_row(port, 65535 if cpu is None else cpu, now) for port in monitor.table()])


def _row(port: PortFigures, lcore_id: int, now_ns: int) -> PortRow:
    counters = port.counters
    return PortRow(
        **port.metrics._asdict(),
        port_id=counters.port_id,
        dest_mac=counters.dest_mac.hex(":") if counters.dest_mac else "",
        lcore_id=lcore_id,
        port_score=port.port_score,
        send_interval=round(counters.gap_ns),
        updated_time=now_ns,
        name=counters.name,
        driver=counters.driver,
        frames=counters.frames,
        nbytes=counters.nbytes,
        frames_again=counters.retransmits,
        frames_lost=counters.lost,
        in_flight=counters.in_flight,
        window=counters.window,
        rtt_ns=counters.rtt_ns,
        link_speed_bps=port.link_speed_bps,
        switch=port.switch,
        rx_nombuf=counters.rx_nombuf,
        tx_nombuf=counters.tx_nombuf,
        by_reference=counters.by_reference,
    )
