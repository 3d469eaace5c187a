"""The rendezvous: how the two sides of a shared-memory endpoint (``local:``, ``memif:``, ``vhost:``) meet.

memif and vhost-user accept one peer per socket, and fail for some orders of starting and dying. So the peers first
agree over a control socket (SEQPACKET, one JSON message per packet, in a directory that only its user can enter)::

    sender      → {"version": 3, "nb_ports": 4, "frame_size": null, "driver": "memif",
                   "capabilities": ["doorbell", "places"]}
    receiver    → {"coming": 4}          accepted; it now opens the ports, which may take seconds for each
    receiver    → {"driver": "memif", "peer": 3, "frame_size": 16384, "ring_size": 256, "sockets": [[name, id], …],
                   "descriptors": ["page", "bell", "process"], "process_name": "…"}
                  with descriptors beside the message: see `doorbells`, `memories`;
                  its ports are open and started; or {"refused": "why", "version": 3, "again": false}
    sender      → {"ready": true, "descriptors": ["process"], "process_name": "…"}
                  its ports are open and their links are up
    either      → {"memory": …}, {"pool": …}     at any time: see `memories`
    either      → {"bye": true}          before it closes, unless it dies
    either      closes: the other one detaches and removes its ports, and closes too

The receiver owns the name through a locked file (see `registry`), so that liveness does not depend on files that a
killed process left behind. A sender retries until it is closed. A refusal holds while the receiver that made it is
alive, and the sender keeps asking. ``"again"`` marks a lack of room: `send` then waits as it does for a receiver.
Unknown capabilities, descriptors and fields are ignored.
Messages give sockets by name only, because the endpoint's directory may have another path in the peer's container.

Each `PortSet` has one thread for all of this, which sleeps until an event or a deadline.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from aiflow import _eal
from aiflow._eal_loans import Pool
from aiflow._eal_sharing import Sharing
from aiflow._ports.connection import Connection, Hooks
from aiflow._ports.local_drivers import driver_of
from aiflow._ports.memories import Memory, Writers, borrow, has_died, memory_message, pool_message, take
from aiflow._ports.messages import read, shown, write
from aiflow._ports.runtime_dir import reason
from aiflow._system import threads
from aiflow._system.descriptors import Descriptor
from aiflow._system.log import logger
from aiflow.config import Endpoint
from aiflow.errors import AiflowError, ConfigError, PortError

__all__ = ["Rendezvous"]

_log = logger("ports")

_FAREWELL = 0.1  # seconds that a closing side waits for the peer to read what remains


@dataclass(eq=False)
class _Parted:
    """A connection that has ended, while the process of the peer lives."""

    sharing: Sharing
    process: Descriptor
    writes: bool = True


class Rendezvous:
    """The shared-memory endpoints of one `PortSet`, and the thread that serves them; a subclass for each role.

    Parameters
    ----------
    endpoints : list of Endpoint
        Of schemes local, memif and vhost.
    root : Path
        The runtime directory, where names and sockets lie.
    hooks : Hooks
    frame_size : int or None
        Largest frame that the user wants.

    Raises
    ------
    ConfigError
        If an endpoint's driver cannot carry `frame_size`.
    PortError
        If another receiver has one of the names.
    EalError
        If no thread can be started.
    """

    role: ClassVar[str]

    def __init__(self, endpoints: list[Endpoint], root: Path, hooks: Hooks, frame_size: int | None) -> None:
        self._hooks = hooks
        self._frame_size = frame_size
        self._root = root
        self._connections: list[Connection] = []
        self._errors: dict[Endpoint, AiflowError] = {}  # for `send` or `recv`, until they end
        self._peers = itertools.count(1)
        self._closing = False
        self._says_bye = True
        self._pid = os.getpid()
        self._writers = Writers()
        self._parted: list[_Parted] = []  # connections that ended: their processes may still write, or read
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            for endpoint in endpoints:
                driver = driver_of(endpoint.scheme)
                if frame_size is not None and frame_size > driver.max_frame_size:
                    raise ConfigError(
                        f"{endpoint}: frame_size={frame_size} is more than the {driver.max_frame_size} bytes that "
                        f"{driver.name} can carry; use that size or less"
                    )
                self._begin(endpoint)
            self._thread = threads.start(self._run, "aiflow-rendezvous")
        except BaseException:
            self._release()
            os.close(self._wake)
            raise
        _open.add(self)

    # ------------------------------------------------------------------------------------------ overridden by each role

    def hints(self) -> list[str]:
        """Facts about the peers, for an error or a progress line: short sentences."""
        raise NotImplementedError

    def _begin(self, endpoint: Endpoint) -> None:
        """Start to serve an endpoint; called from the constructor."""
        raise NotImplementedError

    def _answer(self, connection: Connection, message: dict[str, Any], passed: list[Descriptor]) -> None:
        """Handle a peer's message. What is left of the `passed` descriptors is closed. Exceptions go to `_refuse`."""
        raise NotImplementedError

    def _refuse(self, connection: Connection, exc: AiflowError) -> None:
        """Handle a failed handshake."""
        raise NotImplementedError

    def _close_port(self, port: _eal.Port) -> None:
        raise NotImplementedError

    def _joined(self, connection: Connection) -> None:
        """All links are up; the ports are attached next."""
        raise NotImplementedError

    def _before_wait(self) -> None:
        """Do what is due before the thread sleeps."""

    def _sockets(self) -> list[socket.socket]:
        """Sockets to poll in addition to the connections' own."""
        return []

    def _due_times(self) -> list[float]:
        """Times at which the thread must wake up, in addition to the connections' deadlines."""
        return []

    def _relay(self, ready: set[int]) -> None:
        """Serve other sockets before the connections."""

    def _after_wait(self, ready: set[int]) -> None:
        """Serve other sockets after the connections."""

    def _hung_up(self, connection: Connection) -> None:
        if connection.state == "up" and not connection.said_bye and self._hooks.died is not None:
            self._hooks.died()  # either side of shared ports may have the receiver that died
        self._drop(connection)

    def _timed_out(self, connection: Connection) -> None:
        self._drop(connection)

    def _dropped(self, endpoint: Endpoint) -> None:
        """A connection has ended."""

    def _release(self) -> None:
        """Give back what is left when the thread ends."""

    # ---------------------------------------------------------------------------------------------------- the thread

    def close(self) -> None:
        """Hang up, remove all ports, release the names. Idempotent; call it again if it was interrupted.

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
                self._iterate()
        except AiflowError as exc:
            self._hooks.failed(exc)
        except Exception as exc:
            self._hooks.failed(PortError(f"the rendezvous thread stopped: {type(exc).__name__}: {exc}"))
        finally:
            self._drop_all()
            self._release()

    def _iterate(self) -> None:
        """Wait for an event and handle it. Hang-ups come first, so that their ports are free for the next peer."""
        self._before_wait()
        poll = threads.unpatched("select").poll()  # select() cannot take descriptors above 1023
        poll.register(self._wake, select.POLLIN)
        processes = [connection.process for connection in self._connections if connection.process is not None]
        processes += [parted.process for parted in self._parted]
        for sock in (*(connection.sock for connection in self._connections), *self._sockets(), *processes):
            poll.register(sock, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(self._poll_timeout())}
        self._relay(ready)
        for connection in list(self._connections):
            if connection.sock.fileno() in ready:
                self._hear(connection)
            elif connection.process is not None and connection.process.fd in ready:
                self._hung_up(connection)  # its child may have kept the socket
        for parted in list(self._parted):
            if parted.process.fd in ready:
                self._end_parted(parted)
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.state == "joining":
                self._join(connection)
            if connection.state != "up" and now > connection.deadline:
                self._timed_out(connection)
        self._after_wait(ready)

    def _poll_timeout(self) -> float | None:
        """Milliseconds until something is due; None if only a peer can cause the next event."""
        if any(connection.state == "joining" for connection in self._connections):
            return 1
        due = [connection.deadline for connection in self._connections if connection.state != "up"]
        due += self._due_times()
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    # -------------------------------------------------------------------------------------------------- connections

    def _hear(self, connection: Connection) -> None:
        passed: list[Descriptor] = []
        message = read(connection.sock, passed)
        try:
            if message is None:
                self._hung_up(connection)
            elif "bye" in message:
                connection.said_bye = True
                connection.writes = False  # its ports are detached already
            elif "unmapped" in message:
                connection.writes = False
            elif "memory" in message or "pool" in message:
                self._take_memory(connection, message, passed)
            elif "mapped" in message:
                if connection.sharing is not None and type(message["mapped"]) is int:
                    connection.sharing.note_mapped(message["mapped"] & (1 << 64) - 1)
            elif message:
                self._understand(connection, message, passed)
        finally:
            for descriptor in passed:
                descriptor.close()

    def _take_memory(self, connection: Connection, message: dict[str, Any], passed: list[Descriptor]) -> None:
        """Map the memory of a Receiver over there, or the pool of a Sender."""
        connection.sharing = connection.sharing or Sharing()
        try:
            if "memory" in message:
                take(connection.sharing, message, passed)
            elif (number := borrow(connection.sharing, message, passed)) is not None:
                write(connection.sock, {"mapped": number})
        except (KeyError, TypeError, ValueError, OSError) as exc:
            _log.warning("%s: the peer's memory is not used: %s", connection.endpoint, shown(exc))

    def _tell_memories(self, connection: Connection, memories: list[Memory]) -> None:
        """Pass memory of our Receivers to the peer, which needs it before its first slice for them."""
        for memory in memories:
            with contextlib.suppress(OSError):  # no descriptor is left: its chunks are carried
                message, passed = memory_message(memory)
                write(connection.sock, message, passed)
                for descriptor in passed:
                    descriptor.close()

    def _memories(self) -> list[Memory]:
        return self._hooks.memories() if self._hooks.memories is not None else []

    def data_way(self, endpoint: Endpoint) -> str:
        """How payloads of an endpoint's peers travel: "placed" or "carried"; "" without a peer."""
        ups = [each for each in list(self._connections) if each.endpoint == endpoint and each.state == "up"]
        if any(each.sharing is not None and (each.sharing.epochs or self._memories()) for each in ups):
            return "placed"
        return "carried" if ups else ""

    def share(self, memory: Memory) -> None:
        """A Receiver has joined our ports: pass its memory to all peers. From any thread."""
        for connection in list(self._connections):
            if connection.sharing is not None:
                self._tell_memories(connection, [memory])

    def lend(self, pool: Pool) -> None:
        """A Sender on our ports has loans: pass their pool to all peers. From any thread."""
        for connection in list(self._connections):
            if connection.sharing is not None:
                self._tell_pool(connection, pool)

    def _tell_pool(self, connection: Connection, pool: Pool) -> None:
        assert connection.sharing is not None
        try:
            told = pool_message(connection.sharing, pool)
        except OSError as exc:
            _log.warning("%s: loans are copied for this peer: %s", connection.endpoint, reason(exc))
            return
        if told is not None:
            write(connection.sock, *told)
            for descriptor in told[1]:
                descriptor.close()

    def _end_parted(self, parted: _Parted) -> None:
        """The process behind a former connection has ended."""
        self._parted.remove(parted)
        parted.sharing.forget(False)
        parted.process.close()
        self._end_writer(parted)

    def _end_writer(self, parted: _Parted) -> None:
        """It writes to our memory over this connection no more."""
        number, writes, parted.writes = parted.sharing.writer, parted.writes, False
        if writes and self._writers.leave(number) and self._hooks.writer_gone is not None:
            self._hooks.writer_gone(number)

    def _part_with(self, connection: Connection) -> None:
        """What its process may still write to stays fenced until that ends, or says that it is done.

        What it reads on loan stays so until it gives that back, or ends.
        """
        if connection.sharing is None or connection.process is None:
            return
        parted = _Parted(connection.sharing, connection.process)
        connection.process = None
        self._parted.append(parted)
        if has_died(parted.process):
            self._end_parted(parted)
        elif not connection.writes:
            self._end_writer(parted)
        for each in list(self._parted):
            if not each.writes and not each.sharing.lent:
                self._parted.remove(each)
                each.process.close()

    def _understand(self, connection: Connection, message: dict[str, Any], passed: list[Descriptor]) -> None:
        """Answer a message, or refuse the connection."""
        try:
            self._answer(connection, message, passed)
        except AiflowError as exc:
            self._refuse(connection, exc)
        except OSError as exc:
            self._refuse(connection, PortError(f"{connection.endpoint}: the {self.role}: {reason(exc)}"))
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            what = (
                f"{connection.endpoint}: the peer's message is invalid ({shown(repr(exc))}): install the same "
                "aiflow on both sides"
            )
            self._refuse(connection, PortError(what))

    def _join(self, connection: Connection) -> None:
        """The last step on either side: attach the ports once all their links are up."""
        if not connection.links_up():
            return
        connection.state = "up"
        connection.relax()
        self._joined(connection)
        for port in connection.ports:
            self._hooks.attach(port, connection.peer)
        for pool in self._hooks.pools() if self._hooks.pools is not None and connection.sharing is not None else []:
            self._tell_pool(connection, pool)

    def _fail(self, endpoint: Endpoint, exc: AiflowError | None) -> None:
        """Set or clear the error that `send` or `recv` shall raise because of this endpoint."""
        if exc is not None:
            self._errors[endpoint] = exc
        elif self._errors.pop(endpoint, None) is None:
            return
        self._hooks.failed(next(iter(self._errors.values()), None))

    def _drop(self, connection: Connection) -> None:
        """Detach a connection's ports, remove them, then close its socket: the peer waits for the close."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        connection.relax()
        if connection.state == "up":
            self._hooks.detach(list(connection.ports), connection.peer)
        else:
            connection.writes = False  # its ports were never attached
        if connection.sharing is not None:
            write(connection.sock, {"unmapped": True})
        for port in connection.ports:
            self._close_port(port)
        connection.ports.clear()
        self._part_with(connection)
        connection.close()
        self._dropped(connection.endpoint)

    def _drop_all(self) -> None:
        """Close: say goodbye to the peers, let them read what remains, then remove the ports."""
        for connection in self._connections:
            if connection.state == "up":
                self._hooks.detach(list(connection.ports), connection.peer)
                connection.state = "farewell"
                if self._says_bye:
                    write(connection.sock, {"bye": True})
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _FAREWELL
        waiting = {c.sock.fileno(): c.sock for c in self._connections if c.state == "farewell"}
        poll = threads.unpatched("select").poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(remaining * 1000):
                if read(waiting[fd]) is None:
                    poll.unregister(fd)
                    del waiting[fd]
        for connection in list(self._connections):
            self._drop(connection)
        for parted in self._parted:
            parted.sharing.forget(True)
            parted.process.close()
        self._parted.clear()


_open: weakref.WeakSet[Rendezvous] = weakref.WeakSet()


@atexit.register
def _hang_up() -> None:
    """Release the peers of a process that ends without `close` and then waits for its children."""
    for rendezvous in list(_open):
        rendezvous._says_bye = False
        rendezvous.close()
