"""One sender connected to one receiver through a control socket, as either side sees it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiflow import _eal
from aiflow._eal_doorbell import Doorbell
from aiflow._eal_sharing import Sharing
from aiflow._system.descriptors import Descriptor
from aiflow.config import Endpoint
from aiflow.errors import AiflowError

__all__ = ["Connection", "Hooks", "step_timeout"]

_HANDSHAKE = 20.0  # seconds for each step of the handshake
_EACH_PORT = 4.0  # more seconds for each port that a step opens: touching its pool is slow on a small share of a core


def step_timeout(nb_ports: int = 0) -> float:
    """Seconds that a live peer may take for one step that opens `nb_ports` ports."""
    return _HANDSHAKE + nb_ports * _EACH_PORT


class PoolFor(Protocol):
    """Gives the Mempool for ports that are about to be opened."""

    def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any: ...


@dataclass(frozen=True)
class Hooks:
    """What a `PortSet` does for its rendezvous, called from the rendezvous thread.

    Attributes
    ----------
    pool_for, attach, detach : callable
        As for `PortSet`.
    failed : callable
        Receives the error that `send` or `recv` shall raise, and None when it is over.
    joining : callable, optional
        For a sender: receives whether a receiver is opening our ports, each time that this changes.
    died : callable, optional
        Called before `detach` if the peer hung up without a goodbye.
    memories : callable, optional
        Returns the `Memory` of each of our Receivers that shares it.
    pools : callable, optional
        Returns the `Pool` of each of our Senders that has loans.
    writer_gone : callable, optional
        Receives the number of a `Sharing` whose peer will not write to our memory any more. After `detach`.
    """

    pool_for: PoolFor
    attach: Callable[[Any, int], None]
    detach: Callable[[list[Any], int], None]
    failed: Callable[[AiflowError | None], None]
    joining: Callable[[bool], None] | None = None
    died: Callable[[], None] | None = None
    memories: Callable[[], list[Any]] | None = None
    pools: Callable[[], list[Any]] | None = None
    writer_gone: Callable[[int], None] | None = None


@dataclass(eq=False)
class Connection:
    """One sender at one receiver.

    Attributes
    ----------
    endpoint : Endpoint
    sock : socket
    peer : int
        Number of the connection, from 1.
    state : str
        Receiver: hello → offered → joining → up. Sender: asked → coming → joining → up. Either: farewell.
    deadline : float
        Time by which the current step must end, on the monotonic clock.
    ports : list of Port
    sockets : list of (str, int)
        Receiver: name and number of each port's socket, for the offer.
    capabilities : set of str
        Receiver: the sender's.
    said_bye : bool
        The peer is about to close in an orderly way.
    doorbell : Doorbell or None
        By which each side wakes the other.
    sharing : Sharing or None
        What the peers' Receivers share. None: nothing can be shared over this connection.
    process : Descriptor or None
        Of the peer's process: readable when that has ended.
    writes : bool
        The peer may write to our memory.
    """

    endpoint: Endpoint
    sock: socket.socket
    peer: int = 0
    state: str = "hello"
    deadline: float = field(default_factory=lambda: time.monotonic() + step_timeout())
    ports: list[_eal.Port] = field(default_factory=list)
    sockets: list[tuple[str, int]] = field(default_factory=list)
    capabilities: set[str] = field(default_factory=set)
    said_bye: bool = False
    doorbell: Doorbell | None = None
    sharing: Sharing | None = None
    process: Descriptor | None = None
    writes: bool = False
    _connecting: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def hasten(self) -> None:
        """Let DPDK's interrupt thread, which takes part in memif's handshake, run often until `relax`."""
        self._connecting.enter_context(_eal.connecting())

    def relax(self) -> None:
        """End what `hasten` began."""
        self._connecting.close()

    def wire_doorbell(self) -> None:
        """Let the doorbell wake all ports of this connection. Before they are attached."""
        if self.doorbell is not None:
            for port in self.ports:
                port.doorbell = self.doorbell
                port.wake_fds = [self.doorbell.fileno()]

    def share(self, process: Descriptor, writer: int) -> None:
        """The peer, whose process this is, can share memory. Before the ports are attached."""
        self.process = process
        self.writes = True
        self.sharing = self.sharing or Sharing()
        self.sharing.writer = writer
        for port in self.ports:
            port.sharing = self.sharing

    def close(self) -> None:
        """Close the doorbell and the socket. The ports are closed already."""
        if self.doorbell is not None:
            self.doorbell.close()
        self.sock.close()

    def links_up(self) -> bool:
        """Whether every port has its peer."""
        return all(port.link()[0] for port in self.ports)
