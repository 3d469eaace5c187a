"""af_xdp ports without a user, kept for the next one.

DPDK 22.11 miscounts the references to a umem and never releases one. So the process keeps the queue of a closed port
until it ends, and cannot open the queue again. Such a port is not closed: the next user of its interface takes it over.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from aiflow._ports.netdev import Interface
from aiflow._system import threads
from aiflow.config import Endpoint
from aiflow.errors import ConfigError

__all__ = ["close", "keep_or_close", "opened", "take_over"]


class _Queue(NamedTuple):
    """Queue 0 of an interface: network namespace, name and number of the interface."""

    namespace: int
    name: str
    number: int


_in_use: dict[Any, tuple[_Queue, int]] = {}  # port → its queue, and the largest frame that it takes
_waiting: dict[_Queue, tuple[Any, int]] = {}  # queue → its port, and the same
_lock = threads.unpatched("threading").Lock()


def _forked() -> None:
    """Runs in every forked child: the ports are the parent's."""
    global _lock
    _lock = threads.unpatched("threading").Lock()
    _in_use.clear()
    _waiting.clear()


os.register_at_fork(after_in_child=_forked)


def _queue_of(interface: Interface) -> _Queue:
    return _Queue(os.stat("/proc/thread-self/ns/net").st_ino, interface.name, interface.index)


def opened(port: Any, interface: Interface) -> None:
    """Remember a port that was opened."""
    with _lock:
        _in_use[port] = _queue_of(interface), port.frame_size


def take_over(endpoint: Endpoint, interface: Interface, wanted: int | None) -> Any | None:
    """The port that an earlier user has left on this interface; None if there is none.

    Frames that have arrived since then are still in it. Its mbufs are those of the earlier user.

    Raises
    ------
    ConfigError
        If its frames are smaller than those that are `wanted`.
    """
    with _lock:
        queue = _queue_of(interface)
        port, most = _waiting.get(queue, (None, 0))
        if port is None:
            return None
        if not port.is_open:  # it had to make room for others
            del _waiting[queue]
            return None
        if wanted is not None and wanted > most:
            raise ConfigError(
                f"{endpoint}: frame_size={wanted} is more than the {most} bytes of the port that an earlier user of "
                f"this process opened on {interface.name}, and DPDK cannot open it again: use that size or less, or "
                "another process"
            )
        del _waiting[queue]
        _in_use[port] = queue, most
        port.frame_size = min(wanted or most, most)
        port.resume()
        return port


def close(port: Any) -> None:
    """Close a port of any driver, for good."""
    with _lock:
        _in_use.pop(port, None)
    port.close()


def keep_or_close(port: Any) -> None:
    """Close a port that has no user any more; keep it if it is one of AF_XDP. Idempotent."""
    with _lock:
        queue, most = _in_use.pop(port, (None, 0))
        if queue is None:
            if not any(port is kept for kept, _ in _waiting.values()):
                port.close()
            return
        port.rest()
        _waiting[queue] = port, most
