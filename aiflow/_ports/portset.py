"""From endpoints to open ports.

Static endpoints (``af_packet af_xdp pci vdev ring``) are opened at once; shared-memory ones (``local memif vhost``) as
peers come and go, by the rendezvous thread.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiflow import _eal
from aiflow._ports import netdev, ring_pairs
from aiflow._ports.connection import Hooks
from aiflow._ports.local_drivers import DRIVERS, driver_of
from aiflow._ports.netdev import Interface
from aiflow._ports.registry import live
from aiflow._ports.rendezvous import Rendezvous
from aiflow._ports.rendezvous_receiver import ReceiverRendezvous
from aiflow._ports.rendezvous_sender import SenderRendezvous
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._system import threads
from aiflow._system.descriptors import kept_sockets
from aiflow._wire import MAX_FRAME, MIN_PATH_FRAME
from aiflow.config import Endpoint, parse_endpoint, parse_endpoints
from aiflow.errors import AiflowError, ConfigError, PortError

__all__ = ["PortSet", "available"]

_RING_FRAME = 9216  # bytes; nothing is copied, so that any size would do
_OPENED = "it was opened"
_LOOK_S = 0.5  # between two looks at the interfaces
_SPANNING_TREE_S = 60.0  # after its link came up a switch port forwards nothing for some 30 s, at most 60

_finding_sockets = threads.unpatched("threading").Lock()  # one port opens at a time: new sockets are that one's


def _forked() -> None:
    """Runs in every forked child: a lock that another thread of the parent held would stay locked."""
    global _finding_sockets
    _finding_sockets = threads.unpatched("threading").Lock()


os.register_at_fork(after_in_child=_forked)


@dataclass
class _Watched:
    """An af_packet or af_xdp endpoint: a socket stays bound to what it was opened on, though that may go."""

    endpoint: Endpoint
    interface: Interface
    port: Any = None
    sockets: set[int] = field(default_factory=set)
    up_since: float = field(default_factory=time.monotonic)  # seen to come up, or opened
    came_up: bool = False  # the former
    lost: AiflowError | None = None
    down: PortError | None = None  # or whatever else the kernel can mend by itself

    def is_there(self) -> bool:
        if self.sockets:
            return all(netdev.bound(fd) == self.interface.index for fd in self.sockets)
        return netdev.exists(self.interface.index)

    def look(self) -> None:
        """Learn whether it has a carrier, and what else the kernel says of it."""
        carried = self.interface.carrier and self.down is None
        try:
            self.interface, self.down = netdev.inspect(self.endpoint, is_open=True), None
        except PortError as exc:
            self.down = exc
            return
        if self.interface.carrier and not carried:
            self.up_since, self.came_up = time.monotonic(), True

    def hints(self) -> list[str]:
        if self.lost is not None or self.down is not None:
            return [str(self.lost or self.down)]
        hints = [f"{self.endpoint}: {note}" for note in self.interface.notes]
        if self.interface.carrier:
            hints += _spanning_tree(str(self.endpoint), self.up_since, "its link came up" if self.came_up else _OPENED)
        return hints


def _spanning_tree(port: str, since: float, what: str) -> list[str]:
    seconds = time.monotonic() - since
    if seconds > _SPANNING_TREE_S:
        return []
    return [
        f"{port}: {what} {seconds:.0f} s ago; a switch port with spanning tree forwards nothing for 30 s after link-up "
        "(wait, or pass peer_timeout=60)"
    ]


class PortSet:
    """The ports of one Sender or Receiver.

    Parameters
    ----------
    endpoints : str, list of str, or tuple of Endpoint
    role : {"sender", "receiver"}
    pool_for : callable
        ``pool_for(frame_size, socket_id, nb_ports, needs_eal_memory)`` gives the Mempool for ports about to be opened;
        its mbufs must have room for `frame_size` bytes.
    attach : callable
        ``attach(port, peer)``: the port is up and may be polled. `peer` numbers the connection, from 1; 0 for a port
        that is not tied to one peer. Called from the constructor, or from the rendezvous thread.
    detach : callable
        ``detach(ports, peer)``: they are about to be closed. What they have received may still be read; when it
        returns, the data plane touches them no more.
    frame_size : int, optional
        Largest frame wanted, in bytes with the Ethernet header.
    joining : callable, optional
        A sender's: told that a receiver has begun to make our ports, and that it has ended. Called from the rendezvous
        thread.
    died : callable, optional
        A sender's: told, before `detach`, that a receiver has hung up without a goodbye. Called from that thread, too.

    Attributes
    ----------
    error : AiflowError or None
        What keeps a port from ever coming up, found after the constructor returned (a receiver's refusal, for
        instance); for the next `send` or `recv` to raise.
    nb_ports : int
        Ports asked for.

    Raises
    ------
    ConfigError
        If an endpoint is malformed, or a port cannot carry `frame_size`.
    PortError
        If a port cannot be opened; those opened before it are closed again.
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
    ) -> None:
        if role not in ("sender", "receiver"):
            raise ConfigError(f"role={role!r}: it is 'sender' or 'receiver'")
        if isinstance(endpoints, tuple) and all(isinstance(entry, Endpoint) for entry in endpoints):
            self.endpoints: tuple[Endpoint, ...] = endpoints
        else:
            self.endpoints = parse_endpoints(endpoints)  # type: ignore[arg-type]
        if frame_size is not None and not MIN_PATH_FRAME <= frame_size <= MAX_FRAME:
            raise ConfigError(f"frame_size={frame_size}: a path's frames have {MIN_PATH_FRAME} to {MAX_FRAME} bytes")
        self.role = role
        self.nb_ports = sum(endpoint.nb_ports for endpoint in self.endpoints)
        self.error: AiflowError | None = None
        self._pool_for: Callable[..., Any] | None = pool_for
        self._attach_port = attach
        self._detach_ports = detach
        self._frame_size = frame_size
        self._lock = threads.unpatched("threading").Lock()
        self._ports: list[Any] = []
        self._static: list[Any] = []
        self._claims: list[Any] = []
        self._rings: list[Endpoint] = []
        self._rendezvous: Rendezvous | None = None
        self._watched: list[_Watched] = []
        self._watch: threads.Thread | None = None
        self._opened = time.monotonic()
        self._watch_ends = threads.unpatched("threading").Event()
        self._closed = False
        self._pid = os.getpid()
        try:
            _eal.start()
            for endpoint in self.endpoints:
                if endpoint.scheme not in ("local", "memif", "vhost"):
                    self._open(endpoint)
            shared = [endpoint for endpoint in self.endpoints if endpoint.scheme in ("local", "memif", "vhost")]
            if shared:
                kind = ReceiverRendezvous if role == "receiver" else SenderRendezvous
                hooks = Hooks(self._pool, self._attach, self._detach, self._fail, joining, died)
                self._rendezvous = kind(shared, hooks, frame_size)
            if self._watched:
                self._watch = threads.start(_watching(weakref.ref(self), self._watch_ends), "aiflow-watch")
        except BaseException:
            self.close()
            raise

    def ports(self) -> list[Any]:
        """Ports that are up now, in the order they came."""
        with self._lock:
            return list(self._ports)

    def close(self) -> None:
        """Detach and close all ports, hang up, give names back. Idempotent; does nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return
        self._watch_ends.set()
        if self._watch is not None and not threads.is_current(self._watch):
            self._watch.join()
        if self._rendezvous is not None:
            self._rendezvous.close()
            self._rendezvous = None  # which holds us
        static = [port for port in self._static if port in self._ports]
        if static:
            self._detach(static, 0)
        for port in self._static:
            if port.driver != "net_ring":
                port.close()
        for claim in self._claims:
            claim.close()
        for endpoint in self._rings:
            ring_pairs.give_back(endpoint, self.role)
        self._pool_for = None  # no cycle: the owner's memory must not wait for the collector
        self._closed = True  # last: a close that was interrupted is repeated

    def describe(self) -> list[dict[str, Any]]:
        """What serves each endpoint.

        Returns
        -------
        list of dict
            A dict an endpoint: ``endpoint`` (as typed), ``driver`` (DPDK's name), ``nb_ports`` (asked for),
            ``memory`` (the EAL's memory mode), ``hints`` (what may keep frames from getting through now: see `hints`).
        """
        rows = []
        for endpoint in self.endpoints:
            if endpoint.scheme in ("local", "memif", "vhost"):
                driver = driver_of(endpoint.scheme)
                name = driver.receiver if self.role == "receiver" else driver.sender
            else:
                name = next((port.driver for port in self._static if _belongs(port, endpoint)), "")
            rows.append(
                {
                    "endpoint": endpoint.text,
                    "driver": name,
                    "nb_ports": endpoint.nb_ports,
                    "memory": _eal.memory_mode(),
                    "hints": [hint for each in self._watched if each.endpoint == endpoint for hint in each.hints()],
                }
            )
        return rows

    def hints(self) -> list[str]:
        """What is known about these ports right now that may keep frames from getting through, a sentence each."""
        hints = [hint for each in self._watched for hint in each.hints()]
        for port in self.ports():
            if port.name.startswith("pci:"):
                with contextlib.suppress(AiflowError):  # it is being closed
                    if port.link()[0]:
                        hints += _spanning_tree(port.name, self._opened, _OPENED)
                    else:
                        hints.append(f"{port.name}: no link: it is not plugged in, or its other end is down")
        if self._rendezvous is not None:
            hints += self._rendezvous.hints()
        return hints

    # -------------------------------------------------------------------------------------------------- coming, going

    def _pool(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any:
        if self._pool_for is None:
            raise ConfigError("these ports are closed: open another Sender or Receiver")
        return self._pool_for(frame_size, socket_id, nb_ports, needs_eal_memory)

    def _fail(self, error: AiflowError | None) -> None:
        self.error = error

    def _attach(self, port: Any, peer: int) -> None:
        with self._lock:
            self._ports.append(port)
        self._attach_port(port, peer)

    def _detach(self, ports: list[Any], peer: int) -> None:
        with self._lock:
            self._ports = [port for port in self._ports if port not in ports]
        self._detach_ports(ports, peer)

    # ------------------------------------------------------------------------------------- interfaces that go and come

    def _look(self) -> None:
        """Once in a while, in the thread that watches."""
        for watched in self._watched:
            if self._watch_ends.is_set():
                return
            if watched.lost is not None:
                self._regain(watched)
            elif not watched.is_there():
                self._lose(watched)
            else:
                watched.look()

    def _lose(self, watched: _Watched) -> None:
        """The interface has gone: let go of its port; the others of this side go on."""
        gone = f"{watched.endpoint}: the interface was removed (deleted, or moved to another network namespace)"
        next_step = (
            "it is opened again when it is back"
            if watched.endpoint.scheme == "af_packet"
            else f"open another {self.role.capitalize()} when it is back"
        )
        watched.lost = PortError(f"{gone}; {next_step}")
        if self._rendezvous is None and self.ports() == [watched.port]:
            self._fail(watched.lost)  # first, so that a slice under way learns why
        self._detach([watched.port], 0)
        self._static.remove(watched.port)
        watched.port.close()
        watched.port = None
        with contextlib.suppress(Warning):  # a filter may make an error of it, and nobody would see that
            warnings.warn(str(watched.lost), RuntimeWarning, stacklevel=2)

    def _regain(self, watched: _Watched) -> None:
        """Open the port again once an interface of that name is back."""
        if watched.endpoint.scheme != "af_packet":
            return
        told = watched.lost
        try:
            self._plug_af_packet(watched, netdev.inspect(watched.endpoint))
        except PortError:
            return  # not there yet, or not up
        except AiflowError as exc:
            watched.lost = exc
            if self.error is told:
                self._fail(exc)
            return
        self._add(watched.port)
        watched.up_since, watched.came_up, watched.lost = time.monotonic(), True, None
        if self.error is told:
            self.error = None

    # ---------------------------------------------------------------------------------------------- static endpoints

    def _open(self, endpoint: Endpoint) -> None:
        opener = {
            "af_packet": self._open_af_packet,
            "af_xdp": self._open_af_xdp,
            "pci": self._open_pci,
            "vdev": self._open_vdev,
            "ring": self._open_ring,
        }[endpoint.scheme]
        xdp = endpoint.scheme in ("af_xdp", "vdev")  # a socket of it in a child would keep the queue
        with kept_sockets(netdev.AF_XDP) if xdp else contextlib.nullcontext():
            ports = opener(endpoint)
        for port in ports:
            self._add(port)

    def _add(self, port: Any) -> None:
        self._static.append(port)
        self._attach(port, 0)

    def _checked_frame(self, endpoint: Endpoint, largest: int, remedy: str) -> int:
        """The frame size to use on a port that can carry `largest` bytes."""
        if self._frame_size is not None and self._frame_size > largest:
            raise ConfigError(
                f"{endpoint}: frame_size={self._frame_size} is more than the {largest} bytes it can carry; "
                f"ask for at most that, or {remedy}"
            )
        return self._frame_size or largest

    def _open_af_packet(self, endpoint: Endpoint) -> list[Any]:
        watched = _Watched(endpoint, netdev.inspect(endpoint))
        self._claims.append(netdev.claim(endpoint, self.role))
        self._plug_af_packet(watched, watched.interface)
        self._watched.append(watched)
        return [watched.port]

    def _plug_af_packet(self, watched: _Watched, interface: Interface) -> None:
        endpoint = watched.endpoint
        frame_size = self._checked_frame(endpoint, interface.frame_size, f"ip link set {interface.name} mtu …")
        geometry = netdev.packet_ring(frame_size)
        pool = self._pool(min(geometry.frame_bytes, _eal.MOST_ROOM), interface.socket_id, 1, False)
        devargs = (
            f"iface={interface.name},qpairs=1,qdisc_bypass=0,blocksz={geometry.block_bytes},"
            f"framesz={geometry.frame_bytes},framecnt={geometry.nb_frames}"
        )
        device = f"net_af_packet_{_eal.next_serial()}"
        with _finding_sockets:
            others = netdev.packet_sockets(interface.index)
            port = _eal.Port.open(
                endpoint.text, device, devargs, pool, frame_size=frame_size, rx_ring=geometry.nb_frames
            )
            watched.port, watched.interface = port, interface
            watched.sockets = netdev.packet_sockets(interface.index) - others
        wanted = geometry.nb_frames * (frame_size + netdev.KERNEL_OVERHEAD)
        send_buffer = netdev.widen_send_buffer(watched.sockets, wanted)
        port.tx_window = netdev.unacknowledged_frames(frame_size, geometry.nb_frames, send_buffer)

    def _open_af_xdp(self, endpoint: Endpoint) -> list[Any]:
        interface = netdev.inspect(endpoint)
        self._claims.append(netdev.claim(endpoint, self.role))
        frame_size = self._checked_frame(endpoint, interface.frame_size, "use af_packet, which carries jumbo frames")
        pool = self._pool(2048 if frame_size <= 1536 else netdev.XDP_ROOM, interface.socket_id, 1, False)
        netdev.quiet_xdp()
        try:
            port = _eal.Port.open(
                endpoint.text,
                f"net_af_xdp_{_eal.next_serial()}",
                f"iface={interface.name},start_queue=0,queue_count=1",
                pool,
                frame_size=frame_size,
                nb_rxd=2048,
                nb_txd=2048,
                rx_ring=1024,
                tx_window=1024,
            )
        except PortError as exc:
            if "xsk socket" not in str(exc):
                raise
            # DPDK 22.11 counts the references to a umem wrongly and never lets go of one
            raise PortError(
                f"{endpoint}: queue 0 of {interface.name} is busy or refuses XDP. Another program may have it (ip link "
                f"show {interface.name} tells of XDP programs), or an earlier port of this process: DPDK 22.11 keeps "
                f"the queue until the process ends. Close that, or use af_packet:{interface.name}. ({exc})"
            ) from exc
        self._watched.append(_Watched(endpoint, interface, port))
        return [port]

    def _open_pci(self, endpoint: Endpoint) -> list[Any]:
        socket_id = netdev.inspect_pci(endpoint)
        frame_size = self._frame_size
        pool = self._pool(max(frame_size or 0, 2048), socket_id, 1, True)
        return [_eal.Port.open(endpoint.text, endpoint.target, "", pool, bus="pci", frame_size=frame_size)]

    def _open_vdev(self, endpoint: Endpoint) -> list[Any]:
        device, _, devargs = endpoint.target.partition(",")
        pool = self._pool(max(self._frame_size or 0, 2048), -1, 1, True)
        port = _eal.Port.open(endpoint.text, device, devargs, pool, frame_size=self._frame_size)
        return [port]

    def _open_ring(self, endpoint: Endpoint) -> list[Any]:
        frame_size = self._frame_size or _RING_FRAME
        pool = self._pool(frame_size, -1, endpoint.nb_ports, False)
        ports = ring_pairs.take(endpoint, self.role, pool)
        self._rings.append(endpoint)
        return ports


def _belongs(port: Any, endpoint: Endpoint) -> bool:
    name: str = port.name
    return name == endpoint.text or name.startswith(f"{endpoint.scheme}:{endpoint.target}#")


def _watching(ports: weakref.ref[PortSet], ends: Any) -> Callable[[], None]:
    """What the thread that watches does; it does not keep the ports from being dropped."""

    def watch() -> None:
        while not ends.wait(_LOOK_S):
            watched = ports()
            if watched is None:
                return
            watched._look()
            del watched

    return watch


def available() -> list[tuple[str, bool, str]]:
    """What could be used here, and why not the rest; starts and opens nothing.

    Returns
    -------
    list of (endpoint, usable, note)
    """
    rows: list[tuple[str, bool, str]] = []
    served = driver_of("local")
    try:
        runtime_directory()
        why_not = ""
    except PortError as exc:
        why_not = str(exc)
    rows.append(("local:NAME", not why_not, why_not or f"served by {served.name} ({served.receiver})"))
    for name, driver in DRIVERS.items():
        rows.append((f"{name}:NAME", not why_not, why_not or f"{driver.receiver} receives, {driver.sender} sends"))
    if not why_not:
        rows.extend((name.endpoint, True, f"a receiver waits there ({name.owner})") for name in live())
    rows.append(("ring:NAME", True, "both ends in one process"))
    for name in netdev.names():
        for scheme in ("af_packet", "af_xdp"):
            text = f"{scheme}:{name}"
            try:
                found = netdev.inspect(parse_endpoint(text))
                notes = (f"frames up to {found.frame_size} bytes", *found.notes)
                rows.append((text, True, "; ".join(notes)))
            except ConfigError:
                text = f"{scheme}:{netdev.ascii_name(name)}"
                rows.append((text, False, "no endpoint can have this name: ip link set NAME name NEWNAME"))
            except PortError as exc:
                rows.append((text, False, str(exc).removeprefix(f"{text}: ")))
    cards = netdev.network_cards()
    for address in cards:
        (endpoint,) = parse_endpoints(f"pci:{address}")
        try:
            netdev.inspect_pci(endpoint)
            rows.append((endpoint.text, True, "bound for DPDK"))
        except PortError as exc:
            rows.append((endpoint.text, False, str(exc).partition(": ")[2]))
    if not cards:
        rows.append(("pci:DBDF", False, "no network card on the PCI bus"))
    rows.append(("vdev:DPDK-DEVARGS", True, "any virtual device of DPDK"))
    return rows
