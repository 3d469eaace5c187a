"""One system under test in the cluster: its processes, and timed slices through them."""

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
from aiflow.lab.topology import Layout

__all__ = ["TCP", "ZEROMQ", "Measured", "Route", "System", "Trial", "ours", "running"]

_START_S, _SLICE_S, _CHECK_S = 90.0, 600.0, 120.0
_SETTLE_S = 0.05


@dataclass(frozen=True)
class System:
    """What moves the elements: bodies of the processes, and the options they take."""

    label: str
    send: Callable[..., None]
    receive: Callable[..., None]
    options: dict[str, Any] = field(default_factory=dict)


def ours(label: str = "aiflow", **options: Any) -> System:
    """Give aiflow with these keywords of `aiflow.Sender`."""
    return System(label, aiflow_peers.send, aiflow_peers.receive, options)


TCP = System("TCP", tcp_peers.send, tcp_peers.receive)
ZEROMQ = System("ZeroMQ", zmq_peers.send, zmq_peers.receive)


@dataclass(frozen=True)
class Route:
    """Elements go from one node to another over the first `ports` ports of both."""

    source: int
    target: int
    ports: int


@dataclass(frozen=True)
class Measured:
    """A slice through the cluster.

    Attributes
    ----------
    nbytes, elements : int
    seconds : float
        From the first sender's start to the last one's end.
    each_seconds : tuple of float
        Each sender's own.
    share : float
        Element bits a second, of what the receivers' ports carry.
    lost : Loss
        By the kernel's counters.
    frames, retransmitted, spurious : int
        By aiflow's report; 0 for others. Spurious are those that had arrived after all.
    delivered : bool
        Whether every element arrived identical.
    load : float
        The machine's load average of the last minute.
    end_ns : int
        When the last sender's slice was over (monotonic clock).
    trace : tuple of (int, int, int)
        Of the first receiver, where it was asked for: the first and the last look (ns, monotonic) at which so many
        bytes of the slice had arrived.
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
        """Send so many elements, dealt out evenly by bytes over the senders.

        Parameters
        ----------
        nb_elements : int
        slices : int
            As so many slices, of which a few are under way at a time. The kernel's peers know one only.
        during : callable, optional
            What shall happen meanwhile; then there is a trace.
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
        time.sleep(_SETTLE_S)  # what is still on the wires
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
            trace=tuple(map(tuple, received[0][3])) if during is not None else (),
        )


def _line_bps(layout: Layout, routes: Sequence[Route]) -> int:
    """What the receivers' ports in use carry together."""
    used = {(route.target, number) for route in routes for number in range(route.ports)}
    return sum(layout.rate_bps(number) for _, number in used)


@contextlib.contextmanager
def running(
    cluster: Cluster, system: System, routes: Sequence[Route], elements: Elements,
    faults: dict[str, Any] | None = None,
) -> Iterator[Trial]:  # fmt: skip
    """Start a system's processes in the cluster's nodes; they are ended on exit.

    `faults` are made by our own senders (`aiflow.config.FAULTS`), and leave the kernel's peers alone.

    Raises
    ------
    LabError
        When one of them fails.
    """
    layout = cluster.layout
    with contextlib.ExitStack() as stack:
        receivers, senders = [], []
        for target in sorted({route.target for route in routes}):
            to_it = [route for route in routes if route.target == target]
            ports = layout.ports_of(target)[: max(route.ports for route in to_it)]
            arguments: Any = (
                target, [p.interface for p in ports], [p.address for p in ports], len(to_it), elements, {},
            )  # fmt: skip
            receivers.append(stack.enter_context(NodeChild(cluster, target, system.receive, *arguments)))
        hear_all(receivers, _START_S)
        for route in routes:
            ours, theirs = (layout.ports_of(node)[: route.ports] for node in (route.source, route.target))
            pairs = [(one.address, other.address) for one, other in zip(ours, theirs, strict=True)]
            options = system.options
            if system.send is aiflow_peers.send:  # a veth makes its speed up
                options = {"link_speed": [p.link_bps for p in ours], **options} | ({"faults": faults} if faults else {})
            arguments = (
                route.source, [p.interface for p in ours], pairs, f"node{route.target}", elements, options,
            )  # fmt: skip
            senders.append(stack.enter_context(NodeChild(cluster, route.source, system.send, *arguments)))
        hear_all(senders, _START_S)
        yield Trial(cluster, routes, elements, senders, receivers)
        for child in (*senders, *receivers):  # together; leaving the stack waits for each
            child.ask_to_end()
