"""`Ports`: endpoints that are opened once in a process, and shared by its Senders and Receivers."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, SupportsIndex

from aiflow._dp import Loop
from aiflow._eal import Mempool
from aiflow._eal_loans import Pool
from aiflow._ports.opening import Opening, User, loop_of, opened, opening_of
from aiflow._ports.portset import SHARED_MEMORY
from aiflow.config import Endpoint, parse_endpoints, parse_idle, parse_max_cores
from aiflow.errors import AiflowError, ConfigError, not_copied
from aiflow.options import Polling, grouped

__all__ = ["MBUFS_PER_PORT", "OwnPorts", "Ports", "asked_polling", "endpoints_of", "port_pool", "ports_for"]

MBUFS_PER_PORT = 3071
"""Both rings of a port (up to 1024 each, which virtio fills up front), the staged frames, and the caches."""


def port_pool(frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Mempool:
    """The mbufs of `nb_ports` ports that are about to be opened."""
    return Mempool(f"ports-{frame_size}", nb_ports * MBUFS_PER_PORT, frame_size, socket_id, not needs_eal_memory)


def endpoints_of(ports: Any) -> tuple[Endpoint, ...]:
    """The endpoints behind the argument ``ports``."""
    return ports.endpoints if isinstance(ports, Ports) else parse_endpoints(ports)


def asked_polling(given: Polling | None, flat: Mapping[str, Any]) -> Polling | None:
    """``polling=`` or its flat keywords; None if neither is given."""
    polling = grouped(Polling, "polling", given, flat)
    return None if given is None and polling == Polling() else polling


class _Group:
    """Openings on one loop. `opened()` is held while they are made and given up."""

    def __init__(
        self, endpoints: tuple[Endpoint, ...], frame_size: int | None, polling: Polling | None, faults: Any
    ) -> None:
        self.endpoints = endpoints
        self.frame_size = frame_size
        self._polling = polling
        self._faults = faults
        self._loop: Any = None
        self._openings: list[Opening] = []
        self.error: AiflowError | None = None
        """A fault that keeps a port from coming up; the next `send` or `recv` raises it."""

    def _open(self, role: str, pool_for: Callable[..., Any], feedback: Mempool | None, user: User | None) -> None:
        """Open the endpoints in their order, and bring the first user to them."""
        with opened():
            loop = loop_of(self.endpoints)
            if loop is None:
                loop = self._new_loop(feedback)
            else:
                self._check_polling(loop)
            self._loop = loop
            _holders[loop].add(id(self))
            if user is not None:
                user.agent.join(loop)
            users = [] if user is None else [user]
            for endpoint in self.endpoints:
                found = opening_of(endpoint)
                if found in self._openings:
                    raise ConfigError(f"{endpoint} is named twice: name each port once")
                if found is not None:
                    self._check_frames(found)
                    self._openings.append(found)
                    for each in users:
                        found.admit(each)
                elif endpoint.scheme not in SHARED_MEMORY:
                    self._begin([endpoint], role, pool_for, users)
            named = [endpoint for endpoint in self.endpoints if endpoint.scheme in SHARED_MEMORY]
            if named:
                self._begin(named, role, pool_for, users)
            for opening in self._openings:
                opening.listeners.append(weakref.WeakMethod(self._look_for_errors))
            self._look_for_errors()

    def _begin(self, endpoints: list[Endpoint], role: str, pool_for: Callable[..., Any], users: list[User]) -> None:
        opening = Opening(endpoints, role, self._loop, users)
        self._openings.append(opening)  # first: an interrupt must not leave ports open that no one closes
        opening.open(pool_for, self.frame_size)

    def _new_loop(self, feedback: Mempool | None) -> Loop:
        polling = self._polling or Polling()
        self._loop = loop = Loop(self._faults)
        _holders[loop] = {id(self)}
        _polling[loop] = polling
        loop.spins = parse_idle(polling.idle)
        loop.max_cores = parse_max_cores(polling.max_cores)
        loop.tx_pool = feedback
        loop.start("aiflow-worker")
        return loop

    def _check(self, frame_size: int | None, polling: Polling | None, faults: Any) -> None:
        """Raise ConfigError when a user asks for what these ports are not."""
        if frame_size is not None and frame_size != self.frame_size:
            sizes = self.frame_size or max((size for each in self._openings for size in each.sizes()), default=None)
            if frame_size != sizes:
                raise ConfigError(f"{self!r} have frame_size={sizes}, and frame_size={frame_size} was asked for")
        polled = _polling.get(self._loop)
        if polling is not None and polled is not None and polling != polled:
            raise ConfigError(f"{self!r} are polled with {polled}, and {polling} was asked for")
        if faults:
            raise ConfigError(f"faults= is an option of {self!r}: give it there")

    def _check_polling(self, loop: Loop) -> None:
        is_open = ", ".join(str(endpoint) for endpoint in self.endpoints if opening_of(endpoint) is not None)
        if self._polling is not None and self._polling != _polling[loop]:
            raise ConfigError(
                f"{is_open}: open in this process with {_polling[loop]}, and {self._polling} was asked for: the first "
                "user of a port sets this"
            )
        if self._faults:
            raise ConfigError(f"{is_open}: open in this process, and its first user sets faults=")

    def _check_frames(self, found: Opening) -> None:
        sizes = {found.frame_size} - {None} or found.sizes()
        if self.frame_size is not None and sizes and self.frame_size not in sizes:
            names = ", ".join(map(str, found.endpoints))
            raise ConfigError(
                f"{names}: open in this process with frame_size={max(filter(None, sizes))}, and "
                f"frame_size={self.frame_size} was asked for: the first user of a port sets this"
            )

    def _give_up(self) -> None:
        """Close what nothing uses any more. Idempotent, also after an interrupt."""
        with opened():
            for opening in self._openings:
                opening.listeners = [each for each in opening.listeners if each() not in (None, self._look_for_errors)]
                opening.close_if_idle()
            if self._loop is not None:
                if _holders.get(self._loop, set()) <= {id(self)}:
                    self._loop.stop()
                    _holders.pop(self._loop, None)
                    _polling.pop(self._loop, None)
                else:
                    _holders[self._loop].discard(id(self))
                self._loop = None

    # ---- what a Sender or Receiver asks of its ports ----

    def _look_for_errors(self) -> None:
        """Set `error`: each call of `send` or `recv` looks at it."""
        openings = list(self._openings)
        found = None
        for each in openings:
            others = any(other.sizes() for other in openings if other is not each)
            if each.ports.error is not None and not (each.ports.is_gone and others):
                found = each.ports.error  # an interface that was removed is no fault while other ports work
                break
        self.error = found

    def _lend(self, pool: Pool) -> None:
        """Pass the pool of a Sender's loans to the peers of these ports."""
        for opening in list(self._openings):
            opening.lend(pool)

    def hints(self) -> list[str]:
        """Facts about these ports that may keep frames from getting through now, a sentence each."""
        return [hint for opening in list(self._openings) for hint in opening.ports.hints()]

    def describe(self) -> list[dict[str, Any]]:
        """Return which driver serves each endpoint, and for whom.

        Returns
        -------
        list of dict
            For each endpoint: ``endpoint`` (as typed), ``driver`` (DPDK's name), ``nb_ports`` (asked for), ``memory``
            (the EAL's memory mode), ``state`` ("up", "no carrier", "down", "removed", or "no peer" for a named
            endpoint), ``hints`` (facts that may keep frames from getting through), ``data`` ("placed": senders write
            straight into the receiver's memory; "carried": frames bring the bytes; "" for a named endpoint without a
            peer), ``users`` (the Senders and Receivers on it).
        """
        rows = {}
        for opening in list(self._openings):
            users = [user.name for user in opening.users]
            for endpoint, row in zip(opening.endpoints, opening.ports.describe(), strict=True):
                rows[endpoint.scheme, endpoint.target] = {**row, "users": users}
        return [rows[endpoint.scheme, endpoint.target] for endpoint in self.endpoints]


