"""What a cluster looks like: its nodes, ports, switches and rates. Pure: nothing is made here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aiflow import config
from aiflow.errors import ConfigError

__all__ = ["MBIT", "Layout", "Port", "parse_rate"]

MBIT = 1_000_000


def parse_rate(text: str) -> int:
    """Read a rate such as ``100mbit``, ``1gbit`` or ``100`` (Mbit/s).

    Returns
    -------
    int
        Bits per second.

    Raises
    ------
    ConfigError
        If it is no rate, or not between 64 kbit/s and 30 Gbit/s (tbf counts bytes in 32 bits).
    """
    rate = round(config.parse_rate(text, "rate", default_unit="m"))
    if not 64_000 <= rate <= 30 * 10**9:
        raise ConfigError(f"the rate {text} is out of range: 64kbit to 30gbit")
    return rate


@dataclass(frozen=True)
class Port:
    """A port of a node: ``p0`` there is joined to ``n0p0`` at its switch.

    Attributes
    ----------
    node, number, switch : int
    rate_bps : int
        Of the switch's port towards the node.
    link_bps : int
        Of the node's own end.
    """

    node: int
    number: int
    switch: int
    rate_bps: int
    link_bps: int

    @property
    def interface(self) -> str:
        """Name at the node."""
        return f"p{self.number}"

    @property
    def switch_interface(self) -> str:
        """Name at the switch."""
        return f"n{self.node}p{self.number}"

    @property
    def mac(self) -> str:
        """Locally administered, and the same in each cluster."""
        return f"02:a1:f1:0e:{self.node:02x}:{self.number:02x}"

    @property
    def address(self) -> str:
        """For the kernel's own protocols: a subnet for each port number, so that a route is a port."""
        return f"10.77.{self.number}.{self.node + 1}"


@dataclass(frozen=True)
class Layout:
    """A cluster: senders first, then receivers, each with the same ports, the ports dealt out over the switches.

    Attributes
    ----------
    senders, receivers : int
        Nodes of each kind.
    ports : int
        Of each node. Port p hangs on switch p mod `switches`.
    switches : int
    rates_bps : tuple of int
        Bits per second of the ports, by number; a single one is for all.
    link_bps : int, optional
        Rate of the nodes' own ends, when they are faster than the switch's ports; default the ports' rate.
    trunk_bps : int, optional
        Backplane of each switch, from its senders' side to its receivers'; default: as wide as need be.
    queue_bytes : int
        Most that waits at a switch port or its backplane; what comes beyond is lost there.
    burst_bytes : int
        Most that leaves a port at once, above its rate (tbf's bucket).
    loss : float
        Probability that a switch loses a frame.
    seed : int
        Which frames those are.
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
            raise ConfigError(f"{self.switches} switches for {self.ports} ports a node: one port each at the least")
        if len(self.rates_bps) not in (1, self.ports):
            raise ConfigError(f"{len(self.rates_bps)} rates for {self.ports} ports: give one, or one for each")
        if not 0 <= self.loss <= 0.5:
            raise ConfigError(f"loss {self.loss}: a probability from 0 to 0.5")
        if not 1280 <= self.mtu <= 65535:
            raise ConfigError(f"MTU {self.mtu}: from 1280 to 65535 bytes")
        if min(self.queue_bytes, self.burst_bytes) < self.mtu + 14:
            raise ConfigError("a queue and a burst hold a frame at the least")

    @property
    def nb_nodes(self) -> int:
        """Senders and receivers."""
        return self.senders + self.receivers

    @property
    def receiver_nodes(self) -> range:
        """Numbers of the receivers: they follow the senders."""
        return range(self.senders, self.nb_nodes)

    def rate_bps(self, number: int) -> int:
        """Rate of the ports of this number."""
        return self.rates_bps[number % len(self.rates_bps)]

    def ports_of(self, node: int) -> tuple[Port, ...]:
        """Ports of one node."""
        return tuple(
            Port(node, p, p % self.switches, self.rate_bps(p), self.link_bps or self.rate_bps(p))
            for p in range(self.ports)
        )

    def all_ports(self) -> tuple[Port, ...]:
        """Ports of all nodes."""
        return tuple(port for node in range(self.nb_nodes) for port in self.ports_of(node))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Layout:
        """What `as_dict` gave."""
        return cls(**{**fields, "rates_bps": tuple(fields["rates_bps"])})
