"""How the two sides of a shared-memory endpoint (``local:``, ``memif:``, ``vhost:``) find each other.

memif and vhost-user take one peer a socket and do not survive every order of starting and dying, so a control socket
comes first (SEQPACKET, one JSON message a packet, in a directory only its owner can enter)::

    sender      → {"version": 1, "nb_ports": 4, "frame_size": null, "driver": "memif", …}
    receiver    → {"driver": "memif", "peer": 3, "frame_size": 16384, "ring_size": 256, "paths": [[path, id], …]}
                  its ports are open and started by then; or {"refused": "why"}
    sender      → {"ready": true}        its ports are open and their links up
    either      closes: the other lets go of the ports, removes them, and closes too

The receiver owns NAME through a flock'ed file, so liveness never depends on files a killed process left behind.
A sender keeps trying until it is closed. Each `PortSet` has one thread for all of this, asleep while nothing happens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import _eal
from .config import MAX_PORTS, Endpoint
from .errors import AiflowError, ConfigError, PortError
from .memif_door import Door
from .names import Claim, place
from .shared_memory import DRIVERS, close_receiving, driver_of, open_receiving, open_sending

__all__ = ["Rendezvous"]

_VERSION = 1
_RETRY_FIRST, _RETRY_LAST = 0.02, 0.1  # seconds between attempts to reach a receiver
_HANDSHAKE = 20.0  # seconds from offer to ready
_FAREWELL = 0.1  # seconds a side that closes waits for the other to read what is left
_MAX_MESSAGE = 16384


class _Pools(Protocol):
    def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any: ...


# ----------------------------------------------------------------------------------------------------------- messages


def _peer_allowed(sock: socket.socket) -> bool:
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (os.getuid(), 0)


def _write(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send; a peer that is gone is noticed by the next read."""
    with contextlib.suppress(OSError):
        sock.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)


def _read(sock: socket.socket) -> dict[str, Any] | None:
    """The next message; {} if there is none yet; None at hang-up, or if it is not one of ours."""
    try:
        packet = sock.recv(_MAX_MESSAGE)
        message = json.loads(packet) if packet else None
    except BlockingIOError:
        return {}
    except (OSError, ValueError):
        return None
    return message if message and isinstance(message, dict) else None


def _links_up(ports: list[_eal.Port]) -> bool:
    return all(port.link()[0] for port in ports)


# -------------------------------------------------------------------------------------------------------- connections


@dataclass
class _Connection:
    """One sender at one receiver, seen from either side."""

    endpoint: Endpoint
    sock: socket.socket
    peer: int = 0
    state: str = "hello"  # → "offered" → "joining" → "up"
    deadline: float = field(default_factory=lambda: time.monotonic() + _HANDSHAKE)
    ports: list[_eal.Port] = field(default_factory=list)
    hurry: Any = None  # the interrupt thread runs often while this is set


