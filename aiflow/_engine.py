"""What a Sender and a Receiver have in common below their face: an agent, its monitor, its waiter and its ports."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiflow._eal import Mempool
from aiflow._observe import exposition, server, trace
from aiflow._transfer.demand import Speeds
from aiflow._transfer.waiter import Waiter
from aiflow.monitor import LinkSpeeds, Monitor
from aiflow.options import Scheduling, Telemetry
from aiflow.report import PortTable, port_table
from aiflow.shared_ports import MBUFS_PER_PORT, OwnPorts, Ports

__all__ = ["Engine", "ReceiverPools"]


class Engine:
    """Builds the parts around an agent, then brings it to its ports.

    Parameters
    ----------
    agent : TxAgent or RxAgent
    speeds : LinkSpeeds
    scheduling : Scheduling, optional
        A Sender's: weights and switches, for the monitor.

    Attributes
    ----------
    monitor : Monitor
    waiter : Waiter
    ports : OwnPorts or Ports
        Set before `join`.
    """

    ports: OwnPorts | Ports

    def __init__(self, agent: Any, speeds: LinkSpeeds, scheduling: Scheduling | None = None) -> None:
        asked = scheduling or Scheduling()
        self.agent = agent
        self.monitor = Monitor(agent, speeds, asked.weights, asked.switches)
        self.waiter = Waiter(agent)

    def join(self, who: str) -> None:
        """Use `ports`; `who` is for messages. After an error or interrupt, also one that comes later: `leave`."""
        names = [name for endpoint in self.ports.endpoints for name in endpoint.port_names]
        self.agent.places = {name: index for index, name in enumerate(names)}
        self.ports._join(self.agent, who)

    def leave(self) -> None:
        """Use the ports no more; they close when they are the agent's own. Idempotent."""
        server.forget(self)
        exposition.forget(self)
        self.ports._leave(self.agent)

    def show(self, name: str, endpoints: tuple[Any, ...], asked: Mapping[str, Any], telemetry: Telemetry) -> None:
        """Show the figures to readers outside from now on, until `leave`.

        Parameters
        ----------
        name : str
            Of the Sender or Receiver.
        endpoints : tuple of Endpoint
        asked : mapping
            Options that explain the figures.
        telemetry : Telemetry
            ``metrics_port`` serves them for Prometheus, too.
        """
        server.note(self, name, endpoints, asked)
        exposition.note(self, telemetry.metrics_port)
        if trace.trace() is not None:
            self.agent.on_end = partial(trace.sent if self.agent.role == "sender" else trace.received, name)

    def port_table(self) -> PortTable:
        """A snapshot of the port path table."""
        return port_table(self.monitor)

    def path_speeds(self) -> Speeds:
        """Link speed of each port with a path, in bit/s."""
        return [row.link_speed_bps for row in self.port_table() if row.dest_mac]


class ReceiverPools:
    """A Receiver's mbufs, by frame size. The ports hold this, and not the Receiver: one that is dropped can go.

    Parameters
    ----------
    agent : RxAgent
    memory : int
        The Receiver's ``memory``, in bytes.
    assemble : bool
        False: mbufs are the elements' memory, so all of `memory` is mbufs.
    mbuf_overhead : int
        Bytes that an mbuf takes beside its frame.
    """

    def __init__(self, agent: Any, memory: int, assemble: bool, mbuf_overhead: int) -> None:
        self._agent = weakref.ref(agent)  # which holds us
        self._memory = memory
        self._assemble = assemble
        self._overhead = mbuf_overhead
        self._kept: dict[int, Mempool] = {}
        self._copied: set[str] = set()  # names of ports that others opened

    def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Mempool:
        if self._assemble:
            nb_mbufs = nb_ports * MBUFS_PER_PORT
            return Mempool(f"rx-{frame_size}", nb_mbufs, frame_size, socket_id, not needs_eal_memory)
        if frame_size not in self._kept:  # one pool for all ports with frames of this size
            kept = self._memory // (frame_size + self._overhead) + 1
            pool = Mempool(f"kept-{frame_size}", kept + 8 * MBUFS_PER_PORT, frame_size, socket_id, not needs_eal_memory)
            self._kept[frame_size] = pool
            if (agent := self._agent()) is not None:
                agent.mbuf_bytes = max(agent.mbuf_bytes, frame_size + self._overhead)
        return self._kept[frame_size]

    def of_port(self, port: Any) -> Mempool:
        """The pool in which payloads of this port stay."""
        pool: Mempool = port.mempool
        if pool in self._kept.values():
            return pool
        self._copied.add(port.name)
        return self(port.frame_size, port.socket_id, 1, False)

    def hints(self, endpoint: str) -> list[str]:
        """Which ports of an endpoint bring frames in mbufs of others, a sentence each."""
        target = endpoint.partition("*")[0]
        return [
            f"{name}: each frame is copied once into mbufs of this Receiver, because others opened the port"
            for name in sorted(self._copied)
            if name == endpoint or name.partition("#")[0] == target
        ]

    def clear(self) -> None:
        """Let the pools go."""
        self._kept.clear()
