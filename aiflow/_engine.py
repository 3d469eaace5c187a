"""What a Sender and a Receiver have in common below their face: a loop, its monitor, its waiter and its ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiflow._eal import Mempool
from aiflow._ports.portset import PortSet
from aiflow._transfer.demand import Speeds
from aiflow._transfer.waiter import Waiter
from aiflow.config import Endpoint, parse_idle, parse_max_cores
from aiflow.monitor import LinkSpeeds, Monitor
from aiflow.options import Polling, Scheduling
from aiflow.report import PortTable, port_table

if TYPE_CHECKING:  # a Sender's process does not load a Receiver's loop
    from aiflow._dp_rx import RxLoop

__all__ = ["MBUFS_PER_PORT", "Engine", "ReceiverPools", "sender_pool"]

MBUFS_PER_PORT = 3071
"""Both rings of a port (up to 1024 each, which virtio fills up front), the staged frames, and the caches."""


class Engine:
    """Builds the parts around a loop, then runs the loop and opens the ports.

    Parameters
    ----------
    loop : TxLoop or RxLoop
    speeds : LinkSpeeds
    polling : Polling
    scheduling : Scheduling, optional
        A Sender's: weights and switches, for the monitor.

    Attributes
    ----------
    monitor : Monitor
    waiter : Waiter
    ports : PortSet
        Set by `open`.
    """

    ports: PortSet

    def __init__(self, loop: Any, speeds: LinkSpeeds, polling: Polling, scheduling: Scheduling | None = None) -> None:
        asked = scheduling or Scheduling()
        self.loop = loop
        self.monitor = Monitor(loop, speeds, asked.weights, asked.switches)
        self.waiter = Waiter(loop)
        loop.spins = parse_idle(polling.idle)
        loop.max_cores = parse_max_cores(polling.max_cores)

    def open(
        self, role: str, endpoints: tuple[Endpoint, ...], pool_for: Callable[..., Mempool], frame_size: int | None
    ) -> None:
        """Start the loop's thread and open the ports; on an error the loop ends.

        Parameters
        ----------
        role : {"sender", "receiver"}
        endpoints : tuple of Endpoint
        pool_for : callable
            Makes the mbufs of ports that are about to be opened: `sender_pool`, or `ReceiverPools`.
        frame_size : int or None
            Largest Ethernet frame in bytes; None: what the ports take.
        """
        loop = self.loop
        told = {"joining": loop.set_joining, "died": loop.note_death} if role == "sender" else {}
        loop.start(f"aiflow-{role}")
        try:
            self.ports = PortSet(
                endpoints,
                role,
                pool_for=pool_for,
                attach=loop.attach,
                detach=loop.detach,
                frame_size=frame_size,
                **told,
            )
        except BaseException:
            loop.close() if role == "receiver" else loop.stop()
            raise

    def port_table(self) -> PortTable:
        """A snapshot of the port path table."""
        return port_table(self.monitor)

    def path_speeds(self) -> Speeds:
        """Link speed of each port with a path, in bit/s."""
        return [row.link_speed_bps for row in self.port_table() if row.dest_mac]


def sender_pool(frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Mempool:
    """A Sender's mbufs for `nb_ports` ports that are about to be opened."""
    return Mempool(f"tx-{frame_size}", nb_ports * MBUFS_PER_PORT, frame_size, socket_id, not needs_eal_memory)


class ReceiverPools:
    """A Receiver's mbufs, by frame size. The ports hold this, and not the Receiver: one that is dropped can go.

    Parameters
    ----------
    loop : RxLoop
    memory : int
        The Receiver's ``memory``, in bytes.
    assemble : bool
        False: mbufs are the elements' memory, so all of `memory` is mbufs.
    mbuf_overhead : int
        Bytes that an mbuf takes beside its frame.
    """

    def __init__(self, loop: RxLoop, memory: int, assemble: bool, mbuf_overhead: int) -> None:
        self._loop = loop
        self._memory = memory
        self._assemble = assemble
        self._overhead = mbuf_overhead
        self._kept: dict[int, Mempool] = {}

    def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Mempool:
        nb_mbufs = nb_ports * MBUFS_PER_PORT
        if self._assemble:
            return Mempool(f"rx-{frame_size}", nb_mbufs, frame_size, socket_id, not needs_eal_memory)
        if frame_size not in self._kept:  # one pool for all ports with frames of this size
            kept = self._memory // (frame_size + self._overhead) + 1
            pool = Mempool(f"kept-{frame_size}", kept + 8 * MBUFS_PER_PORT, frame_size, socket_id, not needs_eal_memory)
            self._kept[frame_size] = pool
            self._loop.mbuf_bytes = max(self._loop.mbuf_bytes, frame_size + self._overhead)
        return self._kept[frame_size]

    def clear(self) -> None:
        """Let the pools go."""
        self._kept.clear()
