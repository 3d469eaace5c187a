"""State of open af_packet and af_xdp ports: whether the interface still exists, and whether it has a carrier."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiflow._ports import netdev
from aiflow._ports.netdev import Interface
from aiflow._ports.packet_ring import bound
from aiflow.config import Endpoint
from aiflow.errors import AiflowError, PortError

__all__ = ["OPENED", "WatchedInterface", "spanning_tree_hints", "watching"]

OPENED = "it was opened"
"""Event for `spanning_tree_hints`."""

_CHECK_INTERVAL = 0.5  # seconds between checks of the interfaces
_SPANNING_TREE = 60.0  # seconds: a switch port forwards nothing for about 30 s after link-up, for at most 60 s


@dataclass
class WatchedInterface:
    """An af_packet or af_xdp endpoint. A socket stays bound to the interface it was opened on, even if that goes."""

    endpoint: Endpoint
    interface: Interface
    port: Any = None
    sockets: set[int] = field(default_factory=set)
    up_since: float = field(default_factory=time.monotonic)  # when it was opened, or its link came up
    came_up: bool = False  # the latter
    lost: AiflowError | None = None  # the interface is gone, and the port is closed
    down: PortError | None = None  # a fault that may end without us: it is down, for instance

    how_lost = "the interface was removed (deleted, or moved to another network namespace)"

    def exists(self) -> bool:
        """Whether the interface that the port was opened on still exists."""
        if self.sockets:
            return all(bound(fd) == self.interface.index for fd in self.sockets)
        return netdev.exists(self.interface.index)

    def refresh(self) -> None:
        """Read the interface's state from the kernel."""
        had_carrier = self.interface.carrier and self.down is None
        try:
            self.interface, self.down = netdev.inspect(self.endpoint, is_open=True), None
        except PortError as exc:
            self.down = exc
            return
        if self.interface.carrier and not had_carrier:
            self.up_since, self.came_up = time.monotonic(), True

    @property
    def state(self) -> str:
        """What the port is now, in words."""
        if self.lost is not None:
            return "removed"
        if self.down is not None:
            return "down"
        return "up" if self.interface.carrier else "no carrier"

    def hints(self) -> list[str]:
        """Facts that may keep frames from getting through now."""
        if self.lost is not None or self.down is not None:
            return [str(self.lost or self.down)]
        hints = [f"{self.endpoint}: {note}" for note in self.interface.notes]
        if self.interface.carrier:
            event = "its link came up" if self.came_up else OPENED
            hints += spanning_tree_hints(str(self.endpoint), self.up_since, event)
        return hints


def spanning_tree_hints(port: str, since: float, event: str) -> list[str]:
    """A hint if `event` was so recent that a switch port may not forward yet."""
    seconds = time.monotonic() - since
    if seconds > _SPANNING_TREE:
        return []
    return [
        f"{port}: {event} {seconds:.0f} s ago; a switch port with spanning tree forwards nothing for 30 s after "
        "link-up (wait, or pass peer_timeout=60)"
    ]


class _Watcher(Protocol):
    def check_interfaces(self) -> None: ...


def watching(watcher: weakref.ref[Any], end: Any) -> Callable[[], None]:
    """The body of the watching thread, until the event `end`; it keeps no reference to the watcher between checks."""

    def watch() -> None:
        while not end.wait(_CHECK_INTERVAL):
            alive: _Watcher | None = watcher()
            if alive is None:
                return
            alive.check_interfaces()
            del alive

    return watch
