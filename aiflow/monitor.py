"""From counters to the columns of the port path table (Table 2), by the formulas of the paper's section 3.4.

The loop copies its counters once an interval; a rate is what the two newest copies differ by. Nothing here runs unless
somebody looks, and nothing locks the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiflow.config import INTERVAL_S, SCORE_WEIGHTS, parse_link_speeds
from aiflow.errors import PortError
from aiflow.scheduler import PortState, group_by_switch, score

__all__ = ["INTERVAL_S", "LinkSpeeds", "Metrics", "Monitor", "metrics"]


class Metrics(NamedTuple):
    """What Table 2 says of a port in one interval.

    Attributes
    ----------
    tx_rate : float
        (N(T) - N(T - t)) / t, frames/s: sent by a Sender's port, received by a Receiver's.
    rate_bps : float
        R_actual: tx_rate × mean frame bytes × 8.
    bandwidth_rate : float
        R_actual / Max_bandwidth; NaN where nobody said what that is.
    drop_rate : float
        (P_send - P_recv) / P_send, as the receiver counts it: of the numbers that it can have seen, those it has not.
    buffer_occupancy : float
        N_ring / N_capacity: frames under way of those that may be.
    """

    tx_rate: float
    rate_bps: float
    bandwidth_rate: float
    drop_rate: float
    buffer_occupancy: float


def metrics(
    older: Mapping[str, int],
    newer: Mapping[str, int],
    seconds: float,
    max_bandwidth_bps: float | None,
    sent: int,
    arrived: int,
) -> Metrics:
    """The formulas of section 3.4.

    Parameters
    ----------
    older, newer : mapping
        Two samples of one port.
    seconds : float
        Time between them.
    max_bandwidth_bps : float or None
        Speed of its link.
    sent, arrived : int
        P_send and P_recv, since the present slice began.

    Returns
    -------
    Metrics
    """
    frames, nbytes = newer["frames"] - older["frames"], newer["bytes"] - older["bytes"]
    if frames < 0 or seconds <= 0:  # the port was attached anew between the two
        frames = nbytes = 0
    tx_rate = frames / seconds if seconds > 0 else 0.0
    rate_bps = tx_rate * (nbytes / frames) * 8 if frames else 0.0
    return Metrics(
        tx_rate,
        rate_bps,
        rate_bps / max_bandwidth_bps if max_bandwidth_bps else float("nan"),
        max(sent - arrived, 0) / sent if sent > 0 else 0.0,
        min(newer["queued"] / newer["capacity"], 1.0) if newer["capacity"] else 0.0,
    )


class LinkSpeeds:
    """What each port's link carries: as configured, else as the driver says, where it knows.

    Parameters
    ----------
    asked : rate, or sequence of rates, or None
        ``link_speed=``: one for all ports, or one for each in their order.
    nb_ports : int
        Ports that there will be.

    Raises
    ------
    ConfigError
        If the sequence is of another length.
    """

    def __init__(self, asked: str | float | Sequence[str | float] | None, nb_ports: int) -> None:
        self._one, self._each = parse_link_speeds(asked, nb_ports)

    def given(self, index: int) -> float | None:
        """Bit/s configured for the port at this place of the loop."""
        return self._each[index] if index < len(self._each) else self._one

    def of(self, index: int, port: Any) -> float | None:
        """Bit/s of the port at this place of the loop; None where nobody knows."""
        if given := self.given(index):
            return given
        try:
            speed: int | None = port.link()[1]
        except PortError:  # it hung up just now
            return None
        return speed


class Monitor:
    """The port path table's figures for one Sender or Receiver.

    Parameters
    ----------
    loop : TxLoop or RxLoop
    speeds : LinkSpeeds
    weights : sequence of float
        Of the score.
    switches : sequence of str, or "probe", or None
        The switch that each port hangs on, in their order; "probe" finds it out from who answers whom.
    """

    def __init__(
        self,
        loop: Any,
        speeds: LinkSpeeds,
        weights: Sequence[float] = SCORE_WEIGHTS,
        switches: Sequence[str] | str | None = None,
    ) -> None:
        self.loop = loop
        self.speeds = speeds
        self.weights = weights
        self.switches = switches
        self._fastest: dict[int, float] = {}

    def _metrics(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, Metrics]:
        samples = self.loop.samples()
        found = {}
        for row in rows:
            index = row["index"]
            seconds, older, newer = 0.0, _NOTHING, _NOTHING
            if samples is not None:
                (then, before), (now, after) = samples
                seconds, older, newer = (now - then) / 1e9, before[index], after[index]
            found[index] = metrics(
                older,
                newer,
                seconds,
                self.speeds.of(index, row["port"]),
                row["sent"] - row["sent_before"],
                row["arrived"] - row["arrived_before"],
            )
        return found

    def table(self) -> list[tuple[Mapping[str, Any], Metrics, float, float | None]]:
        """For each port: its counters, its metrics, its score, and its link's speed in bit/s."""
        rows = self.loop.port_rows()
        figures = self._metrics(rows)
        return [
            (
                row,
                figures[row["index"]],
                score(_state(row, figures[row["index"]], None), self.weights),
                self.speeds.of(row["index"], row["port"]),
            )
            for row in rows
        ]

    def begin_slice(self) -> tuple[int, int]:
        """A slice begins: drop rates count from here.

        Returns
        -------
        attached, usable : int
            Bit i: port i is up; a path goes over it.
        """
        masks: tuple[int, int] = self.loop.begin_slice()
        return masks

    def port_states(self, attached: int, usable: int, measured: bool = True) -> list[PortState]:
        """What the scheduler wants to know of the ports when a slice begins.

        Parameters
        ----------
        attached, usable : int
            From `begin_slice`.
        measured : bool
            With speeds, rates and switches; False: only which ports are usable, which is all that some policies need.
        """
        if not measured:
            ports = range(attached.bit_length())
            return [PortState(index, bool(usable >> index & 1)) for index in ports if attached >> index & 1]
        rows = self.loop.port_rows()
        figures = self._metrics(rows)
        states = []
        switches = self.switch_of()
        for row in rows:
            index = row["index"]
            # Where nobody said how fast a link is, the most that it was seen to carry is the best guess.
            self._fastest[index] = max(self._fastest.get(index, 0.0), figures[index].rate_bps)
            speed = self.speeds.of(index, row["port"]) or self._fastest[index] or None
            states.append(_state(row, figures[index], speed)._replace(switch=switches.get(index)))
        return states

    def switch_of(self) -> dict[int, str]:
        """The switch of each port, by its place in the loop; empty where none were given or asked for."""
        if self.switches is None:
            return {}
        if isinstance(self.switches, str):
            return group_by_switch(self.loop.answers())
        return dict(enumerate(self.switches))


_NOTHING: Mapping[str, int] = {"frames": 0, "bytes": 0, "queued": 0, "capacity": 0}


def _state(row: Mapping[str, Any], figures: Metrics, speed: float | None) -> PortState:
    bandwidth = figures.bandwidth_rate
    return PortState(
        row["index"],
        row["usable"],
        speed,
        0.0 if bandwidth != bandwidth else bandwidth,  # not known: not held against it
        figures.buffer_occupancy,
        figures.drop_rate,
    )
