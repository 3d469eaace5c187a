"""One system under test in the cluster: its processes, and timed slices."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiflow.lab import aiflow_peers, tcp_peers, zmq_peers
from aiflow.lab.children import NodeChild, hear_all
from aiflow.lab.cluster import Cluster, Loss
from aiflow.lab.elements import Elements, balanced
from aiflow.lab.topology import Layout, Port

__all__ = ["TCP", "ZEROMQ", "Measured", "Route", "System", "Trial", "ours", "running"]

_START_S, _SLICE_S, _CHECK_S = 90.0, 600.0, 120.0
_SETTLE_S = 0.05


@dataclass(frozen=True)
class System:
    """A system that moves the elements: bodies of its processes, and their options."""

    label: str
    send: Callable[..., None]
    receive: Callable[..., None]
    options: dict[str, Any] = field(default_factory=dict)


def ours(label: str = "aiflow", **options: Any) -> System:
    """Return aiflow as a system, with these keywords of `aiflow.Sender`."""
    return System(label, aiflow_peers.send, aiflow_peers.receive, options)


TCP = System("TCP", tcp_peers.send, tcp_peers.receive)
ZEROMQ = System("ZeroMQ", zmq_peers.send, zmq_peers.receive)


@dataclass(frozen=True)
class Route:
    """Elements from one node to another, over the first `ports` ports of both.

    `through` is a node that receives every slice and sends it on, over the same number of ports. aiflow only.
    """

    source: int
    target: int
    ports: int
    through: int | None = None


@dataclass(frozen=True)
class Measured:
    """Measurements of a slice.

    Attributes
    ----------
    nbytes, elements : int
    seconds : float
        From the start of the first sender to the end of the last one.
    each_seconds : tuple of float
        Seconds of each sender.
    share : float
        Element bits per second, relative to the rate of the receivers' ports.
    lost : Loss
        From the kernel's counters.
    frames, retransmitted, spurious : int
        From aiflow's report; 0 for other systems. Spurious: retransmitted, although the frame had arrived.
    delivered : bool
        Whether every element arrived identical.
    load : float
        The machine's load average of the last minute.
    end_ns : int
        End of the last sender's slice (monotonic clock).
    arrived_ns : int
        When the last slice was received; 0 for other systems.
    trace : tuple of (int, int, int)
        Of the first receiver, if requested: times of the first and the last reading (ns, monotonic) with the same
        number of bytes, and this number.
    """

    nbytes: int
    elements: int
    seconds: float
    each_seconds: tuple[float, ...]
    share: float
    lost: Loss
    frames: int
    retransmitted: int
    spurious: int
    delivered: bool
    load: float
    end_ns: int
    arrived_ns: int = 0
    trace: tuple[tuple[int, int, int], ...] = ()


class Trial:
    """Running processes, ready to send."""

    def __init__(
        self, cluster: Cluster, routes: Sequence[Route], elements: Elements, senders: list[NodeChild],
        receivers: list[NodeChild],
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._routes = routes
        self._elements = elements
        self._senders = senders
        self._receivers = receivers
        self._line_bps = _line_bps(cluster.layout, routes)

    def send(self, nb_elements: int, *, slices: int = 1, during: Callable[[], None] | None = None) -> Measured:
        """Send this number of elements, distributed over the senders by bytes.

        Parameters
        ----------
        nb_elements : int
        slices : int
            Number of slices; a few are in flight at a time. TCP and ZeroMQ send one only.
        during : callable, optional
            Called during the transfer; the result then has a trace.
        """
        sizes = [self._elements.nbytes(i) for i in range(nb_elements)]
        parts = balanced(sizes, len(self._senders))
        before = self._cluster.loss()
        for receiver in self._receivers:
            receiver.tell("expect", slices, during is not None)
        for sender, part in zip(self._senders, parts, strict=True):
            sender.tell(part, slices)
        if during is not None:
            during()
        sent = hear_all(self._senders, _SLICE_S)
        load = os.getloadavg()[0]
        received = hear_all(self._receivers, _CHECK_S)
        time.sleep(_SETTLE_S)  # frames in transit
        after = self._cluster.loss()
        seconds = (max(row[2] for row in sent) - min(row[1] for row in sent)) / 1e9
        return Measured(
            nbytes=sum(sizes),
            elements=nb_elements,
            seconds=seconds,
            each_seconds=tuple((row[2] - row[1]) / 1e9 for row in sent),
            share=8 * sum(sizes) / seconds / self._line_bps,
            lost=Loss(*(now - then for now, then in zip(after, before, strict=True))),
            frames=sum(row[3].get("frames", 0) for row in sent),
            retransmitted=sum(row[3].get("retransmitted", 0) for row in sent),
            spurious=sum(row[3].get("spurious", 0) for row in sent),
            delivered=all(row[1] == row[2] for row in received) and sum(row[1] for row in received) == nb_elements,
            load=load,
            end_ns=max(row[2] for row in sent),
            arrived_ns=max(row[4] if len(row) > 4 else 0 for row in received),
            trace=tuple(map(tuple, received[0][3])) if during is not None else (),
        )


def _line_bps(layout: Layout, routes: Sequence[Route]) -> int:
    """Return the total rate of the receivers' ports in use."""
    used = {(route.target, number) for route in routes for number in range(route.ports)}
    return sum(layout.rate_bps(number) for _, number in used)


