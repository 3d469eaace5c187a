"""Options of `Sender` and `Receiver` that few programs set, in groups: each field with its unit and default.

A group checks its fields when it is made, as far as they need no ports. Every field is also a flat keyword of the
constructors, as it was before there were groups: ``Sender(…, idle="spin")`` is
``Sender(…, polling=Polling(idle="spin"))``. `Scheduling.weights` is ``score_weights`` there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from aiflow._policy.flow_control import FlowControl
from aiflow.config import (
    INTERVAL_S,
    SCORE_WEIGHTS,
    check_scheduling,
    parse_idle,
    parse_listen,
    parse_max_cores,
    parse_switch_limits,
)
from aiflow.errors import ConfigError

__all__ = ["FlatKeywords", "FlowControl", "Polling", "Scheduling", "SenderKeywords", "Telemetry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """How a Sender's ports share each slice: ``Sender(…, policy=Scheduling(…))``.

    Parameters
    ----------
    policy : str
        Port choice: ``"pull"`` (the default), ``"score"``, ``"round_robin"``, ``"weighted"`` or ``"least_queue"``.
    place : str
        Unit that a policy assigns to ports: ``"chunks"`` (the default), so that an element may use all ports, or whole
        ``"elements"``. Flat keyword: ``place``.
    weights : sequence of float
        Weights of bandwidth use, ring fill and loss in a port's score: three numbers that add up to 1. Default: 0.57,
        0.31, 0.12, the paper's. Flat keyword: ``score_weights``.
    switches : sequence of str or "probe", optional
        The switch of each port, in their order. ``"probe"`` finds it out from which ports answer each other. Default:
        not known. Flat keyword: ``switches``.
    switch_limits : mapping, optional
        Capacity of each switch in bit/s, such as ``{"switch 1": "700mbit"}``, where it is less than that of its ports.
        Only policies that deal out shares use it. Default: no limits. Flat keyword: ``switch_limits``.

    Raises
    ------
    ConfigError
        A field cannot be used as given.
    """

    policy: str = "pull"
    place: str = "chunks"
    weights: Sequence[float] = SCORE_WEIGHTS
    switches: Sequence[str] | str | None = None
    switch_limits: Mapping[str, str | float] | None = None

    def __post_init__(self) -> None:
        check_scheduling(self.policy, self.place, self.weights)
        parse_switch_limits(self.switch_limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polling:
    """How threads poll the ports: ``polling=Polling(…)`` of both sides.

    Parameters
    ----------
    idle : str
        Idle strategy of a thread that waits for a slice and polls the ports meanwhile. ``"backoff"`` (the default)
        spins for some microseconds, yields, then sleeps with growing intervals. ``"spin"`` polls without a pause: the
        least latency, for a whole core while it waits. Give each side a core of its own.
    max_cores : float, optional
        Upper bound of the processor time for moving frames, in cores, from 0.001 on: with 0.25 the loop rests for
        three quarters of the time, and slices take longer. One thread at a time serves all ports, so 1 or more changes
        nothing. The work of your own threads, such as describing elements, does not count. Default: no limit.

    Raises
    ------
    ConfigError
        A field cannot be used as given.
    """

    idle: str = "backoff"
    max_cores: float | None = None

    def __post_init__(self) -> None:
        parse_idle(self.idle)
        parse_max_cores(self.max_cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What the port table measures, and against which speeds: ``telemetry=Telemetry(…)`` of both sides.

    Parameters
    ----------
    link_speed : str, number, or sequence of them, optional
        Speed of each port's link, such as ``"100mbit"`` or a number of bit/s: one for all ports, or one for each. For
        drivers that make their speed up, or a network behind the port that carries less. It sets the port table, the
        shares and the gaps; under ``"credit"`` no more than 0.998 of it is sent. Default: the driver's speed.
    monitor_interval : float
        Seconds between two samples of the port table's rates; 0 measures nothing. Default: 0.1.
    metrics_port : int or str, optional
        Serve the figures of this process for Prometheus, at ``http://127.0.0.1:PORT/metrics`` or at ``"ADDRESS:PORT"``.
        Senders and Receivers may share a port. Needs the extra ``metrics``. Default: they are not served.

    Raises
    ------
    ConfigError
        A field cannot be used as given.
    """

    link_speed: str | float | Sequence[str | float] | None = None
    monitor_interval: float = INTERVAL_S
    metrics_port: int | str | None = None

    def __post_init__(self) -> None:
        if self.metrics_port is not None:
            parse_listen(self.metrics_port)


class FlatKeywords(TypedDict, total=False):
    """Fields of the groups as flat keywords of `Sender` and `Receiver`."""

    idle: str
    max_cores: float | None
    link_speed: str | float | Sequence[str | float] | None
    monitor_interval: float
    metrics_port: int | str | None


class SenderKeywords(FlatKeywords, total=False):
    """Those of `Sender`."""

    place: str
    score_weights: Sequence[float]
    switches: Sequence[str] | str | None
    switch_limits: Mapping[str, str | float] | None


_FIELDS: dict[type, dict[str, str]] = {  # flat keyword → field
    Scheduling: {
        "place": "place",
        "score_weights": "weights",
        "switches": "switches",
        "switch_limits": "switch_limits",
    },
    Polling: {"idle": "idle", "max_cores": "max_cores"},
    Telemetry: {
        "link_speed": "link_speed",
        "monitor_interval": "monitor_interval",
        "metrics_port": "metrics_port",
    },
}

Group = TypeVar("Group", Scheduling, Polling, Telemetry)


def check_known(owner: str, flat: Mapping[str, Any], *groups: type) -> None:
    """Raise a TypeError for a keyword that no field of the groups has."""
    known = {keyword for group in groups for keyword in _FIELDS[group]}
    for keyword in flat:
        if keyword not in known:
            raise TypeError(f"{owner}() has no keyword {keyword!r}: help(aiflow.{owner}) lists them")


def grouped(kind: type[Group], keyword: str, given: Group | None, flat: Mapping[str, Any], **fields: Any) -> Group:
    """The options of one group: as given, or made from `fields` and the flat keywords.

    Raises
    ------
    ConfigError
        If both are given, or `given` is of another type.
    """
    both = [name for name in _FIELDS[kind] if name in flat]
    if given is None:
        return kind(**fields, **{_FIELDS[kind][name]: flat[name] for name in both})
    if not isinstance(given, kind):
        raise ConfigError(f"{keyword}={given!r}: give an aiflow.{kind.__name__}")
    if both:
        field = _FIELDS[kind][both[0]]
        raise ConfigError(
            f"{keyword}={kind.__name__}(…) and {both[0]}= are both given: write {kind.__name__}({field}=…)"
        )
    return given


def scheduling_of(policy: str | Scheduling, flat: Mapping[str, Any]) -> Scheduling:
    """The options that ``policy=`` and the flat keywords beside it give."""
    if isinstance(policy, Scheduling):
        return grouped(Scheduling, "policy", policy, flat)
    return grouped(Scheduling, "policy", None, flat, policy=policy)
