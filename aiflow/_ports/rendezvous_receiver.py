"""The receiver's side of a rendezvous: it owns names, accepts senders, and offers them ports."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, ClassVar

from aiflow import _eal
from aiflow._ports import doorbells, memories
from aiflow._ports.connection import Connection, Hooks, step_timeout
from aiflow._ports.listener import Listener
from aiflow._ports.local_drivers import close_receiving, driver_of, open_receiving
from aiflow._ports.memif_proxy import MemifProxy
from aiflow._ports.messages import VERSION, allowed, capabilities, checked_int, peer_of, shown, version_error, write
from aiflow._ports.registry import Claim
from aiflow._ports.rendezvous import Rendezvous
from aiflow._system.descriptors import Descriptor
from aiflow.config import MAX_PORTS, Endpoint
from aiflow.errors import AiflowError, PoolExhausted, PortError

__all__ = ["ReceiverRendezvous"]

_RENEWAL_INTERVAL = 2.0  # seconds between checks that names and sockets still exist
_MAX_REFUSALS = 8  # refusals to remember


class _NoRoom(PortError):
    """A refusal that may end by itself: the receiver has no room now."""


class ReceiverRendezvous(Rendezvous):
    """See `Rendezvous`."""

    role: ClassVar[str] = "receiver"

    def __init__(self, endpoints: list[Endpoint], root: Path, hooks: Hooks, frame_size: int | None) -> None:
        self._claims: dict[Endpoint, Claim] = {}
        self._listeners: dict[Listener, Endpoint] = {}
        self._proxies: dict[Endpoint, MemifProxy] = {}
        self._renewal = time.monotonic() + _RENEWAL_INTERVAL  # time of the next check
        self._refusals: dict[tuple[Endpoint, int], str] = {}  # the latest, by the sender's process id
        super().__init__(endpoints, root, hooks, frame_size)

    def hints(self) -> list[str]:
        """The latest refusals and their senders, the newest last."""
        return list(self._refusals.values())

    def _begin(self, endpoint: Endpoint) -> None:
        claim = self._claims[endpoint] = Claim(endpoint, self._root)
        self._listeners[Listener(claim.directory / "control")] = endpoint

    def _release(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()
        for listener in self._listeners:
            listener.close()
        for claim in self._claims.values():
            claim.close()
        self._proxies.clear()
        self._listeners.clear()
        self._claims.clear()

    # ---------------------------------------------------------------------------------------------------- the thread

    def _sockets(self) -> list[socket.socket]:
        sockets = [sock for proxy in self._proxies.values() for sock in proxy.sockets()]
        return sockets + [listener.sock for listener in self._listeners]

    def _due_times(self) -> list[float]:
        return [self._renewal] if self._claims else []

    def _relay(self, ready: set[int]) -> None:
        for proxy in self._proxies.values():
            proxy.relay(ready)

    def _after_wait(self, ready: set[int]) -> None:
        for listener, endpoint in self._listeners.items():
            if listener.fileno() in ready:
                self._accept(listener, endpoint)
        if time.monotonic() > self._renewal:
            self._renew()

    def _accept(self, listener: Listener, endpoint: Endpoint) -> None:
        try:
            sock = listener.accept()
        except OSError:
            return
        if not allowed(sock):
            sock.close()
            return
        self._connections.append(Connection(endpoint, sock))

    def _close_port(self, port: _eal.Port) -> None:
        close_receiving(port)

    # --------------------------------------------------------------------------------------------------------- names

    def _renew(self) -> None:
        """Restore what a cleaner of temporary files has removed, and touch what it might remove."""
        self._renewal = time.monotonic() + _RENEWAL_INTERVAL
        for endpoint, claim in list(self._claims.items()):
            listeners = [listener for listener, served in self._listeners.items() if served == endpoint]
            if endpoint in self._proxies:
                listeners.append(self._proxies[endpoint].listener)
            try:
                claim.renew()
            except PortError as exc:
                self._lose(endpoint, exc)
                continue
            for listener in listeners:
                with contextlib.suppress(PortError):  # the directory is missing now; the next check may find one
                    listener.renew()

    def _lose(self, endpoint: Endpoint, exc: PortError) -> None:
        """Another receiver has taken the name: drop our senders, which then find that one."""
        for listener in [listener for listener, served in self._listeners.items() if served == endpoint]:
            del self._listeners[listener]
            listener.close()
        for connection in [connection for connection in self._connections if connection.endpoint == endpoint]:
            self._drop(connection)  # before the proxy, which closes the sockets of their ports
        if endpoint in self._proxies:
            self._proxies.pop(endpoint).close()
        self._claims.pop(endpoint).close()
        self._fail(endpoint, exc)

    # ----------------------------------------------------------------------------------------------------- handshake

    def _answer(self, connection: Connection, message: dict[str, Any], passed: list[Descriptor]) -> None:
        if connection.state == "hello":
            self._offer(connection, message)
        elif connection.state == "offered" and message.get("ready"):
            if message.get("descriptors") == [memories.PROCESS] and len(passed) == 1:
                connection.share(passed.pop(), self._writers.enter(str(message["process_name"])))
                self._tell_memories(connection, self._memories())  # of Receivers that joined since the offer, too
            connection.state = "joining"
            self._join(connection)

    def _offer(self, connection: Connection, message: dict[str, Any]) -> None:
        endpoint = connection.endpoint
        driver = driver_of(endpoint.scheme)
        version = message["version"]
        if version != VERSION:
            raise version_error(endpoint, VERSION, version)
        if message["driver"] != driver.name:
            raise PortError(
                f"{endpoint}: the receiver serves it over {driver.name}, the sender over {shown(message['driver'])}; "
                "use the same AIFLOW_LOCAL on both sides"
            )
        nb_ports = checked_int(message["nb_ports"], "nb_ports", 1, MAX_PORTS)
        free = MAX_PORTS - _eal.nb_ports()
        if nb_ports > free:
            raise _NoRoom(
                f"{endpoint}: the receiver has room for {max(free, 0)} of the {nb_ports} ports asked for "
                f"({MAX_PORTS} in all); use fewer ports, or fewer senders at once"
            )
        wanted = message.get("frame_size")
        if wanted is not None:
            wanted = checked_int(wanted, "frame_size", 64, driver.max_frame_size)
        connection.capabilities = capabilities(message)
        frame_size = min((size for size in (self._frame_size, wanted) if size is not None), default=driver.frame_size)
        if not write(connection.sock, {"coming": nb_ports}):
            self._drop(connection)  # the sender has given up in the meantime
            return
        self._open_ports(connection, nb_ports, frame_size)
        self._send_offer(connection, frame_size)

    def _open_ports(self, connection: Connection, nb_ports: int, frame_size: int) -> None:
        endpoint = connection.endpoint
        driver = driver_of(endpoint.scheme)
        connection.peer = next(self._peers)
        pool = self._hooks.pool_for(max(frame_size, driver.min_mbuf), -1, nb_ports, False)
        ring = driver.ring_for(frame_size, nb_ports)
        directory = self._claims[endpoint].directory
        suffix = f"@{connection.peer}" if connection.peer > 1 else ""
        for number in range(nb_ports):
            label = f"{endpoint.scheme}:{endpoint.target}#{number}{suffix}"
            port, path, identity = open_receiving(driver, label, directory, frame_size, ring, pool)
            connection.ports.append(port)
            client_path = self._proxy_path(endpoint, path) if driver.name == "memif" else path
            connection.sockets.append((os.path.basename(client_path), identity))

    def _send_offer(self, connection: Connection, frame_size: int) -> None:
        driver, nb_ports = driver_of(connection.endpoint.scheme), len(connection.ports)
        offer: dict[str, Any] = {
            "driver": driver.name,
            "peer": connection.peer,
            "frame_size": frame_size,
            "ring_size": driver.ring_for(frame_size, nb_ports),
            "sockets": connection.sockets,
        }
        passed: list[Descriptor] = []
        if doorbells.CAPABILITY in connection.capabilities:
            connection.doorbell, passed = doorbells.make()
            connection.wire_doorbell()
            offer["descriptors"] = doorbells.NAMES
        if memories.CAPABILITY in connection.capabilities and memories.able(connection.endpoint):
            self._tell_memories(connection, self._memories())
            passed.append(memories.own_process())
            offer["descriptors"] = [*offer.get("descriptors", ()), memories.PROCESS]
            offer["process_name"] = memories.process_name()
        connection.hasten()
        connection.state = "offered"
        connection.deadline = time.monotonic() + step_timeout(nb_ports)
        write(connection.sock, offer, passed)
        for descriptor in passed:
            descriptor.close()

    def _proxy_path(self, endpoint: Endpoint, server: str) -> str:
        """The path that clients of memif's server connect to."""
        if endpoint not in self._proxies:
            self._proxies[endpoint] = MemifProxy(self._claims[endpoint].directory / "memif", allowed)
        self._proxies[endpoint].server = server
        return self._proxies[endpoint].path

    def _joined(self, connection: Connection) -> None:
        self._refusals.pop((connection.endpoint, peer_of(connection.sock)[0]), None)

    def _refuse(self, connection: Connection, exc: AiflowError) -> None:
        """Tell the sender why, and go on for the other senders."""
        again = isinstance(exc, (_NoRoom, PoolExhausted))
        write(connection.sock, {"refused": str(exc), "version": VERSION, "again": again})
        pid, _ = peer_of(connection.sock)
        key = connection.endpoint, pid
        self._refusals.pop(key, None)
        self._refusals[key] = f"refused a sender (process {pid or 'of another container'}): {exc}"
        while len(self._refusals) > _MAX_REFUSALS:
            self._refusals.pop(next(iter(self._refusals)))
        self._drop(connection)