class Rendezvous:
    """The shared-memory endpoints of one `PortSet`, and the thread that serves them.

    Parameters
    ----------
    endpoints : list of Endpoint
        Of schemes local, memif and vhost.
    role : {"sender", "receiver"}
    pool_for, attach, detach
        As for `PortSet`; called from the thread.
    frame_size : int or None
        Largest frame the user wants.
    failed : callable
        Told each error that trying again cannot mend.

    Raises
    ------
    PortError
        If a receiver has one of the names already.
    """

    def __init__(
        self,
        endpoints: list[Endpoint],
        role: str,
        *,
        pool_for: _Pools,
        attach: Callable[[Any, int], None],
        detach: Callable[[list[Any], int], None],
        frame_size: int | None,
        failed: Callable[[AiflowError], None],
    ) -> None:
        self._role = role
        self._pool_for = pool_for
        self._attach = attach
        self._detach = detach
        self._frame_size = frame_size
        self._failed = failed
        self._connections: list[_Connection] = []
        self._listeners: dict[socket.socket, Endpoint] = {}
        self._names: dict[Endpoint, Claim] = {}
        self._doors: dict[Endpoint, Door] = {}
        self._awaited: dict[Endpoint, tuple[float, float]] = {}  # sender: endpoint → (time of next attempt, pause)
        self._peers = itertools.count(1)
        self._closing = False
        self._pid = os.getpid()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            for endpoint in endpoints:
                driver = driver_of(endpoint.scheme)
                if frame_size is not None and frame_size > driver.max_frame_size:
                    raise ConfigError(
                        f"{endpoint}: frame_size={frame_size} is more than the {driver.max_frame_size} bytes that "
                        f"{driver.name} can carry; ask for at most that"
                    )
                if role == "receiver":
                    self._listen(endpoint)
                else:
                    self._awaited[endpoint] = (0.0, _RETRY_FIRST)
        except BaseException:
            self._forget_names()
            os.close(self._wake)
            raise
        self._thread = threading.Thread(target=self._run, name="aiflow-rendezvous", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up, remove all ports, give the names back. Idempotent; does nothing in a forked child."""
        if self._closing or os.getpid() != self._pid:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            os.close(self._wake)

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except AiflowError as exc:
            self._failed(exc)
        except Exception as exc:
            self._failed(PortError(f"the rendezvous thread stopped: {type(exc).__name__}: {exc}"))
        finally:
            self._part_all()
            self._forget_names()

    def _turn(self) -> None:
        """Wait for something, then do it: hang-ups first, so that their ports are free for who comes next."""
        now = time.monotonic()
        for endpoint, (due, pause) in list(self._awaited.items()):
            if now >= due:
                self._awaited[endpoint] = (now + pause, min(pause * 1.5, _RETRY_LAST))
                self._call(endpoint)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        doors = [sock for door in self._doors.values() for sock in door.sockets()]
        for sock in [*self._listeners, *doors, *(connection.sock for connection in self._connections)]:
            poll.register(sock, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(self._patience())}
        for door in self._doors.values():
            door.turn(ready)
        for connection in list(self._connections):
            if connection.sock.fileno() in ready:
                self._hear(connection)
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.state == "joining":
                self._join(connection)
            if connection.state != "up" and now > connection.deadline:
                self._part(connection)
        for listener, endpoint in self._listeners.items():
            if listener.fileno() in ready:
                self._accept(listener, endpoint)

    def _patience(self) -> float | None:
        """Milliseconds until something is due; None when only a peer can bring news."""
        if any(connection.state == "joining" for connection in self._connections):
            return 1
        due = [time_of_attempt for time_of_attempt, _ in self._awaited.values()]
        due += [connection.deadline for connection in self._connections if connection.state != "up"]
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    def _hear(self, connection: _Connection) -> None:
        message = _read(connection.sock)
        if message is None:
            self._part(connection)
        elif message:
            try:
                if self._role == "receiver":
                    self._hear_sender(connection, message)
                else:
                    self._hear_receiver(connection, message)
            except AiflowError as exc:
                self._refuse(connection, exc)
            except (KeyError, TypeError, ValueError, IndexError) as exc:
                what = (
                    f"{connection.endpoint}: the peer's message is not understood ({exc!r}); use the same aiflow there"
                )
                self._refuse(connection, PortError(what))

    def _refuse(self, connection: _Connection, exc: AiflowError) -> None:
        """Both sides learn why; a receiver goes on for its other senders, a sender keeps the error for `send`."""
        if self._role == "receiver":
            _write(connection.sock, {"refused": str(exc)})
        self._part(connection)
        if self._role == "sender":
            self._awaited.pop(connection.endpoint, None)
            self._failed(exc)

    def _up(self, connection: _Connection) -> None:
        connection.state = "up"
        self._calm(connection)
        for port in connection.ports:
            self._attach(port, connection.peer)

    def _join(self, connection: _Connection) -> None:
        """The last step on either side: attach the ports once all their links are up."""
        if not _links_up(connection.ports):
            return
        if self._role == "sender":
            _write(connection.sock, {"ready": True})
            self._awaited.pop(connection.endpoint, None)
        self._up(connection)

    def _calm(self, connection: _Connection) -> None:
        if connection.hurry is not None:
            connection.hurry.__exit__(None, None, None)
            connection.hurry = None

    def _part(self, connection: _Connection) -> None:
        """Let go of a connection's ports, remove them, close its socket (in this order: the peer waits for it)."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._calm(connection)
        if connection.state == "up":
            self._detach(list(connection.ports), connection.peer)
        for port in connection.ports:
            if self._role == "receiver":
                close_receiving(port)
            else:
                port.close()
        connection.ports.clear()
        connection.sock.close()
        if self._role == "sender" and not self._closing:
            self._awaited[connection.endpoint] = (time.monotonic() + _RETRY_FIRST, _RETRY_FIRST)

    def _part_all(self) -> None:
        """Our own closing: tell the peers, let them read what is left, then take the ports away."""
        for connection in self._connections:
            if connection.state == "up":
                self._detach(list(connection.ports), connection.peer)
                connection.state = "farewell"
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _FAREWELL
        waiting = {c.sock.fileno(): c.sock for c in self._connections if c.state == "farewell"}
        poll = select.poll()  # select() knows no descriptor above 1023
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if _read(waiting[fd]) is None:
                    poll.unregister(fd)
                    del waiting[fd]
        for connection in list(self._connections):
            self._part(connection)

    def _forget_names(self) -> None:
        for door in self._doors.values():
            door.close()
        for listener in self._listeners:
            listener.close()
        for name in self._names.values():
            name.close()
        self._doors.clear()
        self._listeners.clear()
        self._names.clear()

    # ---------------------------------------------------------------------------------------------- receiver's side

    def _listen(self, endpoint: Endpoint) -> None:
        name = self._names[endpoint] = Claim(endpoint)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listeners[listener] = endpoint
        listener.bind(str(name.directory / "control"))
        listener.listen(64)

    def _accept(self, listener: socket.socket, endpoint: Endpoint) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if not _peer_allowed(sock):
            sock.close()
            return
        sock.setblocking(False)
        self._connections.append(_Connection(endpoint, sock))

    def _hear_sender(self, connection: _Connection, message: dict[str, Any]) -> None:
        if connection.state == "hello":
            self._offer(connection, message)
        elif connection.state == "offered" and message.get("ready"):
            connection.state = "joining"
            self._join(connection)

    def _offer(self, connection: _Connection, message: dict[str, Any]) -> None:
        endpoint = connection.endpoint
        driver = driver_of(endpoint.scheme)
        if message["version"] != _VERSION or message["driver"] != driver.name:
            raise PortError(
                f"{endpoint}: the receiver has version {_VERSION} over {driver.name}, the sender version "
                f"{message['version']} over {message['driver']}; use the same aiflow and AIFLOW_LOCAL on both sides"
            )
        nb_ports = int(message["nb_ports"])
        left = MAX_PORTS - _eal.nb_ports()
        if not 1 <= nb_ports <= left:
            raise PortError(
                f"{endpoint}: the receiver has room for {max(left, 0)} of the {nb_ports} ports asked for "
                f"({MAX_PORTS} in all); use fewer ports, or fewer senders at once"
            )
        sizes = [size for size in (self._frame_size, message.get("frame_size")) if size is not None]
        frame_size = int(min(sizes)) if sizes else driver.frame_size
        if not 64 <= frame_size <= driver.max_frame_size:
            raise PortError(f"{endpoint}: a frame size of {frame_size} is not possible over {driver.name}")
        connection.peer = next(self._peers)
        pool = self._pool_for(max(frame_size, driver.least_mbuf), -1, nb_ports, False)
        ring = driver.ring_for(frame_size, nb_ports)
        directory = self._names[endpoint].directory
        places = []
        which = f"@{connection.peer}" if connection.peer > 1 else ""
        for number in range(nb_ports):
            label = f"{endpoint.scheme}:{endpoint.target}#{number}{which}"
            port, path, identity = open_receiving(driver, label, directory, frame_size, ring, pool)
            connection.ports.append(port)
            places.append([self._door(endpoint, path) if driver.name == "memif" else path, identity])
        connection.hurry = _eal.connecting()
        connection.hurry.__enter__()
        connection.state = "offered"
        connection.deadline = time.monotonic() + _HANDSHAKE
        offer = {"driver": driver.name, "peer": connection.peer, "frame_size": frame_size, "ring_size": ring}
        _write(connection.sock, {**offer, "paths": places})

    def _door(self, endpoint: Endpoint, server: str) -> str:
        """The path that clients of memif's server are told."""
        if endpoint not in self._doors:
            self._doors[endpoint] = Door(self._names[endpoint].directory / "memif", _peer_allowed)
        self._doors[endpoint].server = server
        return self._doors[endpoint].path

    # ------------------------------------------------------------------------------------------------ sender's side

    def _call(self, endpoint: Endpoint) -> None:
        """One attempt to reach the receiver of this name."""
        if any(connection.endpoint == endpoint for connection in self._connections):
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(place(endpoint) / "control"))
        except OSError:
            sock.close()
            return
        if not _peer_allowed(sock):
            sock.close()
            return
        _write(
            sock,
            {
                "version": _VERSION,
                "driver": driver_of(endpoint.scheme).name,
                "nb_ports": endpoint.nb_ports,
                "frame_size": self._frame_size,
            },
        )
        self._connections.append(_Connection(endpoint, sock, state="asked"))

    def _hear_receiver(self, connection: _Connection, message: dict[str, Any]) -> None:
        endpoint = connection.endpoint
        if "refused" in message:
            raise PortError(str(message["refused"]))
        if connection.state != "asked":
            return
        driver = DRIVERS[message["driver"]]
        frame_size = int(message["frame_size"])
        connection.peer = next(self._peers)
        room = max(frame_size, driver.least_mbuf)
        pool = self._pool_for(room, -1, len(message["paths"]), driver.sender_needs_eal_memory)
        connection.hurry = _eal.connecting()
        connection.hurry.__enter__()
        for number, (path, identity) in enumerate(message["paths"]):
            label = f"{endpoint.scheme}:{endpoint.target}#{number}"
            ring = int(message["ring_size"])
            try:
                port = open_sending(driver, label, str(path), int(identity), frame_size, ring, pool)
            except PortError:
                if _read(connection.sock) is None:  # the receiver died in between: try the next one
                    self._part(connection)
                    return
                raise
            connection.ports.append(port)
        connection.state = "joining"