@contextlib.contextmanager
def running(
    cluster: Cluster, system: System, routes: Sequence[Route], elements: Elements,
    faults: dict[str, Any] | None = None,
) -> Iterator[Trial]:  # fmt: skip
    """Start a system's processes in the cluster's nodes, and end them on exit.

    `faults` are injected by aiflow's senders only (`aiflow.config.FAULTS`).

    Raises
    ------
    LabError
        If one of them fails.
    """
    layout = cluster.layout
    with contextlib.ExitStack() as stack:
        receivers, relays, senders = [], [], []
        for target in sorted({route.target for route in routes}):
            to_it = [route for route in routes if route.target == target]
            ports = layout.ports_of(target)[: max(route.ports for route in to_it)]
            arguments: Any = (
                target, [p.interface for p in ports], [p.address for p in ports], len(to_it), elements, {},
            )  # fmt: skip
            receivers.append(stack.enter_context(NodeChild(cluster, target, system.receive, *arguments)))
        hear_all(receivers, _START_S)
        for route in routes:
            if route.through is not None:
                ports = layout.ports_of(route.through)[: route.ports]
                arguments = route.through, [p.interface for p in ports], f"node{route.target}"
                options = _options(system, ports, faults)
                relays.append(
                    stack.enter_context(NodeChild(cluster, route.through, aiflow_peers.relay, *arguments, options))
                )
        hear_all(relays, _START_S)
        for route in routes:
            next_node = route.target if route.through is None else route.through
            ours, theirs = (layout.ports_of(node)[: route.ports] for node in (route.source, next_node))
            pairs = [(one.address, other.address) for one, other in zip(ours, theirs, strict=True)]
            arguments = (
                route.source, [p.interface for p in ours], pairs, f"node{next_node}", elements,
                _options(system, ours, faults),
            )  # fmt: skip
            senders.append(stack.enter_context(NodeChild(cluster, route.source, system.send, *arguments)))
        hear_all(senders, _START_S)
        yield Trial(cluster, routes, elements, senders, receivers)
        for child in (*senders, *relays, *receivers):  # together; leaving the stack waits for each
            child.ask_to_end()


def _options(system: System, ports: Sequence[Port], faults: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of a sending process. The speed that a veth reports is not real."""
    if system.send is not aiflow_peers.send:
        return system.options
    return {"link_speed": [p.link_bps for p in ports], **system.options} | ({"faults": faults} if faults else {})
