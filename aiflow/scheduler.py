"""Policy, once a time slice: which ports carry it, the share of each, and whether they can carry it.

Pure Python that imports nothing compiled: Python decides, the loop applies the plan. `plan` runs for every slice and
every policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiflow.config import PLACEMENTS, POLICIES, SCORE_WEIGHTS, check_scheduling
from aiflow.errors import ConfigError

__all__ = [
    "PLACEMENTS",
    "POLICIES",
    "SCORE_WEIGHTS",
    "SHARING",
    "Demand",
    "Plan",
    "PortState",
    "demand",
    "group_by_switch",
    "plan",
    "score",
    "spread",
]

SHARING = frozenset({"score", "round_robin", "weighted"})
"""Policies that deal out shares. They need the ports' speeds and rates, the others only which ports are usable."""

ALL_PORTS = (1 << 32) - 1
PAYLOAD_SHARE = 1460 / 1514
"""Share of element bytes in the frames of a 1500-byte MTU."""


class PortState(NamedTuple):
    """The state of a port when a slice begins.

    Attributes
    ----------
    number : int
        Its place in the loop.
    usable : bool
        It has a path, and the path is not suspended.
    speed_bps : float or None
        Speed of its link in bit/s; None where it is not known.
    bandwidth_rate, buffer_occupancy, drop_rate : float
        Columns of the port path table, each from 0 to 1.
    switch : str or None
        The switch behind it; None where it is not known.
    """

    number: int
    usable: bool
    speed_bps: float | None = None
    bandwidth_rate: float = 0.0
    buffer_occupancy: float = 0.0
    drop_rate: float = 0.0
    switch: str | None = None


class Plan(NamedTuple):
    """How one slice goes out, as the loop takes it.

    Attributes
    ----------
    policy : str
    nbytes : int
        Bytes of the slice.
    port_mask : int
        Bit i: port i may carry the slice.
    reasons : tuple of str
        A line a port, for `explain`.
    quotas : dict of int to int
        Share of each port in bytes, by its place in the loop; empty for policies without shares. A port that is not
        in it has no share.
    place : str
        One of `PLACEMENTS`.
    shortest : bool
        A port takes a chunk only while no other port has far fewer frames in flight.
    """

    policy: str
    nbytes: int
    port_mask: int
    reasons: tuple[str, ...]
    quotas: Mapping[int, int] = {}
    place: str = "chunks"
    shortest: bool = False

    def explain(self) -> str:
        """A line for each port: its part of the slice, and why."""
        return "\n".join(self.reasons)


def score(port: PortState, weights: Sequence[float] = SCORE_WEIGHTS) -> float:
    """The paper's score of a port: the higher, the more capacity it has left.

    Parameters
    ----------
    port : PortState
    weights : sequence of float
        Weights of bandwidth use, ring fill and loss.

    Returns
    -------
    float
        From 0 to 1.
    """
    rates = (port.bandwidth_rate, port.buffer_occupancy, port.drop_rate)
    return sum(weight * (1 - min(max(rate, 0.0), 1.0)) for weight, rate in zip(weights, rates, strict=True))


def _shares(policy: str, ports: Sequence[PortState], weights: Sequence[float]) -> list[tuple[float, str]]:
    """For each port: a number that its share is proportional to, and why."""
    known = all(port.speed_bps for port in ports)
    speeds = [(port.speed_bps or 1.0) / 1e6 if known else 1.0 for port in ports]
    said = [f"{speed:g} Mbit/s" if known else "speed unknown" for speed in speeds]
    if policy == "round_robin":
        return [(1.0, "every port in turn")] * len(ports)
    if policy == "weighted":
        return [(speed, what) for speed, what in zip(speeds, said, strict=True)]
    # A score is relative to the port: at the same score, a port of ten times the speed has ten times the capacity left.
    scores = [max(score(port, weights), 1e-3) for port in ports]
    return [
        (
            value * speed,
            f"score {value:.3f} (bandwidth use {port.bandwidth_rate:.2f}, ring fill {port.buffer_occupancy:.2f}, "
            f"loss {port.drop_rate:.4f}), {what}",
        )
        for value, speed, what, port in zip(scores, speeds, said, ports, strict=True)
    ]


def _limit(shares: list[float], ports: Sequence[PortState], limits: Mapping[str, float]) -> list[float]:
    """Scale the shares (speeds in Mbit/s) of each switch's ports down to the limit of the switch."""
    for switch, most in limits.items():
        on_it = [i for i, port in enumerate(ports) if port.switch == switch]
        total = sum(shares[i] for i in on_it)
        if total > most / 1e6:
            for i in on_it:
                shares[i] *= most / 1e6 / total
    return shares


