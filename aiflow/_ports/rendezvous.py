"""How the two sides of a shared-memory endpoint (``local:``, ``memif:``, ``vhost:``) find each other.

memif and vhost-user take one peer a socket and do not survive every order of starting and dying, so a control socket
comes first (SEQPACKET, one JSON message a packet, in a directory only its owner can enter)::

    sender      → {"version": 2, "nb_ports": 4, "frame_size": null, "driver": "memif"}
    receiver    → {"coming": 4}          it has understood, and makes the ports: that may take seconds each
    receiver    → {"driver": "memif", "peer": 3, "frame_size": 16384, "ring_size": 256, "sockets": [[name, id], …]}
                  its ports are open and started by then; or {"refused": "why", "version": 2, "again": false}
    sender      → {"ready": true}        its ports are open and their links up
    either      → {"bye": true}          if it closes, rather than dies
    either      closes: the other lets go of the ports, removes them, and closes too

The receiver owns NAME through a flock'ed file, so liveness never depends on files a killed process left behind. A
sender keeps trying until it is closed. A refusal holds for as long as the receiver that made it: it is asked for again;
``"again"`` says that it is want of room, which `send` waits for as it does for a receiver. Sockets are told by their
names in the endpoint's directory, which may have another path in the peer's container.

Each `PortSet` has one thread for all of this, asleep while nothing happens.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import socket
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiflow import _eal
from aiflow._ports.listener import Listener
from aiflow._ports.local_drivers import close_receiving, driver_of, open_receiving, open_sending
from aiflow._ports.memif_proxy import Door
from aiflow._ports.messages import VERSION, names_and_numbers, other_versions, peer_of, read, shown, whole, write
from aiflow._ports.registry import Claim, elsewhere, live
from aiflow._ports.runtime_dir import endpoint_directory, reason, runtime_directory
from aiflow._system import threads
from aiflow._system.descriptors import own_socket
from aiflow.config import MAX_PORTS, Endpoint
from aiflow.errors import AiflowError, ConfigError, PoolExhausted, PortError

__all__ = ["Rendezvous"]

_RETRY_FIRST, _RETRY_LAST = 0.02, 0.1  # seconds between attempts to reach a receiver
_FAILED_FIRST, _FAILED_LAST = 0.5, 5.0  # … where it costs the receiver ports, and us too, to find that we fail
_HANDSHAKE = 20.0  # seconds for each step, from the call to ready
_EACH_PORT = 4.0  # … and for each port that a step makes: its pool is touched, perhaps on a small part of a core
_FAREWELL = 0.1  # seconds a side that closes waits for the other to read what is left
_RENEWED = 2.0  # seconds between two looks whether a receiver's names and sockets are still there
_MOST_REFUSED = 8  # that are remembered
_COMING = ("asked", "coming", "joining")  # states of a sender's connection until its ports are up


class _NoRoom(PortError):
    """What a receiver has no room for now, and may have later."""


def _may_come_in(sock: socket.socket) -> bool:
    return peer_of(sock)[1] in (os.getuid(), 0)


def _step(nb_ports: int) -> float:
    """Seconds that a live peer may take for one step."""
    return _HANDSHAKE + nb_ports * _EACH_PORT


def _longer(pause: float) -> float:
    """The pause after one more attempt that cost something."""
    return max(_FAILED_FIRST, min(2 * pause, _FAILED_LAST))


def _links_up(ports: list[_eal.Port]) -> bool:
    return all(port.link()[0] for port in ports)


class _Pools(Protocol):
    def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any: ...


# -------------------------------------------------------------------------------------------------------- connections


@dataclass
class _Connection:
    """One sender at one receiver, seen from either side."""

    endpoint: Endpoint
    sock: socket.socket
    peer: int = 0
    state: str = "hello"  # receiver: → "offered" → "joining" → "up"; sender: "asked" → "coming" → "joining" → "up"
    deadline: float = field(default_factory=lambda: time.monotonic() + _HANDSHAKE)
    ports: list[_eal.Port] = field(default_factory=list)
    bye: bool = False  # heard
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
        Told what `send` or `recv` shall raise, and None when that is over.
    joining : callable, optional
        A sender's: told whether `connecting` is true, each time that this changes.
    died : callable, optional
        A sender's: told, before `detach`, that a receiver has hung up without a goodbye.

    Raises
    ------
    PortError
        If a receiver has one of the names already, or the directory of names cannot be used.
    EalError
        If there is no thread to be had.
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
        failed: Callable[[AiflowError | None], None],
        joining: Callable[[bool], None] | None = None,
        died: Callable[[], None] | None = None,
    ) -> None:
        self._role = role
        self._pool_for = pool_for
        self._attach = attach
        self._detach = detach
        self._frame_size = frame_size
        self._failed = failed
        self._joining = joining
        self._died = died
        self._root = runtime_directory()
        self._connections: list[_Connection] = []
        self._listeners: dict[Listener, Endpoint] = {}
        self._names: dict[Endpoint, Claim] = {}
        self._doors: dict[Endpoint, Door] = {}
        self._renewal = time.monotonic() + _RENEWED  # receiver: time of the next look at names and sockets
        self._awaited: dict[Endpoint, tuple[float, float]] = {}  # sender: endpoint → (time of next attempt, pause)
        self._errors: dict[Endpoint, AiflowError] = {}  # sender: for `send`, until they end
        self._refusals: dict[Endpoint, str] = {}  # sender: what the receiver that is there now said
        self._in_vain: dict[Endpoint, str] = {}  # sender: how a receiver had its time and did not come up
        self._refused: dict[tuple[Endpoint, int], str] = {}  # receiver: the last ones, by the sender's process
        self._told = False
        self._peers = itertools.count(1)
        self._closing = False
        self._says_bye = True
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
            self._thread = threads.start(self._run, "aiflow-rendezvous")
        except BaseException:
            self._forget_names()
            os.close(self._wake)
            raise
        _open.add(self)

    # ------------------------------------------------------------------------------------------- what is known by now

    @property
    def connecting(self) -> bool:
        """Whether a receiver is there, and at work on our ports: a sender does not count this time as silence."""
        return any(
            connection.state in _COMING and connection.endpoint not in self._in_vain
            for connection in list(self._connections)
        )

    @property
    def refused(self) -> list[str]:
        """What this receiver refused last, and to whom: a few sentences, the newest last."""
        return list(self._refused.values())

    def hints(self) -> list[str]:
        """What is known about who is there, for an error or a line while waiting: short sentences."""
        if self._role == "receiver":
            return self.refused
        states = {connection.endpoint: connection.state for connection in list(self._connections)}
        said = []
        for endpoint in list(self._awaited):
            if endpoint in self._refusals:
                said.append(f"refused: {self._refusals[endpoint]}")
            elif endpoint in self._in_vain:
                said.append(self._in_vain[endpoint])
            elif endpoint in states:
                said.append(f"{endpoint}: the receiver answered and its ports are coming up")
            else:
                said += self._where_looked(endpoint)
        return said

    def _where_looked(self, endpoint: Endpoint) -> list[str]:
        there = [name.endpoint for name in live(self._root)]
        some = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
        text = f"{endpoint}: looked for a receiver in {self._root} (AIFLOW_RUNTIME_DIR chooses another directory)"
        return [f"{text}, which has {some}" if there else text, *elsewhere(endpoint, self._root)]

    # ---------------------------------------------------------------------------------------------------- the thread

    def close(self) -> None:
        """Hang up, remove all ports, give the names back. Idempotent, and may be repeated after an interrupt.

        Does nothing in a forked child.
        """
        if self._wake < 0 or os.getpid() != self._pid:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if not threads.is_current(self._thread):
            self._thread.join()
            wake, self._wake = self._wake, -1
            os.close(wake)

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
            self._say_connecting()

    def _turn(self) -> None:
        """Wait for something, then do it: hang-ups first, so that their ports are free for who comes next."""
        now = time.monotonic()
        for endpoint, (due, pause) in list(self._awaited.items()):
            if now >= due:
                self._awaited[endpoint] = (now + pause, min(pause * 1.5, max(pause, _RETRY_LAST)))
                self._call(endpoint)
        self._say_connecting()
        poll = threads.unpatched("select").poll()
        poll.register(self._wake, select.POLLIN)
        sockets = [connection.sock for connection in self._connections]
        sockets += [sock for door in self._doors.values() for sock in door.sockets()]
        sockets += [listener.sock for listener in self._listeners]
        for sock in sockets:
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
                self._give_up(connection)
        for listener, endpoint in self._listeners.items():
            if listener.fileno() in ready:
                self._accept(listener, endpoint)
        if now > self._renewal:
            self._renew()

    def _say_connecting(self) -> None:
        told, self._told = self._told, self.connecting
        if told != self._told and self._joining is not None:
            self._joining(self._told)

    def _patience(self) -> float | None:
        """Milliseconds until something is due; None when only a peer can bring news."""
        if any(connection.state == "joining" for connection in self._connections):
            return 1
        due = [time_of_attempt for time_of_attempt, _ in self._awaited.values()]
        due += [connection.deadline for connection in self._connections if connection.state != "up"]
        due += [self._renewal] if self._names else []
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    def _hear(self, connection: _Connection) -> None:
        message = read(connection.sock)
        if message is None:
            if connection.state == "up" and not connection.bye and self._died is not None:
                self._died()
            self._part(connection)
            if self._role == "sender":
                self._is_news(connection.endpoint)
        elif "bye" in message:
            connection.bye = True
        elif message:
            try:
                if self._role == "receiver":
                    self._hear_sender(connection, message)
                else:
                    self._hear_receiver(connection, message)
            except AiflowError as exc:
                self._refuse(connection, exc)
            except OSError as exc:
                self._refuse(connection, PortError(f"{connection.endpoint}: the {self._role}: {reason(exc)}"))
            except (KeyError, TypeError, ValueError, IndexError) as exc:
                what = (
                    f"{connection.endpoint}: the peer's message is not understood ({shown(repr(exc))}): install the "
                    "same aiflow on both sides"
                )
                self._refuse(connection, PortError(what))

    def _refuse(self, connection: _Connection, exc: AiflowError) -> None:
        """Both sides learn why; a receiver goes on for its other senders, a sender has an error for `send`."""
        endpoint = connection.endpoint
        if self._role == "receiver":
            again = isinstance(exc, (_NoRoom, PoolExhausted))
            write(connection.sock, {"refused": str(exc), "version": VERSION, "again": again})
            pid, _ = peer_of(connection.sock)
            self._refused.pop((endpoint, pid), None)
            self._refused[endpoint, pid] = f"refused a sender (process {pid or 'of another container'}): {exc}"
            while len(self._refused) > _MOST_REFUSED:
                self._refused.pop(next(iter(self._refused)))
        _, pause = self._awaited.get(endpoint, (0.0, 0.0))
        self._part(connection)
        if self._role == "sender":
            self._ask_again(endpoint, _longer(pause))
            self._fail(endpoint, exc)

    def _fail(self, endpoint: Endpoint, exc: AiflowError | None) -> None:
        """What `send` or `recv` shall raise because of this endpoint; None: no more."""
        if exc is not None:
            self._errors[endpoint] = exc
        elif self._errors.pop(endpoint, None) is None:
            return
        self._failed(next(iter(self._errors.values()), None))

    def _give_up(self, connection: _Connection) -> None:
        """It has had its time. A sender tries again, and this time counts silence as silence."""
        if self._role == "sender":
            endpoint = connection.endpoint
            what = f"answered and its ports did not come up within {_step(endpoint.nb_ports):g} s"
            if connection.state == "asked":
                what = f"is there and said nothing for {_HANDSHAKE:g} s"
            self._in_vain[endpoint] = f"{endpoint}: the receiver {what}; check whether its process is stopped or busy"
        self._part(connection)

    def _up(self, connection: _Connection) -> None:
        connection.state = "up"
        self._calm(connection)
        if self._role == "sender":
            self._is_news(connection.endpoint)
        else:
            self._refused.pop((connection.endpoint, peer_of(connection.sock)[0]), None)
        for port in connection.ports:
            self._attach(port, connection.peer)

    def _join(self, connection: _Connection) -> None:
        """The last step on either side: attach the ports once all their links are up."""
        if not _links_up(connection.ports):
            return
        if self._role == "sender":
            write(connection.sock, {"ready": True})
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
                if self._says_bye:
                    write(connection.sock, {"bye": True})
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _FAREWELL
        waiting = {c.sock.fileno(): c.sock for c in self._connections if c.state == "farewell"}
        poll = threads.unpatched("select").poll()  # select() knows no descriptor above 1023
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if read(waiting[fd]) is None:
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
        name = self._names[endpoint] = Claim(endpoint, self._root)
        self._listeners[Listener(name.directory / "control")] = endpoint

    def _renew(self) -> None:
        """Make anew what a cleaner of temporary files has removed, and touch what it might remove."""
        self._renewal = time.monotonic() + _RENEWED
        for endpoint, name in list(self._names.items()):
            listeners = [listener for listener, whose in self._listeners.items() if whose == endpoint]
            if endpoint in self._doors:
                listeners.append(self._doors[endpoint].listener)
            try:
                name.renew()
            except PortError as exc:
                self._lose(endpoint, exc)
                continue
            for listener in listeners:
                with contextlib.suppress(PortError):  # no directory there now: the next look may find one
                    listener.renew()

    def _lose(self, endpoint: Endpoint, exc: PortError) -> None:
        """Another receiver has the name: senders that are here go, and find that one."""
        for listener in [listener for listener, whose in self._listeners.items() if whose == endpoint]:
            del self._listeners[listener]
            listener.close()
        for connection in [connection for connection in self._connections if connection.endpoint == endpoint]:
            self._part(connection)  # before the door, which hangs up on their ports
        if endpoint in self._doors:
            self._doors.pop(endpoint).close()
        self._names.pop(endpoint).close()
        self._fail(endpoint, exc)

    def _accept(self, listener: Listener, endpoint: Endpoint) -> None:
        try:
            sock = listener.accept()
        except OSError:
            return
        if not _may_come_in(sock):
            sock.close()
            return
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
        version = message["version"]
        if version != VERSION:
            raise other_versions(endpoint, VERSION, version)
        if message["driver"] != driver.name:
            raise PortError(
                f"{endpoint}: the receiver serves it over {driver.name}, the sender over {shown(message['driver'])}; "
                "use the same AIFLOW_LOCAL on both sides"
            )
        nb_ports = whole(message["nb_ports"], "nb_ports", 1, MAX_PORTS)
        left = MAX_PORTS - _eal.nb_ports()
        if nb_ports > left:
            raise _NoRoom(
                f"{endpoint}: the receiver has room for {max(left, 0)} of the {nb_ports} ports asked for "
                f"({MAX_PORTS} in all); use fewer ports, or fewer senders at once"
            )
        wanted = message.get("frame_size")
        if wanted is not None:
            wanted = whole(wanted, "frame_size", 64, driver.max_frame_size)
        frame_size = min((size for size in (self._frame_size, wanted) if size is not None), default=driver.frame_size)
        if not write(connection.sock, {"coming": nb_ports}):
            self._part(connection)  # it has given up meanwhile
            return
        connection.peer = next(self._peers)
        pool = self._pool_for(max(frame_size, driver.least_mbuf), -1, nb_ports, False)
        ring = driver.ring_for(frame_size, nb_ports)
        directory = self._names[endpoint].directory
        sockets = []
        which = f"@{connection.peer}" if connection.peer > 1 else ""
        for number in range(nb_ports):
            label = f"{endpoint.scheme}:{endpoint.target}#{number}{which}"
            port, path, identity = open_receiving(driver, label, directory, frame_size, ring, pool)
            connection.ports.append(port)
            told = self._door(endpoint, path) if driver.name == "memif" else path
            sockets.append([os.path.basename(told), identity])
        connection.hurry = _eal.connecting()
        connection.hurry.__enter__()
        connection.state = "offered"
        connection.deadline = time.monotonic() + _step(nb_ports)
        offer = {"driver": driver.name, "peer": connection.peer, "frame_size": frame_size, "ring_size": ring}
        write(connection.sock, {**offer, "sockets": sockets})

    def _door(self, endpoint: Endpoint, server: str) -> str:
        """The path that clients of memif's server are told."""
        if endpoint not in self._doors:
            self._doors[endpoint] = Door(self._names[endpoint].directory / "memif", _may_come_in)
        self._doors[endpoint].server = server
        return self._doors[endpoint].path

    # ------------------------------------------------------------------------------------------------ sender's side

    def _call(self, endpoint: Endpoint) -> None:
        """One attempt to reach the receiver of this name."""
        if any(connection.endpoint == endpoint for connection in self._connections):
            return
        try:
            sock = own_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        except OSError as exc:
            self._fail(endpoint, PortError(f"{endpoint}: {reason(exc)}"))
            return
        try:
            sock.connect(str(endpoint_directory(endpoint, self._root) / "control"))
        except BlockingIOError:  # it has many calls to take first
            sock.close()
            return
        except OSError:
            sock.close()
            self._is_news(endpoint)
            return
        if not _may_come_in(sock):
            sock.close()
            return
        write(
            sock,
            {
                "version": VERSION,
                "driver": driver_of(endpoint.scheme).name,
                "nb_ports": endpoint.nb_ports,
                "frame_size": self._frame_size,
            },
        )
        self._connections.append(_Connection(endpoint, sock, state="asked"))

    def _ask_again(self, endpoint: Endpoint, pause: float) -> None:
        self._awaited[endpoint] = (time.monotonic() + pause, pause)

    def _is_news(self, endpoint: Endpoint) -> None:
        """The receiver that refused us, or never came up, is gone or has changed its mind."""
        self._refusals.pop(endpoint, None)
        self._in_vain.pop(endpoint, None)
        self._fail(endpoint, None)

    def _hear_receiver(self, connection: _Connection, message: dict[str, Any]) -> None:
        endpoint = connection.endpoint
        if "refused" in message:
            self._hear_refusal(connection, message)
            return
        if connection.state not in ("asked", "coming"):
            return
        connection.deadline = time.monotonic() + _step(endpoint.nb_ports)
        if "coming" in message:
            connection.state = "coming"
            return
        if endpoint in self._refusals:
            self._is_news(endpoint)
        driver = driver_of(endpoint.scheme)
        frame_size = whole(message["frame_size"], "frame_size", 64, driver.max_frame_size)
        ring = whole(message["ring_size"], "ring_size", 1, 1 << 15)
        places = names_and_numbers(message["sockets"])
        if message["driver"] != driver.name or len(places) != endpoint.nb_ports:
            raise ValueError(f"{shown(message['driver'])} over {len(places)} ports")
        directory = endpoint_directory(endpoint, self._root)
        connection.peer = next(self._peers)
        room = max(frame_size, driver.least_mbuf)
        pool = self._pool_for(room, -1, len(places), driver.sender_needs_eal_memory)
        connection.hurry = _eal.connecting()
        connection.hurry.__enter__()
        for number, (name, identity) in enumerate(places):
            label = f"{endpoint.scheme}:{endpoint.target}#{number}"
            try:
                port = open_sending(driver, label, str(directory / name), identity, frame_size, ring, pool)
            except PortError:
                if read(connection.sock) is None:  # the receiver died in between: try the next one
                    self._part(connection)
                    return
                raise
            connection.ports.append(port)
        connection.state = "joining"
        connection.deadline = time.monotonic() + _step(endpoint.nb_ports)

    def _hear_refusal(self, connection: _Connection, message: dict[str, Any]) -> None:
        """Ask for it again: it ends when there is room, or another receiver in this one's place."""
        endpoint = connection.endpoint
        error = PortError(shown(message["refused"]))
        version = message.get("version", 1)  # which version 1 did not say
        if version != VERSION:
            error = other_versions(endpoint, version, VERSION)
        _, pause = self._awaited.get(endpoint, (0.0, 0.0))
        cheap = connection.state == "asked"
        self._part(connection)
        self._ask_again(endpoint, _RETRY_LAST if cheap else _longer(pause))
        self._refusals[endpoint] = str(error)
        self._in_vain.pop(endpoint, None)
        self._fail(endpoint, None if message.get("again") is True and version == VERSION else error)


_open: weakref.WeakSet[Rendezvous] = weakref.WeakSet()


@atexit.register
def _hang_up() -> None:
    """A process that ends without `close` and waits for its children meanwhile lets its peers go first."""
    for rendezvous in list(_open):
        rendezvous._says_bye = False
        rendezvous.close()