_holders: dict[Any, set[int]] = {}  # loop → the groups that use it, by id
_polling: dict[Any, Polling] = {}  # loop → how its thread polls


class OwnPorts(_Group):
    """The ports of one Sender or Receiver that was given endpoints. Interfaces and cards are shared with others.

    Parameters
    ----------
    endpoints : tuple of Endpoint
    role : {"sender", "receiver"}
    pool_for : callable
        Makes the mbufs of ports that are about to be opened: `port_pool`, or `ReceiverPools`.
    feedback : Mempool, optional
        Mbufs of frames to send, where those of the ports may all be kept.
    frame_size : int or None
        Largest Ethernet frame in bytes; None: what the ports take.
    polling : Polling or None
        None: as they are polled already, or the default.
    faults : dict, list of dict, or None
    """

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        role: str,
        pool_for: Callable[..., Any],
        feedback: Mempool | None,
        frame_size: int | None,
        polling: Polling | None,
        faults: Any,
    ) -> None:
        super().__init__(endpoints, frame_size, polling, faults)
        self._role = role
        self._pools = (pool_for, feedback)

    def _join(self, agent: Any, name: str) -> None:
        """Open the endpoints, and bring the agent to them."""
        self._open(self._role, *self._pools, User(agent, self._role, name))

    def _leave(self, agent: Any) -> None:
        """Take the agent off, and close what nothing uses any more."""
        agent.leave()
        for opening in self._openings:
            opening.dismiss(agent)
        self._give_up()


