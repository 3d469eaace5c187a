"""The sender's side of a rendezvous: it looks for receivers, asks for ports, and retries."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any, ClassVar

from aiflow import _eal
from aiflow._eal_doorbell import Doorbell
from aiflow._ports import doorbells, memories
from aiflow._ports.connection import Connection, Hooks, step_timeout
from aiflow._ports.local_drivers import driver_of, open_sending
from aiflow._ports.messages import VERSION, allowed, checked_int, checked_sockets, read, shown, version_error, write
from aiflow._ports.registry import elsewhere, live
from aiflow._ports.rendezvous import Rendezvous
from aiflow._ports.runtime_dir import endpoint_directory, reason
from aiflow._system.descriptors import Descriptor, own_socket
from aiflow.config import Endpoint
from aiflow.errors import AiflowError, PortError

__all__ = ["SenderRendezvous"]

_RETRY_FIRST, _RETRY_LAST = 0.02, 0.1  # seconds between attempts to reach a receiver
_FAILED_FIRST, _FAILED_LAST = 0.5, 5.0  # the same after a failure that cost either side the opening of ports
_PENDING = ("asked", "coming", "joining")  # states of a connection until its ports are up


def _longer(pause: float) -> float:
    """The pause after another failure."""
    return max(_FAILED_FIRST, min(2 * pause, _FAILED_LAST))


def _named(names: Any, passed: list[Descriptor]) -> dict[str, Descriptor]:
    """The descriptors that came with a message, by name; none where not each has one. Raises TypeError."""
    if len(names) != len(passed):
        return {}
    return {name: descriptor for name, descriptor in zip(names, passed, strict=True) if isinstance(name, str)}


def _doorbell(by_name: dict[str, Descriptor], passed: list[Descriptor]) -> Doorbell | None:
    """The doorbell among the descriptors that came with an offer, if there is one. Raises ValueError."""
    if not by_name.keys() >= set(doorbells.NAMES):
        return None
    page, bell = (by_name[name] for name in doorbells.NAMES)
    passed.remove(bell)
    return doorbells.take(page, bell)


class SenderRendezvous(Rendezvous):
    """See `Rendezvous`."""

    role: ClassVar[str] = "sender"

    def __init__(self, endpoints: list[Endpoint], root: Path, hooks: Hooks, frame_size: int | None) -> None:
        self._awaited: dict[Endpoint, tuple[float, float]] = {}  # endpoint → (time of the next attempt, pause after it)
        self._refusals: dict[Endpoint, str] = {}  # reason of the receiver that is there now
        self._timeouts: dict[Endpoint, str] = {}  # how long a receiver was silent, or its ports did not come up
        self._reported = False  # last value of `connecting` that the hook has received
        super().__init__(endpoints, root, hooks, frame_size)

    @property
    def connecting(self) -> bool:
        """Whether a receiver is opening our ports; the sender does not count this time as silence."""
        return any(
            connection.state in _PENDING and connection.endpoint not in self._timeouts
            for connection in list(self._connections)
        )

    def hints(self) -> list[str]:
        """For each endpoint without a receiver: where it was looked for, or why it is not connected."""
        states = {connection.endpoint: connection.state for connection in list(self._connections)}
        hints = []
        for endpoint in list(self._awaited):
            if endpoint in self._refusals:
                hints.append(f"refused: {self._refusals[endpoint]}")
            elif endpoint in self._timeouts:
                hints.append(self._timeouts[endpoint])
            elif endpoint in states:
                hints.append(f"{endpoint}: the receiver answered and its ports are coming up")
            else:
                hints += self._search_hints(endpoint)
        return hints

    def _search_hints(self, endpoint: Endpoint) -> list[str]:
        found = [name.endpoint for name in live(self._root)]
        names = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        text = f"{endpoint}: looked for a receiver in {self._root} (AIFLOW_RUNTIME_DIR chooses another directory)"
        return [f"{text}, which has {names}" if found else text, *elsewhere(endpoint, self._root)]

    def _begin(self, endpoint: Endpoint) -> None:
        self._awaited[endpoint] = (0.0, _RETRY_FIRST)

    def _release(self) -> None:
        self._report_connecting()

    # ---------------------------------------------------------------------------------------------------- the thread

    def _before_wait(self) -> None:
        now = time.monotonic()
        for endpoint, (due, pause) in list(self._awaited.items()):
            if now >= due:
                self._awaited[endpoint] = (now + pause, min(pause * 1.5, max(pause, _RETRY_LAST)))
                self._call(endpoint)
        self._report_connecting()

    def _due_times(self) -> list[float]:
        return [due for due, _ in self._awaited.values()]

    def _report_connecting(self) -> None:
        reported, self._reported = self._reported, self.connecting
        if reported != self._reported and self._hooks.joining is not None:
            self._hooks.joining(self._reported)

    def _close_port(self, port: _eal.Port) -> None:
        port.close()

    # ----------------------------------------------------------------------------------------------------- handshake

    def _call(self, endpoint: Endpoint) -> None:
        """Make one attempt to reach the receiver of this name."""
        if any(connection.endpoint == endpoint for connection in self._connections):
            return
        try:
            sock = own_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        except OSError as exc:
            self._fail(endpoint, PortError(f"{endpoint}: {reason(exc)}"))
            return
        try:
            sock.connect(str(endpoint_directory(endpoint, self._root) / "control"))
        except BlockingIOError:  # the receiver's backlog is full
            sock.close()
            return
        except OSError:
            sock.close()
            self._forget_failures(endpoint)
            return
        if not allowed(sock):
            sock.close()
            return
        hello = {
            "version": VERSION,
            "driver": driver_of(endpoint.scheme).name,
            "nb_ports": endpoint.nb_ports,
            "frame_size": self._frame_size,
            "capabilities": [doorbells.CAPABILITY, *([memories.CAPABILITY] if memories.able(endpoint) else [])],
        }
        write(sock, hello)
        self._connections.append(Connection(endpoint, sock, state="asked"))

    def _answer(self, connection: Connection, message: dict[str, Any], passed: list[Descriptor]) -> None:
        endpoint = connection.endpoint
        if "refused" in message:
            self._refused(connection, message)
            return
        if connection.state not in ("asked", "coming"):
            return
        connection.deadline = time.monotonic() + step_timeout(endpoint.nb_ports)
        if "coming" in message:
            connection.state = "coming"
            return
        if endpoint in self._refusals:
            self._forget_failures(endpoint)
        self._open_ports(connection, message, passed)

    def _open_ports(self, connection: Connection, offer: dict[str, Any], passed: list[Descriptor]) -> None:
        endpoint = connection.endpoint
        driver = driver_of(endpoint.scheme)
        frame_size = checked_int(offer["frame_size"], "frame_size", 64, driver.max_frame_size)
        ring = checked_int(offer["ring_size"], "ring_size", 1, 1 << 15)
        sockets = checked_sockets(offer["sockets"])
        if offer["driver"] != driver.name or len(sockets) != endpoint.nb_ports:
            raise ValueError(f"{shown(offer['driver'])} over {len(sockets)} ports")
        by_name = _named(offer.get("descriptors", ()), passed)
        connection.doorbell = _doorbell(by_name, passed)
        directory = endpoint_directory(endpoint, self._root)
        connection.peer = next(self._peers)
        room = max(frame_size, driver.min_mbuf)
        pool = self._hooks.pool_for(room, -1, len(sockets), driver.sender_needs_eal_memory)
        connection.hasten()
        for number, (name, identity) in enumerate(sockets):
            label = f"{endpoint.scheme}:{endpoint.target}#{number}"
            try:
                port = open_sending(driver, label, str(directory / name), identity, frame_size, ring, pool)
            except PortError:
                if read(connection.sock) is None:  # the receiver has died: try the next one
                    self._drop(connection)
                    return
                raise
            connection.ports.append(port)
        connection.wire_doorbell()
        if memories.PROCESS in by_name:
            passed.remove(by_name[memories.PROCESS])
            writer = self._writers.enter(str(offer["process_name"]))
            connection.share(by_name[memories.PROCESS], writer)
        connection.state = "joining"
        connection.deadline = time.monotonic() + step_timeout(endpoint.nb_ports)

    def _joined(self, connection: Connection) -> None:
        ready: dict[str, Any] = {"ready": True}
        passed: list[Descriptor] = []
        if connection.sharing is not None:
            self._tell_memories(connection, self._memories())
            with contextlib.suppress(OSError):  # no descriptor is left: the receiver tells no places
                passed = [memories.own_process()]
                ready["descriptors"] = [memories.PROCESS]
                ready["process_name"] = memories.process_name()
        write(connection.sock, ready, passed)
        for descriptor in passed:
            descriptor.close()
        self._awaited.pop(connection.endpoint, None)
        self._forget_failures(connection.endpoint)

    # ------------------------------------------------------------------------------------------------------ failures

    def _ask_again(self, endpoint: Endpoint, pause: float) -> None:
        self._awaited[endpoint] = (time.monotonic() + pause, pause)

    def _pause(self, endpoint: Endpoint) -> float:
        return self._awaited.get(endpoint, (0.0, 0.0))[1]

    def _forget_failures(self, endpoint: Endpoint) -> None:
        """The receiver that refused us or timed out is gone, or has changed its mind."""
        self._refusals.pop(endpoint, None)
        self._timeouts.pop(endpoint, None)
        self._fail(endpoint, None)

    def _dropped(self, endpoint: Endpoint) -> None:
        if not self._closing:
            self._ask_again(endpoint, _RETRY_FIRST)

    def _hung_up(self, connection: Connection) -> None:
        super()._hung_up(connection)
        self._forget_failures(connection.endpoint)

    def _timed_out(self, connection: Connection) -> None:
        """Ask again. From now on the time that this receiver takes counts as silence."""
        endpoint = connection.endpoint
        what = f"answered and its ports did not come up within {step_timeout(endpoint.nb_ports):g} s"
        if connection.state == "asked":
            what = f"is there and said nothing for {step_timeout():g} s"
        self._timeouts[endpoint] = f"{endpoint}: the receiver {what}; check whether its process is stopped or busy"
        self._drop(connection)

    def _refused(self, connection: Connection, message: dict[str, Any]) -> None:
        """Ask again: a refusal ends when there is room, or when another receiver has taken the name."""
        endpoint = connection.endpoint
        error = PortError(shown(message["refused"]))
        version = message.get("version", 1)  # version 1 did not send it
        if version != VERSION:
            error = version_error(endpoint, version, VERSION)
        pause = self._pause(endpoint)
        cheap = connection.state == "asked"
        self._drop(connection)
        self._ask_again(endpoint, _RETRY_LAST if cheap else _longer(pause))
        self._refusals[endpoint] = str(error)
        self._timeouts.pop(endpoint, None)
        self._fail(endpoint, None if message.get("again") is True and version == VERSION else error)

    def _refuse(self, connection: Connection, exc: AiflowError) -> None:
        """Set the error for `send`, and ask again later."""
        endpoint = connection.endpoint
        pause = self._pause(endpoint)
        self._drop(connection)
        self._ask_again(endpoint, _longer(pause))
        self._fail(endpoint, exc)
