"""The ports of an opening.

Static endpoints (``af_packet af_xdp pci vdev ring``) are opened at once. The rendezvous thread opens and closes the
ports of shared-memory endpoints (``local memif vhost``) as peers come and go.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from aiflow import _eal
from aiflow._eal_loans import Pool
from aiflow._ports import netdev, ring_pairs, xdp_ports
from aiflow._ports.card_watch import WatchedCard
from aiflow._ports.connection import Hooks
from aiflow._ports.interface_watch import WatchedInterface, watching
from aiflow._ports.local_drivers import driver_of
from aiflow._ports.memories import Memory
from aiflow._ports.netdev import Interface
from aiflow._ports.registry import owner_of
from aiflow._ports.rendezvous import Rendezvous
from aiflow._ports.rendezvous_receiver import ReceiverRendezvous
from aiflow._ports.rendezvous_sender import SenderRendezvous
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._ports.static_ports import open_af_packet, open_af_xdp, open_pci, open_vdev
from aiflow._ports.xdp_probe import AF_XDP
from aiflow._system import threads
from aiflow._system.descriptors import kept_sockets
from aiflow._system.log import logger
from aiflow._wire import MAX_FRAME, MIN_PATH_FRAME
from aiflow.config import Endpoint, parse_endpoints
from aiflow.errors import AiflowError, ConfigError, PortError

__all__ = ["SHARED_MEMORY", "PortSet"]

_log = logger("ports")

_RING_FRAME = 9216  # bytes; nothing is copied, so that any size would do
SHARED_MEMORY = ("local", "memif", "vhost")
"""Schemes whose ports come and go with their peers."""


class PortSet:
    """The ports of some endpoints.

    Parameters
    ----------
    endpoints : str, list of str, or tuple of Endpoint
    role : {"sender", "receiver", "either"}
        Which end of a named endpoint is ours. "either": the one that is free.
    pool_for : callable
        ``pool_for(frame_size, socket_id, nb_ports, needs_eal_memory)`` returns the Mempool for ports that are about to
        be opened. Its mbufs must have room for `frame_size` bytes.
    attach : callable
        ``attach(port, peer)``: the port is up and may be polled. `peer` numbers the connection, from 1; it is 0 for a
        port that is not tied to one peer. Called from the constructor, or from the rendezvous thread.
    detach : callable
        ``detach(ports, peer)``: the ports are about to be closed. Received frames may still be read. When it returns,
        the data plane no longer touches the ports.
    frame_size : int, optional
        Largest frame wanted, in bytes with the Ethernet header.
    joining : callable, optional
        For a sender: receives True when a receiver starts to open our ports, and False when that has ended. Called from
        the rendezvous thread.
    died : callable, optional
        Called before `detach` if the peer hung up without a goodbye. Called from the rendezvous thread.
    failed : callable, optional
        Called after `error` has changed.
    memories, pools, writer_gone : callable, optional
        As of `aiflow._ports.connection.Hooks`.

    Attributes
    ----------
    error : AiflowError or None
        A fault found after the constructor returned that keeps a port from coming up (a receiver's refusal, for
        instance). The next `send` or `recv` raises it.
    nb_ports : int
        Number of ports that the endpoints ask for.

    Raises
    ------
    ConfigError
        If an endpoint is malformed, or a port cannot carry `frame_size`.
    PortError
        If a port cannot be opened. The ports opened before it are closed again.
    EalError
        If DPDK cannot start.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] | tuple[Endpoint, ...],
        role: str,
        *,
        pool_for: Callable[..., Any],
        attach: Callable[[Any, int], None],
        detach: Callable[[list[Any], int], None],
        frame_size: int | None = None,
        joining: Callable[[bool], None] | None = None,
        died: Callable[[], None] | None = None,
        failed: Callable[[], None] | None = None,
        memories: Callable[[], list[Memory]] | None = None,
        pools: Callable[[], list[Pool]] | None = None,
        writer_gone: Callable[[int], None] | None = None,
    ) -> None:
        if role not in ("sender", "receiver", "either"):
            raise ConfigError(f"role={role!r}: use 'sender', 'receiver' or 'either'")
        if isinstance(endpoints, tuple) and all(isinstance(entry, Endpoint) for entry in endpoints):
            self.endpoints: tuple[Endpoint, ...] = endpoints
        else:
            self.endpoints = parse_endpoints(endpoints)  # type: ignore[arg-type]
        if frame_size is not None and not MIN_PATH_FRAME <= frame_size <= MAX_FRAME:
            raise ConfigError(f"frame_size={frame_size}: a path's frames have {MIN_PATH_FRAME} to {MAX_FRAME} bytes")
        self.role = role
        self.nb_ports = sum(endpoint.nb_ports for endpoint in self.endpoints)
        self.error: AiflowError | None = None
        self._failed = failed
        self._pool_for: Callable[..., Any] | None = pool_for
        self._attach_port: Callable[[Any, int], None] | None = attach
        self._detach_ports: Callable[[list[Any], int], None] | None = detach
        self._frame_size = frame_size
        self._lock = threads.unpatched("threading").Lock()
        self._ports: list[Any] = []
        self._static: list[Any] = []
        self._claims: dict[tuple[Endpoint, str], Any] = {}
        self._rings: list[tuple[Endpoint, str]] = []
        self._rendezvous: list[Rendezvous] = []
        self._listening: list[Endpoint] = []
        self._watched: list[WatchedInterface | WatchedCard] = []
        self._watch: threads.Thread | None = None
        self._watch_end = threads.Flag()
        self._closed = False
        self._pid = os.getpid()
        try:
            _eal.start()
            for endpoint in self.endpoints:
                if endpoint.scheme not in SHARED_MEMORY:
                    self._open(endpoint)
            shared = [endpoint for endpoint in self.endpoints if endpoint.scheme in SHARED_MEMORY]
            if shared:
                hooks = Hooks(
                    self._pool, self._attach, self._detach, self._fail, joining, died, memories, pools, writer_gone
                )
                self._meet(shared, hooks)
            if self._watched:
                self._watch = threads.start(watching(weakref.ref(self), self._watch_end), "aiflow-watch")
        except BaseException:
            self.close()
            raise

    def ports(self) -> list[Any]:
        """Ports that are up now, in the order in which they came up."""
        with self._lock:
            return list(self._ports)

    def close(self) -> None:
        """Detach and close all ports, hang up, release the names. Idempotent; does nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return
        self._watch_end.set()
        if self._watch is not None and not threads.is_current(self._watch):
            self._watch.join()
        while self._rendezvous:
            self._rendezvous[-1].close()
            self._rendezvous.pop()  # it refers to us
        static = [port for port in self._static if port in self._ports]
        if static:
            self._detach(static, 0)
        for port in self._static:
            if port.driver != "net_ring":
                xdp_ports.keep_or_close(port)
        for claim in self._claims.values():
            claim.close()
        for endpoint, role in self._rings:
            ring_pairs.give_back(endpoint, role)
        # No reference cycle: the owner's memory must not wait for the garbage collector.
        self._pool_for = self._attach_port = self._detach_ports = self._failed = None
        self._closed = True  # last, so that an interrupted close can be repeated

    def describe(self) -> list[dict[str, Any]]:
        """The driver behind each endpoint.

        Returns
        -------
        list of dict
            For each endpoint: ``endpoint`` (as typed), ``driver`` (DPDK's name), ``nb_ports`` (asked for), ``memory``
            (the EAL's memory mode), ``state`` ("up", "no carrier", "down", "removed", "no peer" or "closed"), ``hints``
            (those of its ports: see `hints`), ``data`` ("placed": senders write into the receiver's memory; "carried":
            frames bring the bytes; "": no peer).
        """
        rows = []
        watched = self._watched_now()
        for endpoint in self.endpoints:
            if endpoint.scheme in SHARED_MEMORY:
                driver = driver_of(endpoint.scheme)
                name = driver.receiver if self._listens(endpoint) else driver.sender
            else:
                name = next((port.driver for port in self._static if _belongs(port, endpoint)), "")
            rows.append(
                {
                    "endpoint": endpoint.text,
                    "driver": name,
                    "nb_ports": endpoint.nb_ports,
                    "memory": _eal.memory_mode(),
                    "state": self._state(endpoint),
                    "hints": [hint for each in watched if each.endpoint == endpoint for hint in each.hints()],
                    "data": self._data_way(endpoint),
                }
            )
        return rows

    def hints(self) -> list[str]:
        """Facts about these ports that may keep frames from getting through now, a sentence each."""
        hints = [hint for each in self._watched_now() for hint in each.hints()]
        for rendezvous in list(self._rendezvous):
            hints += rendezvous.hints()
        return hints

    def _watched_now(self) -> list[WatchedInterface | WatchedCard]:
        """What is watched; a card is asked for its link first."""
        for watched in self._watched:
            if isinstance(watched, WatchedCard) and watched.lost is None:
                with contextlib.suppress(AiflowError):  # another thread is closing it
                    watched.refresh()
        return self._watched

    def share(self, memory: Memory) -> None:
        """A Receiver has joined: pass its memory to the peers that are connected."""
        for rendezvous in list(self._rendezvous):
            rendezvous.share(memory)

    def lend(self, pool: Pool) -> None:
        """A Sender has loans: pass their pool to the peers that are connected."""
        for rendezvous in list(self._rendezvous):
            rendezvous.lend(pool)

    @property
    def is_gone(self) -> bool:
        """Whether `error` says that an interface was removed."""
        return self.error is not None and any(watched.lost is self.error for watched in self._watched)

    def _state(self, endpoint: Endpoint) -> str:
        for watched in self._watched:
            if watched.endpoint == endpoint:
                return watched.state
        if not any(_belongs(port, endpoint) for port in self.ports()):
            return "no peer" if endpoint.scheme in SHARED_MEMORY else "closed"
        return "up"

    def _data_way(self, endpoint: Endpoint) -> str:
        if endpoint.scheme not in SHARED_MEMORY:
            return "carried"
        return next(filter(None, (each.data_way(endpoint) for each in list(self._rendezvous))), "")

    def serve(self, role: str) -> None:
        """A Sender or Receiver (its `role`) comes to these ports: claim the interfaces for it.

        Raises
        ------
        PortError
            If another process has such a role on an interface.
        """
        for watched in self._watched:
            if isinstance(watched, WatchedInterface):  # a card has one process anyway
                self._claim(watched.endpoint, role)

    def _claim(self, endpoint: Endpoint, role: str) -> None:
        use = netdev.use_of(endpoint, role)
        if use and (endpoint, use) not in self._claims:
            self._claims[endpoint, use] = netdev.claim(endpoint, use)

    # -------------------------------------------------------------------------------------------------- named endpoints

    def _meet(self, endpoints: list[Endpoint], hooks: Hooks) -> None:
        """Listen at the names that are ours, and call the owners of the others."""
        root = runtime_directory()
        if self.role == "either":
            self._listening = [endpoint for endpoint in endpoints if owner_of(endpoint, root) is None]
        elif self.role == "receiver":
            self._listening = endpoints
        if self._listening:
            try:
                self._rendezvous.append(ReceiverRendezvous(self._listening, root, hooks, self._frame_size))
            except PortError:
                if self.role != "either" or all(owner_of(endpoint, root) is None for endpoint in self._listening):
                    raise
                self._meet(endpoints, hooks)  # another process has taken a name meanwhile
                return
        if calling := [endpoint for endpoint in endpoints if endpoint not in self._listening]:
            self._rendezvous.append(SenderRendezvous(calling, root, hooks, self._frame_size))

    def _listens(self, endpoint: Endpoint) -> bool:
        return endpoint in self._listening

    # ----------------------------------------------------------------------------------------- callbacks of the threads

    def _pool(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any:
        if self._pool_for is None:
            raise ConfigError("these ports are closed: open another Sender or Receiver")
        return self._pool_for(frame_size, socket_id, nb_ports, needs_eal_memory)

    def _fail(self, error: AiflowError | None) -> None:
        self.error = error
        if self._failed is not None:
            self._failed()

    def _attach(self, port: Any, peer: int) -> None:
        with self._lock:
            self._ports.append(port)
        if self._attach_port is not None:
            self._attach_port(port, peer)

    def _detach(self, ports: list[Any], peer: int) -> None:
        if self._detach_ports is not None:
            self._detach_ports(ports, peer)  # first: after an interrupt, `close` must do it again
        with self._lock:
            self._ports = [port for port in self._ports if port not in ports]

    # --------------------------------------------------------------------------------- interfaces that go and come back

    def check_interfaces(self) -> None:
        """Close ports whose interface has gone, reopen those whose interface is back; called by the watching thread."""
        for watched in self._watched:
            if self._watch_end.is_set():
                return
            if watched.lost is not None:
                self._regain(watched)
            elif not watched.exists():
                self._lose(watched)
            else:
                with contextlib.suppress(PortError):  # another thread is closing it
                    watched.refresh()

    def _lose(self, watched: WatchedInterface | WatchedCard) -> None:
        """The interface or card has gone: close its port. The other ports of this side keep working."""
        next_step = (
            "it is opened again when it is back"
            if watched.endpoint.scheme == "af_packet"
            else "close what uses it, and open it again when it is back"
        )
        watched.lost = PortError(f"{watched.endpoint}: {watched.how_lost}; {next_step}")
        if not self._rendezvous and self.ports() == [watched.port]:
            self._fail(watched.lost)  # first, so that a slice in flight fails with this reason
        self._detach([watched.port], 0)
        self._static.remove(watched.port)
        xdp_ports.close(watched.port)
        watched.port = None
        with contextlib.suppress(Warning):  # a filter may turn it into an error, which this thread cannot report
            warnings.warn(str(watched.lost), RuntimeWarning, stacklevel=2)
        _log.warning("%s", watched.lost)

    def _regain(self, watched: WatchedInterface | WatchedCard) -> None:
        """Open the port again once an interface of that name is back."""
        if not isinstance(watched, WatchedInterface) or watched.endpoint.scheme != "af_packet":
            return
        reported = watched.lost
        try:
            self._plug_af_packet(watched, netdev.inspect(watched.endpoint))
        except PortError:
            return  # still missing, or down
        except AiflowError as exc:
            watched.lost = exc
            if self.error is reported:
                self._fail(exc)
            return
        self._add(watched.port)
        watched.up_since, watched.came_up, watched.lost = time.monotonic(), True, None
        if self.error is reported:
            self._fail(None)

    # ---------------------------------------------------------------------------------------------- static endpoints

    def _open(self, endpoint: Endpoint) -> None:
        opener = {
            "af_packet": self._open_af_packet,
            "af_xdp": self._open_af_xdp,
            "pci": self._open_pci,
            "vdev": self._open_vdev,
            "ring": self._open_ring,
        }[endpoint.scheme]
        xdp = endpoint.scheme in ("af_xdp", "vdev")  # a copy of its socket in a forked child would keep the queue
        with kept_sockets(AF_XDP) if xdp else contextlib.nullcontext():
            ports = opener(endpoint)
        for port in ports:
            self._add(port)

    def _add(self, port: Any) -> None:
        self._static.append(port)
        self._attach(port, 0)

    def _open_af_packet(self, endpoint: Endpoint) -> list[Any]:
        watched = WatchedInterface(endpoint, netdev.inspect(endpoint))
        self._claim(endpoint, self.role)
        self._plug_af_packet(watched, watched.interface)
        self._watched.append(watched)
        return [watched.port]

    def _plug_af_packet(self, watched: WatchedInterface, interface: Interface) -> None:
        port, sockets = open_af_packet(watched.endpoint, interface, self._frame_size, self._pool)
        watched.port, watched.interface, watched.sockets = port, interface, sockets

    def _open_af_xdp(self, endpoint: Endpoint) -> list[Any]:
        interface = netdev.inspect(endpoint)
        self._claim(endpoint, self.role)
        port = open_af_xdp(endpoint, interface, self._frame_size, self._pool)
        self._watched.append(WatchedInterface(endpoint, interface, port))
        return [port]

    def _open_pci(self, endpoint: Endpoint) -> list[Any]:
        port = open_pci(endpoint, self._frame_size, self._pool)
        self._watched.append(WatchedCard(endpoint, port))
        return [port]

    def _open_vdev(self, endpoint: Endpoint) -> list[Any]:
        return [open_vdev(endpoint, self._frame_size, self._pool)]

    def _open_ring(self, endpoint: Endpoint) -> list[Any]:
        pool = self._pool(self._frame_size or _RING_FRAME, -1, endpoint.nb_ports, False)
        role = ring_pairs.free_side(endpoint) if self.role == "either" else self.role
        ports = ring_pairs.take(endpoint, role, pool)
        self._rings.append((endpoint, role))
        return ports


def _belongs(port: Any, endpoint: Endpoint) -> bool:
    name: str = port.name
    return name == endpoint.text or name.startswith(f"{endpoint.scheme}:{endpoint.target}#")
