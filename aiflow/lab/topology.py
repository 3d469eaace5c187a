"""The layout of a cluster: its nodes, ports, switches and rates, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aiflow import config
from aiflow.errors import ConfigError

__all__ = ["MBIT", "Layout", "Port", "parse_rate"]

MBIT = 1_000_000


def parse_rate(text: str) -> int:
    """Parse a rate such as ``100mbit``, ``1gbit`` or ``100`` (Mbit/s).

    Returns
    -------
    int
        Bits per second.

    Raises
    ------
    ConfigError
        If it is not a rate, or not between 64 kbit/s and 30 Gbit/s (tbf counts bytes in 32 bits).
    """
    rate = round(config.parse_rate(text, "rate", default_unit="m"))
    if not 64_000 <= rate <= 30 * 10**9:
        raise ConfigError(f"the rate {text} is out of range: 64kbit to 30gbit")
    return rate


@dataclass(frozen=True)
class Port:
    """A port of a node: ``p0`` is connected to ``n0p0`` at its switch.

    Attributes
    ----------
    node, number, switch : int
    rate_bps : int
        Rate of the switch's port towards the node.
    link_bps : int
        Rate of the node's end.
    """

    node: int
    number: int
    switch: int
    rate_bps: int
    link_bps: int

    @property
    def interface(self) -> str:
        """Name in the node."""
        return f"p{self.number}"

    @property
    def switch_interface(self) -> str:
        """Name in the switch."""
        return f"n{self.node}p{self.number}"

    @property
    def mac(self) -> str:
        """MAC address: locally administered, and the same in every cluster."""
        return f"02:a1:f1:0e:{self.node:02x}:{self.number:02x}"

    @property
    def address(self) -> str:
        """IPv4 address for TCP and ZeroMQ: one subnet per port number, so that a route selects a port."""
        return f"10.77.{self.number}.{self.node + 1}"


@dataclass(frozen=True)
class Layout:
    """A cluster: senders first, then receivers, each with the same ports, which are distributed over the switches.

    Attributes
    ----------
    senders, receivers : int
        Number of nodes of each kind.
    ports : int
        Number of ports of each node. Port p is connected to switch p mod `switches`.
    switches : int
    rates_bps : tuple of int
        Bits per second of each port number; a single value applies to all.
    link_bps : int, optional
        Rate of the nodes' ends, if they are faster than the switch's ports. Default: the ports' rate.
    trunk_bps : int, optional
        Rate of each switch's backplane, from its senders' side to its receivers'. Default: no limit.
    queue_bytes : int
        Queue size of a switch port or its backplane. A full queue drops frames.
    burst_bytes : int
        Maximum burst above the rate of a port (tbf's bucket).
    loss : float
        Probability that a switch drops a frame.
    seed : int
        Seed that selects these frames.
    mtu : int
        Bytes.
    """

    senders: int = 2
    receivers: int = 2
    ports: int = 4
    switches: int = 2
    rates_bps: tuple[int, ...] = (100 * MBIT,)
    link_bps: int | None = None
    trunk_bps: int | None = None
    queue_bytes: int = 256 << 10
    burst_bytes: int = 64 << 10
    loss: float = 0.0
    seed: int = 1
    mtu: int = 1500

    def __post_init__(self) -> None:
        for what, value, most in (
            ("senders", self.senders, 8),
            ("receivers", self.receivers, 8),
            ("ports", self.ports, 16),
            ("switches", self.switches, 16),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"{value} {what}: a cluster has 1 to {most}")
        if self.switches > self.ports:
            raise ConfigError(f"{self.switches} switches for {self.ports} ports per node: each needs at least one")
        if len(self.rates_bps) not in (1, self.ports):
            raise ConfigError(f"{len(self.rates_bps)} rates for {self.ports} ports: give one, or one per port")
        if not 0 <= self.loss <= 0.5:
            raise ConfigError(f"loss {self.loss}: it must be a probability from 0 to 0.5")
        if not 1280 <= self.mtu <= 65535:
            raise ConfigError(f"MTU {self.mtu}: it must be from 1280 to 65535 bytes")
        if min(self.queue_bytes, self.burst_bytes) < self.mtu + 14:
            raise ConfigError("queue and burst must hold at least one frame")

    @property
    def nb_nodes(self) -> int:
        """Number of senders and receivers."""
        return self.senders + self.receivers

    @property
    def receiver_nodes(self) -> range:
        """Numbers of the receiving nodes."""
        return range(self.senders, self.nb_nodes)

    def rate_bps(self, number: int) -> int:
        """Return the rate of the ports with this number."""
        return self.rates_bps[number % len(self.rates_bps)]

    def ports_of(self, node: int) -> tuple[Port, ...]:
        """Return the ports of one node."""
        return tuple(
            Port(node, p, p % self.switches, self.rate_bps(p), self.link_bps or self.rate_bps(p))
            for p in range(self.ports)
        )

    def all_ports(self) -> tuple[Port, ...]:
        """Return the ports of all nodes."""
        return tuple(port for node in range(self.nb_nodes) for port in self.ports_of(node))

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON. `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Layout:
        """Return the layout of a dict from `as_dict`."""
        return cls(**{**fields, "rates_bps": tuple(fields["rates_bps"])})
