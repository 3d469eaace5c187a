"""A loop's counters of one port, as plain values, for the monitor and the port table."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PortCounters", "added"]

Samples = tuple[tuple[int, list[dict[str, int]]], ...]
"""Older and newer: a time in ns, and the counters of each port."""


class PortCounters(NamedTuple):
    """Counters of one port since it was attached, at one moment. A Sender's are those of all its receivers together.

    The loop's agent writes all of them, except where another writer is named. Frames and bytes include the headers.

    Attributes
    ----------
    number : int
        Place of the port in its loop, from 0. The control plane sets it when it attaches the port.
    port_id : int
        DPDK's number of the port. The control plane sets it, as it sets `name` and `driver`.
    name, driver : str
        Name of the port, as messages show it, and of its DPDK driver.
    receives : bool
        Is it a Receiver's port? Then `frames` and `nbytes` are those received.
    usable : bool
        Does the port have a path that carries data now? A Receiver's always has.
    dest_mac : bytes or None
        Six bytes: where the port's path leads. None before a receiver answered, and for a Receiver's port.
    tx_frames, tx_bytes : int
        Sent: a Sender's data, a Receiver's feedback.
    rx_frames, rx_bytes : int
        Received and taken.
    retransmits : int
        Frames: of those sent, retransmissions. Sender.
    lost : int
        Frames judged lost, spurious losses included. Sender.
    in_flight, window : int
        Frames: unacknowledged now, and the most that may be. A Receiver's `window` is the size of the receive ring.
    rtt_ns : int
        Smoothed round trip, ns; 0 when not known. Sender.
    gap_ns : float
        Time from the start of a frame to that of the next, ns, as the pacer keeps it; 0.0: none. Sender.
    signals : int
        Congestion signals, at each of which the pacer widened the gap. Sender.
    sent, arrived : int
        Frames: of the packet numbers that the receiver can have seen, all, and those that arrived.
    sent_before, arrived_before : int
        Frames: the same two when the present slice began. A Sender's `begin_slice` notes them.
    rx_nombuf : int
        Received frames that were dropped because the pool had no mbuf to move them into. The loop counts them.
    tx_nombuf : int
        Times that the pool had no mbuf for a frame to send; the frame waits. The loop counts them.
    by_reference : int
        Frames sent whose payload the driver, or the card, read out of the user's memory. The loop counts them.
    busy_ns : int
        Time in which frames were in flight, ns. Sender: of the receiver for which it is longest.
    """

    number: int
    port_id: int
    name: str
    driver: str
    receives: bool
    usable: bool
    dest_mac: bytes | None
    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    retransmits: int
    lost: int
    in_flight: int
    window: int
    rtt_ns: int
    gap_ns: float
    signals: int
    sent: int
    arrived: int
    sent_before: int
    arrived_before: int
    rx_nombuf: int
    tx_nombuf: int
    by_reference: int
    busy_ns: int = 0

    @property
    def frames(self) -> int:
        """Frames in the direction of the data: received by a Receiver's port, sent by a Sender's."""
        return self.rx_frames if self.receives else self.tx_frames

    @property
    def nbytes(self) -> int:
        """Bytes in the direction of the data, headers included."""
        return self.rx_bytes if self.receives else self.tx_bytes


def added(one: Samples, other: Samples) -> Samples:
    """Add the samples of two receivers. Both are taken in the same tick."""
    return tuple(
        (ns, [{key: port[key] + theirs[key] for key in port} for port, theirs in zip(ports, others, strict=True)])
        for (ns, ports), (_, others) in zip(one, other, strict=True)
    )
