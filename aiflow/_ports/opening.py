"""Openings: sets of ports on a loop, and the agents that use them.

An interface or card of this process is open once, whatever number of Senders and Receivers use it. Ports of named
endpoints (``local:`` and its like, ``ring:``) have two different ends, so each Sender or Receiver opens its own, unless
the user opens `aiflow.Ports`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from aiflow import _eal
from aiflow._eal_loans import Pool
from aiflow._ports.memories import Memory
from aiflow._ports.portset import PortSet
from aiflow._system import threads
from aiflow._system.log import logger
from aiflow.config import Endpoint
from aiflow.errors import ConfigError

__all__ = ["SHAREABLE", "Opening", "User", "loop_of", "opened", "opening_of"]

_log = logger("ports")

SHAREABLE = ("af_packet", "af_xdp", "pci", "vdev")
"""Schemes whose ports all agents of a process share, without being told."""


class User(NamedTuple):
    """An agent on the ports of an opening.

    Attributes
    ----------
    agent : TxAgent or RxAgent
    role : {"sender", "receiver"}
    name : str
        For messages: "Sender 'a'".
    """

    agent: Any
    role: str
    name: str


class Opening:
    """A set of endpoints that are open on one loop.

    Parameters
    ----------
    endpoints : sequence of Endpoint
    role : {"sender", "receiver", "either"}
        Which end of a named endpoint is ours. "either": the one that is free.
    loop : Loop
        It runs, and polls the ports.
    users : iterable of User
        The first ones; their agents are on the loop.

    Attributes
    ----------
    loop : Loop
    ports : PortSet
        Set by `open`.
    frame_size : int or None
        As asked for by the first user.
    pins : set of int
        The `aiflow.Ports` that hold it open, with or without users, by their ids.
    listeners : list of weakref.WeakMethod
        Called when a port came or went, or the error of `ports` has changed. From any thread. Weak: ports that were
        forgotten must be closed.
    """

    ports: PortSet

    def __init__(self, endpoints: Iterable[Endpoint], role: str, loop: Any, users: Iterable[User]) -> None:
        self.loop = loop
        self.endpoints = tuple(endpoints)
        self.frame_size: int | None = None
        self.pins: set[int] = set()
        self.listeners: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._role = role
        self._users = list(users)
        self._up: list[tuple[Any, int]] = []
        self._changing = threads.unpatched("threading").RLock()

    def open(self, pool_for: Callable[..., Any], frame_size: int | None) -> None:
        """Open the ports; the parameters are those of `PortSet`. After an error, `close_if_idle` gives up the rest."""
        self.frame_size = frame_size
        self.ports = PortSet(
            self.endpoints,
            self._role,
            pool_for=pool_for,
            attach=self._attach,
            detach=self._detach,
            frame_size=frame_size,
            joining=self._joining,
            died=self._died,
            failed=self._changed,
            memories=self._memories,
            pools=self._pools,
            writer_gone=self._writer_gone,
        )
        for endpoint in self.endpoints:
            if endpoint.scheme in SHAREABLE:
                _shared[_key(endpoint)] = self

    @property
    def users(self) -> list[User]:
        """Those that use the ports now."""
        return list(self._users)

    def sizes(self) -> set[int]:
        """Frame sizes of the ports that are up, in bytes."""
        return {port.frame_size for port, _ in list(self._up)}

    def admit(self, user: User) -> None:
        """Let an agent use the ports: those that are up now, and those that come."""
        self.ports.serve(user.role)
        with self._changing:
            up = list(self._up)
            for port, _ in up:
                user.agent.prepare(port)

            def attach() -> None:
                for port, peer in up:
                    user.agent.attach(port, peer)

            self.loop.between(attach)
            self._users.append(user)
        if user.agent.memory is not None:
            self.ports.share(Memory(*user.agent.memory))

    def dismiss(self, agent: Any) -> None:
        """Forget an agent that has left the loop."""
        with self._changing:
            self._users = [user for user in self._users if user.agent is not agent]

    def close_if_idle(self) -> None:
        """Close the ports when nothing uses them. Idempotent, also after an interrupt."""
        if self._users or self.pins:
            return
        for key, opening in list(_shared.items()):
            if opening is self:
                del _shared[key]
        if hasattr(self, "ports"):  # else `open` has failed
            self.ports.close()

    # ---------------------------------------------------------------------------------------------- ports come and go

    def _attach(self, port: Any, peer: int) -> None:
        with self._changing:
            agents = [user.agent for user in self._users]
            self.loop.prepare(port)
            for agent in agents:
                agent.prepare(port)

            def attach() -> None:
                self.loop.open_port(port)
                for agent in agents:
                    if agent.joined:  # it may have left the loop, and not the ports
                        agent.attach(port, peer)

            self.loop.between(attach)
            self._up.append((port, peer))
        self._changed()
        _log.info("%s: open, driver %s, frames up to %d bytes", port.name, port.driver, port.frame_size)
        _eal.forward_log()

    def _detach(self, ports: list[Any], _peer: int) -> None:
        with self._changing:
            self._up = [(port, number) for port, number in self._up if port not in ports]
            agents = [user.agent for user in self._users]

            def detach() -> None:
                for agent in agents:
                    agent.detach(ports)
                for port in ports:
                    self.loop.close_port(port)

            self.loop.between(detach)
        self._changed()
        for port in ports:
            _log.info("%s: closed", port.name)
        _eal.forward_log()

    def _changed(self) -> None:
        for listener in list(self.listeners):
            if (call := listener()) is not None:
                call()

    def _memories(self) -> list[Memory]:
        return [Memory(*user.agent.memory) for user in self.users if user.agent.memory is not None]

    def _pools(self) -> list[Pool]:
        return [user.agent.pool for user in self.users if user.agent.pool is not None]

    def lend(self, pool: Pool) -> None:
        """Pass the pool of a user's loans to the peers that are connected. Those that come get it anyway."""
        self.ports.lend(pool)

    def _writer_gone(self, writer: int) -> None:
        """The peer of a connection writes to our memory no more."""
        with self._changing:
            agents = [user.agent for user in self._users if user.role == "receiver"]
            self.loop.between(lambda: [agent.writer_gone(writer) for agent in agents])

    def _joining(self, joining: bool) -> None:
        for user in self.users:
            if user.role == "sender":
                user.agent.set_joining(joining)

    def _died(self) -> None:
        for user in self.users:
            if user.role == "sender":
                user.agent.note_death()


