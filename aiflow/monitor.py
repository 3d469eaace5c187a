"""From counters to the columns of the port path table (Table 2), by the formulas of the paper's section 3.4.

The loop copies its counters once an interval; a rate comes from the difference of the two newest copies. Nothing here
runs unless a table is asked for, and nothing locks the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiflow._dp_counters import PortCounters
from aiflow.config import INTERVAL_S, SCORE_WEIGHTS, parse_link_speeds
from aiflow.errors import PortError
from aiflow.scheduler import PortState, group_by_switch, score

__all__ = ["INTERVAL_S", "LinkSpeeds", "Metrics", "Monitor", "PortFigures", "metrics"]


class Metrics(NamedTuple):
    """Table 2's figures of a port in one interval.

    Attributes
    ----------
    tx_rate : float
        (N(T) - N(T - t)) / t, frames/s: sent by a Sender's port, received by a Receiver's.
    rate_bps : float
        R_actual: tx_rate × mean frame bytes × 8.
    bandwidth_rate : float
        R_actual / Max_bandwidth; NaN where the link's speed is not known.
    drop_rate : float
        (P_send - P_recv) / P_send, as the receiver counts: of the packet numbers that it can have seen, those missing.
    buffer_occupancy : float
        N_ring / N_capacity: frames in flight ÷ the most that may be.
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
    if frames < 0 or seconds <= 0:  # the port was attached anew between the two samples
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


class PortFigures(NamedTuple):
    """The monitor's figures of one port at one moment.

    Attributes
    ----------
    counters : PortCounters
    metrics : Metrics
    port_score : float
        The paper's score, from 0 to 1: the higher, the more of the port is free.
    link_speed_bps : float or None
        Bit/s of its link; None where that is not known.
    switch : str or None
        The switch that it hangs on, where that was given or asked for.
    """

    counters: PortCounters
    metrics: Metrics
    port_score: float
    link_speed_bps: float | None
    switch: str | None


class LinkSpeeds:
    """The speed of each port's link: as configured, else as the driver reports it.

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
        """Bit/s of the port at this place of the loop; None where that is not known."""
        if given := self.given(index):
            return given
        if port is None:  # detached a moment ago
            return None
        try:
            speed: int | None = port.link()[1]
        except PortError:  # it hung up a moment ago
            return None
        return speed


class Monitor:
    """The port path table's figures for one Sender or Receiver.

    Parameters
    ----------
    agent : TxAgent or RxAgent
    speeds : LinkSpeeds
    weights : sequence of float
        Of the score.
    switches : sequence of str, or "probe", or None
        The switch that each port hangs on, in their order; "probe" derives it from the answers to discovery.
    """

    def __init__(
        self,
        agent: Any,
        speeds: LinkSpeeds,
        weights: Sequence[float] = SCORE_WEIGHTS,
        switches: Sequence[str] | str | None = None,
    ) -> None:
        self.agent = agent
        self.speeds = speeds
        self.weights = weights
        self.switches = switches
        self._fastest: dict[int, float] = {}

    def _metrics(self, ports: Sequence[PortCounters]) -> dict[int, Metrics]:
        samples = self.agent.samples()
        found = {}
        for port in ports:
            seconds, older, newer = 0.0, _NOTHING, _NOTHING
            if samples is not None:
                (then, before), (now, after) = samples
                seconds, older, newer = (now - then) / 1e9, before[port.number], after[port.number]
            found[port.number] = metrics(
                older,
                newer,
                seconds,
                self._speed(port.number),
                port.sent - port.sent_before,
                port.arrived - port.arrived_before,
            )
        return found

    def _speed(self, index: int) -> float | None:
        return self.speeds.of(index, self.agent.attached_ports[index])

    def table(self) -> list[PortFigures]:
        """The figures of each attached port."""
        ports = self.agent.port_counters()
        figures = self._metrics(ports)
        switches = self.switch_of()
        return [
            PortFigures(
                port,
                figures[port.number],
                score(_state(port, figures[port.number], None), self.weights),
                self._speed(port.number),
                switches.get(port.number),
            )
            for port in ports
        ]

    def begin_slice(self) -> tuple[int, int]:
        """A slice begins: drop rates count from here.

        Returns
        -------
        attached, usable : int
            Bit i: port i is up; a path goes over it.
        """
        masks: tuple[int, int] = self.agent.begin_slice()
        return masks

    def port_states(self, attached: int, usable: int, measured: bool = True) -> list[PortState]:
        """State of the ports for the scheduler, when a slice begins.

        Parameters
        ----------
        attached, usable : int
            From `begin_slice`.
        measured : bool
            With speeds, rates and switches; False: only which ports are usable. Some policies need no more.
        """
        if not measured:
            ports = range(attached.bit_length())
            return [PortState(index, bool(usable >> index & 1)) for index in ports if attached >> index & 1]
        ports = self.agent.port_counters()
        figures = self._metrics(ports)
        states = []
        switches = self.switch_of()
        for port in ports:
            index = port.number
            # The best guess at the speed of a link that is not known is the most that it was seen to carry.
            self._fastest[index] = max(self._fastest.get(index, 0.0), figures[index].rate_bps)
            speed = self._speed(index) or self._fastest[index] or None
            states.append(_state(port, figures[index], speed)._replace(switch=switches.get(index)))
        return states

    def switch_of(self) -> dict[int, str]:
        """The switch of each port, by its place in the loop; empty where none were given or asked for."""
        if self.switches is None:
            return {}
        if isinstance(self.switches, str):
            return group_by_switch(self.agent.answers())
        return dict(enumerate(self.switches))


_NOTHING: Mapping[str, int] = {"frames": 0, "bytes": 0, "queued": 0, "capacity": 0}


def _state(port: PortCounters, figures: Metrics, speed: float | None) -> PortState:
    bandwidth = figures.bandwidth_rate
    return PortState(
        port.number,
        port.usable,
        speed,
        0.0 if bandwidth != bandwidth else bandwidth,  # not known: it does not lower the score
        figures.buffer_occupancy,
        figures.drop_rate,
    )
