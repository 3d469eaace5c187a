"""Policy, once a time slice: which ports may carry it, by which law, with which gaps.

Pure Python, nothing compiled: Python sets the law, the loop applies it. `plan` runs for every slice and every policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .errors import ConfigError

__all__ = ["FLOW_CONTROLS", "POLICIES", "Plan", "PortState", "check", "plan"]

POLICIES = {"pull": "a port takes the next chunk when its window has room"}
"""Port choice that can be asked for (DESIGN: Policies)."""

FLOW_CONTROLS = {"credit": "the receiver grants memory for whole slices and a window of frames for each path"}
"""Flow control that can be asked for."""

NOT_YET = {"score", "round_robin", "weighted", "least_queue", "reverse", "static", "token_bucket", "none"}


class PortState(NamedTuple):
    """What the scheduler knows of a port when a slice begins.

    Attributes
    ----------
    number : int
        Its place in the loop.
    usable : bool
        A path goes over it, and it is not set aside for silence.
    """

    number: int
    usable: bool


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
    """

    policy: str
    nbytes: int
    port_mask: int
    reasons: tuple[str, ...]

    def explain(self) -> str:
        """Why each port got what it got."""
        return "\n".join(self.reasons)


def check(policy: str, flow_control: str) -> None:
    """Refuse names that this version does not have.

    Raises
    ------
    ConfigError
    """
    for what, name, known in (("policy", policy, POLICIES), ("flow_control", flow_control, FLOW_CONTROLS)):
        if name in known:
            continue
        if name in NOT_YET:
            raise ConfigError(f"{what}={name!r} is not there yet: use {what}={next(iter(known))!r}")
        raise ConfigError(f"{what}={name!r} is unknown: use one of {', '.join(map(repr, known))}")


ALL_PORTS = (1 << 32) - 1


def plan(policy: str, nbytes: int, ports: Sequence[PortState]) -> Plan:
    """Decide how one slice goes out.

    Parameters
    ----------
    policy : str
        One of `POLICIES`.
    nbytes : int
        Size of the slice in bytes.
    ports : sequence of PortState
        The sender's ports as they are now; empty before a receiver is there.

    Returns
    -------
    Plan
        `pull` lets every port take part, those too that come up while the slice flows: a port without room in its
        window takes nothing, so there is no estimate to be wrong.
    """
    check(policy, "credit")
    reasons = tuple(
        f"port {port.number}: takes the next chunk whenever its window has room"
        if port.usable
        else f"port {port.number}: no live path now; joins in when it has one"
        for port in ports
    )
    return Plan(policy, nbytes, ALL_PORTS, reasons)