class Ports(_Group):
    """Ports that any number of Senders and Receivers of this process use, in both directions at once.

    Give it to a `Sender` or `Receiver` in place of endpoints. Interfaces and cards (``af_packet:``, ``af_xdp:``,
    ``pci:``, ``vdev:``) are shared without it: a Sender and a Receiver that name the same one use one port. For
    ``local:``, ``memif:``, ``vhost:`` and ``ring:`` it makes one connection that carries both directions. The first
    process that opens ``Ports(["local:x*2"])`` owns the name x, and listens; others call it.

    Parameters
    ----------
    endpoints : str or list of str
        As for `Sender`.
    frame_size : int, optional
        Largest Ethernet frame in bytes, header included, 512 to 65000; default: what the ports take.
    polling : Polling, optional
        How the thread of these ports polls them.
    faults : dict or list of dict, optional
        Faults made on purpose, for tests: see `aiflow.config.FAULTS`.

    Raises
    ------
    ConfigError
        An argument cannot be used as given, or contradicts what the port is open with.
    PortError, EalError, PoolExhausted
        A port cannot be opened, DPDK cannot start, or memory is short.

    Notes
    -----
    A context manager. One thread polls all ports of it. A Sender never pairs with a Receiver on the same Ports, unless
    its ``to=`` names that one. Mbufs, frame size and polling belong to the ports: the first user of a port sets them. A
    ``Receiver(ports, assemble=False)`` copies each frame once into mbufs of its own; `Receiver.describe` says so.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        frame_size: int | None = None,
        polling: Polling | None = None,
        faults: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        self._closed = True  # nothing to close yet
        super().__init__(parse_endpoints(endpoints), frame_size, polling, faults)
        self._users: list[User] = []
        try:
            self._open("either", port_pool, None, None)
            for opening in self._openings:
                opening.pins.add(id(self))
            self._closed = False
        except BaseException:
            self._closed = True
            self._unpin()
            raise

    def _join(self, agent: Any, name: str) -> None:
        """For a Sender or Receiver that is made."""
        user = User(agent, agent.role, name)
        with opened():
            if self._closed:
                raise ConfigError("these Ports are closed: open others")
            self._users.append(user)
            agent.join(self._loop)
            for opening in self._openings:
                opening.admit(user)

    def _leave(self, agent: Any) -> None:
        """For a Sender or Receiver that is closed."""
        agent.leave()
        with opened():
            for opening in self._openings:
                opening.dismiss(agent)
            self._users = [user for user in self._users if user.agent is not agent]

    @property
    def users(self) -> tuple[str, ...]:
        """Names of the Senders and Receivers that use these ports, also those that were given the endpoint."""
        names = [user.name for user in self._users]
        names += [user.name for opening in self._openings for user in opening.users if user not in self._users]
        return tuple(dict.fromkeys(names))

    def close(self) -> None:
        """Close the ports.

        Idempotent; after an interrupt, closing again finishes the rest.

        Raises
        ------
        ConfigError
            Senders or Receivers still use them; nothing is closed.
        """
        if self._closed:
            return
        if self._loop is not None and not self._loop.pid_is_ours():
            return
        with opened():
            if users := self.users:
                raise ConfigError(f"these Ports are in use: close {', '.join(users)} first")
            self._unpin()
            self._closed = True

    def _unpin(self) -> None:
        for opening in self._openings:
            opening.pins.discard(id(self))
        self._give_up()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            self.close()
        except ConfigError:  # agents are left, perhaps because of the error that ends the block: it must be seen
            if kind is None:
                raise

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        if self._loop is not None and self._loop.pid_is_ours():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
            with contextlib.suppress(ConfigError):  # a Sender or Receiver that was given the endpoint closes them
                self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "open others there, on the same endpoints")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"used by {', '.join(self.users)}" if self.users else "unused"
        return f"<Ports {', '.join(map(str, self.endpoints))}: {state}>"


def ports_for(
    ports: Any,
    role: str,
    pool_for: Callable[..., Any],
    feedback: Mempool | None,
    frame_size: int | None,
    polling: Polling | None,
    faults: Any,
) -> OwnPorts | Ports:
    """The ports behind the argument ``ports`` of a Sender or Receiver: see `OwnPorts` for the parameters.

    Raises
    ------
    ConfigError
        If `Ports` are given, and the user asks for what they are not.
    """
    if isinstance(ports, Ports):
        ports._check(frame_size, polling, faults)
        return ports
    return OwnPorts(parse_endpoints(ports), role, pool_for, feedback, frame_size, polling, faults)
