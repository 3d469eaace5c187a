"""A snapshot of this process: every figure of its Senders and Receivers, as plain values.

Nothing runs here unless a snapshot is asked for, and nothing locks a loop: counters are read while it runs.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
import weakref
from collections.abc import Mapping
from typing import Any

from aiflow._observe.catalogue import values
from aiflow._system import log, threads

__all__ = ["FORMAT", "forget", "nb_sides", "note", "snapshot"]

FORMAT = 1
"""Of the document: it grows when a key is removed or means something else."""

_MOST_HELD = 8  # slices of a Receiver that are named

_sides: list[Side] = []
_serials = itertools.count()
_lock = threads.unpatched("threading").RLock()  # a signal handler may open a Receiver


def _valid(text: str) -> str:
    """A text that UTF-8 can hold: bytes that are not become �, as in the name that the other end shows."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


class Side:
    """A Sender or Receiver that is open; it is not kept alive.

    Parameters
    ----------
    engine : aiflow._engine.Engine
    name : str
    endpoints : tuple of Endpoint
    asked : mapping
        Options that explain the figures, for the reader: policy, slice_ms, …

    Attributes
    ----------
    serial : int
        No other side of this process has or had it.
    number : int
        Sides of one role and name have different ones while they are open: 1, 2, …
    """

    def __init__(self, engine: Any, name: str, endpoints: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        self.engine = weakref.ref(engine)
        self.name = _valid(name)
        self.endpoints = [_valid(str(endpoint)) for endpoint in endpoints]
        self.asked = dict(asked)
        self.role: str = engine.agent.role
        self.serial = next(_serials)
        alike = {side.number for side in _sides if (side.role, side.name) == (self.role, self.name)}
        self.number: int = min(set(range(1, len(alike) + 2)) - alike)


class _SideView:
    """What the sources of `aiflow._observe.catalogue` read of a Sender or Receiver."""

    def __init__(self, engine: Any) -> None:
        self.agent = agent = engine.agent
        self.loop = agent.loop
        self.counters = agent.counters()
        self.drops = agent.drops()  # those without a frame, too: the growth of a series begins with its second sample
        self.callers_waiting, self.caller_wait_ns = engine.waiter.waited()
        self.peers: list[_PeerView] = []
        if agent.role == "sender":
            self.in_flight, self.ended = agent.ended()
            self.peers = [_PeerView(peer) for peer in agent.peers()]
        else:
            self.ended = self.counters
            self.store = agent.store
            self.held = agent.slices
            self.nb_held = len(self.held)
            self.held_bytes = sum(one.charged for one in self.held)
            self.starving = agent.starving
            self.nb_sessions = agent.nb_sessions

    @staticmethod
    def seconds_of(waits: Mapping[str, int]) -> dict[str, float]:
        """Nanoseconds by state, in seconds."""
        return {state: ns * 1e-9 for state, ns in waits.items()}


class _PeerView:
    """The same of a receiver that a Sender sends to."""

    def __init__(self, peer: Mapping[str, Any]) -> None:
        self.name: str = peer["name"]
        self.joined: bool = peer["joined"]
        self.free: int = peer["free_bytes"]
        self.ended: dict[str, int] = peer["ended"]
        self.waits = _SideView.seconds_of(peer["waits"])


def note(engine: Any, name: str, endpoints: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
    """Show a Sender or Receiver from now on: see `Side` for the parameters."""
    with _lock:
        _sides.append(Side(engine, name, endpoints, asked))


def forget(engine: Any) -> None:
    """Show it no more. Idempotent."""
    with _lock:
        _sides[:] = [side for side in _sides if side.engine() not in (None, engine)]


def nb_sides() -> int:
    """Senders and Receivers that are shown."""
    with _lock:
        _sides[:] = [side for side in _sides if side.engine() is not None]
        return len(_sides)


def snapshot() -> dict[str, Any]:
    """Every figure of this process now, ready for JSON.

    Returns
    -------
    dict
        ``format``, ``pid``, ``namespace`` (in which the process has that id), ``host``, ``program``, ``unix_ns`` (the
        time), ``unread`` (Senders and Receivers that could not be read, because they close now), and ``sides``: for
        each Sender and Receiver ``role``, ``name``, ``number`` (2, 3, … for others of that name in the process),
        ``serial``, ``monotonic_ns`` (when it was read), ``endpoints``, ``asked``, ``thread`` (the kernel's number of
        the loop's worker), ``callers`` (those of threads that have waited for it), ``figures``, and lists ``peers``,
        ``ports`` and ``held``. All text is valid UTF-8.
    """
    with _lock:
        sides = list(_sides)
    found, unread = [], 0
    for side in sides:
        engine = side.engine()
        if engine is not None:
            try:
                found.append(_of_side(side, engine))
            except Exception:  # it closes at this moment, and parts of it are gone
                log.logger("observe").debug("%s %s cannot be read", side.role, side.name, exc_info=True)
                unread += 1
    return {
        "format": FORMAT,
        "pid": os.getpid(),
        "namespace": _namespace(),
        "host": _valid(socket.gethostname()),
        "program": _valid(" ".join(os.path.basename(word) for word in sys.orig_argv[:3])[:60]),
        "unix_ns": time.time_ns(),
        "sides": found,
        "unread": unread,
    }


def _namespace() -> int:
    """The number of this process's namespace of process ids, as ``lsns -t pid`` shows it; 0 without /proc."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _numbers(idents: set[int]) -> list[int]:
    """The kernel's numbers of these threads, as far as they live."""
    living = threads.unpatched("threading").enumerate()
    return sorted(each.native_id for each in living if each.ident in idents and each.native_id is not None)


def _of_side(side: Side, engine: Any) -> dict[str, Any]:
    agent = engine.agent
    role: str = agent.role
    now = time.monotonic_ns()
    view = _SideView(engine)
    return {
        "role": role,
        "name": side.name,
        "number": side.number,
        "serial": side.serial,
        "monotonic_ns": now,
        "endpoints": side.endpoints,
        "asked": {**side.asked, "max_cores": agent.loop.max_cores},
        "thread": agent.loop.thread_id,
        "callers": _numbers(engine.waiter.callers()),
        "figures": values("side", role, view),
        "peers": [{"name": peer.name, "figures": values("peer", role, peer)} for peer in view.peers],
        "ports": [
            {
                "name": _valid(port.counters.name),
                "driver": port.counters.driver,
                "dest_mac": port.counters.dest_mac.hex(":") if port.counters.dest_mac else "",
                "figures": values("port", role, port),
            }
            for port in engine.monitor.table()
        ],
        "held": [
            {"slice": one.slice_id, "sender": one.sender, "bytes": one.charged}
            for one in sorted(getattr(view, "held", ()), key=lambda one: -one.charged)[:_MOST_HELD]
        ],
    }


def _forked() -> None:
    """Runs in every forked child: the Senders and Receivers are the parent's."""
    global _lock
    _lock = threads.unpatched("threading").RLock()
    _sides.clear()


os.register_at_fork(after_in_child=_forked)
