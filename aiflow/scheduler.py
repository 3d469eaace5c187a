"""Policy, once a time slice: which ports carry it, how much of it each, and whether they can.

Pure Python, nothing compiled: Python sets the law, the loop applies it. `plan` runs for every slice and every policy.
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
"""Policies that deal out shares, and want to know more of the ports than which are usable."""

ALL_PORTS = (1 << 32) - 1
PAYLOAD_SHARE = 1460 / 1514
"""Of a 1500-byte MTU's frames, what is the elements'."""


class PortState(NamedTuple):
    """What the scheduler knows of a port when a slice begins.

    Attributes
    ----------
    number : int
        Its place in the loop.
    usable : bool
        A path goes over it, and it is not set aside for silence.
    speed_bps : float or None
        Its link's speed in bit/s; None where nobody said.
    bandwidth_rate, buffer_occupancy, drop_rate : float
        Columns of the port path table, each from 0 to 1.
    switch : str or None
        The switch that it hangs on; None where nobody knows.
    """

    number: int
    usable: bool
    speed_bps: float | None = None
    bandwidth_rate: float = 0.0
    buffer_occupancy: float = 0.0
    drop_rate: float = 0.0
    switch: str | None = None


class Plan(NamedTuple):
    """The law for one slice, as the loop takes it.

    Attributes
    ----------
    policy : str
    nbytes : int
        Of the slice.
    port_mask : int
        Bit i: port i may carry the slice.
    reasons : tuple of str
        A line a port, for `explain`.
    quotas : dict of int to int
        Bytes of each port's share by its place in the loop; empty where no shares are dealt. A port that is not in it
        has none.
    place : str
        One of `PLACEMENTS`.
    shortest : bool
        A port takes a chunk only while no other has much fewer frames under way.
    """

    policy: str
    nbytes: int
    port_mask: int
    reasons: tuple[str, ...]
    quotas: Mapping[int, int] = {}
    place: str = "chunks"
    shortest: bool = False

    def explain(self) -> str:
        """Why each port got what it got."""
        return "\n".join(self.reasons)


def score(port: PortState, weights: Sequence[float] = SCORE_WEIGHTS) -> float:
    """The paper's score of a port: the higher, the more it has to spare.

    Parameters
    ----------
    port : PortState
    weights : sequence of float
        Of bandwidth use, ring fill and loss.

    Returns
    -------
    float
        From 0 to 1.
    """
    rates = (port.bandwidth_rate, port.buffer_occupancy, port.drop_rate)
    return sum(weight * (1 - min(max(rate, 0.0), 1.0)) for weight, rate in zip(weights, rates, strict=True))


def _shares(policy: str, ports: Sequence[PortState], weights: Sequence[float]) -> list[tuple[float, str]]:
    """A number for each port, to which its share is proportional, and why."""
    known = all(port.speed_bps for port in ports)
    speeds = [(port.speed_bps or 1.0) / 1e6 if known else 1.0 for port in ports]
    said = [f"{speed:g} Mbit/s" if known else "speed unknown" for speed in speeds]
    if policy == "round_robin":
        return [(1.0, "every port in turn")] * len(ports)
    if policy == "weighted":
        return [(speed, what) for speed, what in zip(speeds, said, strict=True)]
    # A score is a share of the port, so a port of ten times the speed at the same score has ten times to spare.
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
    """No switch gets more, in proportion to the others, than its limit: shares are speeds, in Mbit/s."""
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
        Of `score`.
    place : str
        One of `PLACEMENTS`.
    switch_limits : mapping, optional
        What each switch carries at most, in bit/s, where that is less than its ports together.

    Returns
    -------
    Plan
        `pull` lets every port take part, those too that come up while the slice flows: a port without room in its
        window takes nothing, so there is no estimate to be wrong. `least_queue` likewise, with an eye on the others'
        queues. The other policies deal out shares; what a port that dies or crawls leaves of its share goes to the
        others when all but one have sent theirs, or when it has not sent a sixteenth of its share while another was
        through with its own.
    """
    check_scheduling(policy, place, weights)
    usable = [port for port in ports if port.usable]
    reasons = {port.number: f"port {port.number}: no live path now; joins in when it has one" for port in ports}
    quotas: dict[int, int] = {}
    if policy not in SHARING or not usable:
        what = (
            "takes the next chunk while no other port has much fewer frames under way"
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


# ---- can it be met? ----


class Demand(NamedTuple):
    """What a slice asks of the ports, beside what they can give.

    Attributes
    ----------
    nbytes : int
        M, the bytes of all its elements.
    seconds : float
        T, the length of the slice.
    needed_bps : float
        B_total = 8·M / T, in bit/s of element bytes.
    available_bps : float
        What the ports carry of element bytes, headers subtracted.
    """

    nbytes: int
    seconds: float
    needed_bps: float
    available_bps: float

    @property
    def met(self) -> bool:
        """Whether the ports can carry it within the slice's time."""
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
    """Compare what a slice needs with what the ports can give, before it goes out.

    Parameters
    ----------
    nbytes : int
        Bytes of all its elements.
    seconds : float
        The slice's length.
    port_rates : sequence of float
        Speed of each port in bit/s, as `PortRow.link_speed_bps` gives it; with two switches the smaller of the
        ports' sum and what the switch carries, for each switch.
    payload_share : float
        Share of a frame that is element bytes.

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


# ---- two switches ----


def spread(sizes: Sequence[int], seconds: float, limits_bps: Sequence[float]) -> list[int]:
    """Give each stream to a switch, so that Σ S_i / T stays within what each carries.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each stream in the slice.
    seconds : float
        The slice's length T.
    limits_bps : sequence of float
        What each switch carries, in bit/s of element bytes: B_1, B_2, …

    Returns
    -------
    list of int
        For each stream, the index of its switch: the largest first, each to the switch that it fills least.

    Raises
    ------
    ConfigError
        If they don't fit.
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
    """Find out which ports hang on one switch: those that hear the same port of the receiver.

    Parameters
    ----------
    answers : mapping of int to sequence
        For each of our ports, the receiver's ports that answered it (any hashable name).

    Returns
    -------
    dict of int to str
        For each port that had an answer, the name of its switch: "switch 1", "switch 2", … in the ports' order.
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