# ----------------------------------------------------------------------------------------------- those of this process

_shared: dict[tuple[str, str, int], Opening] = {}  # the opening of each interface or card
_lock = threads.unpatched("threading").RLock()


def opened() -> Any:
    """A lock, held while openings are looked up, made and given up: two threads that open one port get one."""
    return _lock


def opening_of(endpoint: Endpoint) -> Opening | None:
    """The opening that has this interface or card already."""
    return _shared.get(_key(endpoint))


def _key(endpoint: Endpoint) -> tuple[str, str, int]:
    """Scheme and target; and the network namespace of this thread, where interfaces have their names."""
    namespace = os.stat("/proc/thread-self/ns/net").st_ino if endpoint.scheme in ("af_packet", "af_xdp") else 0
    return endpoint.scheme, endpoint.target, namespace


def loop_of(endpoints: Iterable[Endpoint]) -> Any:
    """The loop that polls those of the endpoints that are open already; None if none is.

    Raises
    ------
    ConfigError
        If several loops poll them.
    """
    found = {endpoint: opening for endpoint in endpoints if (opening := opening_of(endpoint)) is not None}
    if len({id(opening.loop) for opening in found.values()}) > 1:
        names = " and ".join(map(str, found))
        raise ConfigError(
            f"{names} are open already, each polled by a thread of its own: open them together first "
            "(ports = aiflow.Ports([…])), and give these ports to every Sender and Receiver"
        )
    return next((opening.loop for opening in found.values()), None)


def _forked() -> None:
    """Runs in every forked child: the ports are the parent's."""
    global _lock
    _lock = threads.unpatched("threading").RLock()
    _shared.clear()


os.register_at_fork(after_in_child=_forked)