def plan(
    policy: str,
    nbytes: int,
    ports: Sequence[PortState],
    *,
    weights: Sequence[float] = SCORE_WEIGHTS,
    place: str = "chunks",
    switch_limits: Mapping[str, float] | None = None,
) -> Plan:
    """Decide how one slice goes out.

    Parameters
    ----------
    policy : str
        One of `POLICIES`.
    nbytes : int
        Size of the slice in bytes.
    ports : sequence of PortState
        The sender's ports as they are now; empty before a receiver is there.
    weights : sequence of float
        Weights of the score.
    place : str
        One of `PLACEMENTS`.
    switch_limits : mapping, optional
        Capacity of each switch in bit/s, where it is less than that of its ports together.

    Returns
    -------
    Plan
        `pull` and `least_queue` let every port take part, including ports that come up while the slice is in flight.
        They need no estimate: a port whose window is full takes nothing. The other policies deal out shares. The rest
        of a dead or slow port's share goes to the other ports: as soon as all but one have sent theirs, or when it has
        not sent a sixteenth of its share while another port has sent all of its own.
    """
    check_scheduling(policy, place, weights)
    usable = [port for port in ports if port.usable]
    reasons = {port.number: f"port {port.number}: no live path now; takes part when it has one" for port in ports}
    quotas: dict[int, int] = {}
    if policy not in SHARING or not usable:
        what = (
            "takes the next chunk while no other port has far fewer frames in flight"
            if policy == "least_queue"
            else "takes the next chunk whenever its window has room"
        )
        reasons |= {port.number: f"port {port.number}: {what}" for port in usable}
    else:
        dealt = _shares(policy, usable, weights)
        shares = _limit([share for share, _ in dealt], usable, switch_limits or {})
        total = sum(shares)
        for port, share, (_, why) in zip(usable, shares, dealt, strict=True):
            quotas[port.number] = math.ceil(nbytes * share / total)
            reasons[port.number] = f"port {port.number}: {share / total:.1%}, {quotas[port.number]} bytes: {why}"
    return Plan(
        policy,
        nbytes,
        ALL_PORTS,
        tuple(reasons.values()),
        quotas,
        place,
        shortest=policy == "least_queue",
    )


# ---- demand ----


class Demand(NamedTuple):
    """The bandwidth that a slice needs, and the bandwidth of the ports.

    Attributes
    ----------
    nbytes : int
        M, the bytes of all its elements.
    seconds : float
        T, the length of the slice.
    needed_bps : float
        B_total = 8·M / T, in bit/s of element bytes.
    available_bps : float
        Element bytes that the ports carry, without headers, in bit/s.
    """

    nbytes: int
    seconds: float
    needed_bps: float
    available_bps: float

    @property
    def met(self) -> bool:
        """Whether the ports can carry it within the length of the slice."""
        return self.needed_bps <= self.available_bps

    def explain(self) -> str:
        """One sentence with the figures."""
        text = (
            f"{self.nbytes} bytes within {self.seconds:g} s need {self.needed_bps / 1e6:.1f} Mbit/s of "
            f"{self.available_bps / 1e6:.1f} Mbit/s"
        )
        if self.met:
            return text
        return (
            f"{text}: the ports cannot carry that. Each slice takes {8 * self.nbytes / self.available_bps:.3g} s; add "
            "ports, send less, or make the slices longer"
            if self.available_bps
            else f"{text}: no port is up"
        )


def demand(nbytes: int, seconds: float, port_rates: Sequence[float], *, payload_share: float = PAYLOAD_SHARE) -> Demand:
    """Compare the bandwidth that a slice needs with that of the ports, before it goes out.

    Parameters
    ----------
    nbytes : int
        Bytes of all its elements.
    seconds : float
        The slice's length.
    port_rates : sequence of float
        Speed of each port in bit/s, as in `PortRow.link_speed_bps`. With switches: for each switch, the smaller of its
        capacity and the sum of its ports.
    payload_share : float
        Share of element bytes in a frame.

    Returns
    -------
    Demand

    Raises
    ------
    ConfigError
        If the slice has no length.
    """
    if not seconds > 0:
        raise ConfigError(f"a slice of {seconds} s has no bandwidth: give its length in seconds, more than 0")
    return Demand(nbytes, seconds, 8 * nbytes / seconds, payload_share * math.fsum(port_rates))


# ---- switches ----


def spread(sizes: Sequence[int], seconds: float, limits_bps: Sequence[float]) -> list[int]:
    """Assign each stream to a switch, so that 8·Σ S_i / T stays within the capacity of each switch.

    For programs that open a Sender for each switch's ports. The Sender itself shares a slice by chunks (`plan`).

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each stream in the slice.
    seconds : float
        The slice's length T.
    limits_bps : sequence of float
        Capacity of each switch in bit/s of element bytes: B_1, B_2, …

    Returns
    -------
    list of int
        For each stream, the index of its switch. The largest streams come first, each to the least filled switch.

    Raises
    ------
    ConfigError
        If the streams need more than the switches carry.
    """
    load = [0.0] * len(limits_bps)
    chosen = [0] * len(sizes)
    for stream in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        bps = 8 * sizes[stream] / seconds
        switch = min(range(len(load)), key=lambda i: (load[i] + bps) / limits_bps[i])
        load[switch] += bps
        chosen[stream] = switch
    over = [i for i, limit in enumerate(limits_bps) if load[i] > limit]
    if over:
        raise ConfigError(
            f"the streams need {sum(load) / 1e6:.1f} Mbit/s and switch {over[0] + 1} carries "
            f"{limits_bps[over[0]] / 1e6:.1f}: send less, or make the slices longer"
        )
    return chosen


def group_by_switch(answers: Mapping[int, Sequence[object]]) -> dict[int, str]:
    """Find the ports that share a switch: those that the same port of the receiver answers.

    Parameters
    ----------
    answers : mapping of int to sequence
        For each of our ports, the receiver's ports that answered it (any hashable names).

    Returns
    -------
    dict of int to str
        For each port with an answer, the name of its switch: "switch 1", "switch 2", … in the order of the ports.
    """
    groups: list[tuple[set[int], set[object]]] = []
    for port, heard in sorted(answers.items()):
        if not heard:
            continue
        mine: tuple[set[int], set[object]] = ({port}, set(heard))
        for group in [group for group in groups if group[1] & mine[1]]:
            groups.remove(group)
            mine = (mine[0] | group[0], mine[1] | group[1])
        groups.append(mine)
    groups.sort(key=lambda group: min(group[0]))
    return {port: f"switch {at}" for at, (ports, _) in enumerate(groups, 1) for port in ports}
