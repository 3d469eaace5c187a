"""State of open pci: ports: whether the kernel wants the card back, and whether it has a link."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from aiflow._ports.interface_watch import OPENED, spanning_tree_hints
from aiflow.config import Endpoint
from aiflow.errors import AiflowError

__all__ = ["WatchedCard"]


@dataclass
class WatchedCard:
    """A pci: endpoint. Its driver has the link, and the kernel says when the card is pulled or unbound."""

    endpoint: Endpoint
    port: Any = None
    link: bool = True  # as last seen
    up_since: float = field(default_factory=time.monotonic)  # when it was opened, or its link came up
    came_up: bool = False  # the latter
    lost: AiflowError | None = None  # the card is gone, and the port is closed

    how_lost = "the card was removed (pulled, or taken from its driver)"

    def exists(self) -> bool:
        """Whether the process may keep the card."""
        return not self.port.is_wanted_back

    def refresh(self) -> None:
        """Ask the driver for the link. Raises AiflowError if the port is being closed."""
        port = self.port  # the watching thread may remove it meanwhile
        if port is None:
            return
        had_link, self.link = self.link, port.link()[0]
        if self.link and not had_link:
            self.up_since, self.came_up = time.monotonic(), True

    @property
    def state(self) -> str:
        """What the port is now, in words."""
        if self.lost is not None:
            return "removed"
        return "up" if self.link else "no carrier"

    def hints(self) -> list[str]:
        """Facts that may keep frames from getting through now."""
        if self.lost is not None:
            return [str(self.lost)]
        if not self.link:
            return [f"{self.endpoint}: no link: it is not plugged in, or its other end is down"]
        return spanning_tree_hints(str(self.endpoint), self.up_since, "its link came up" if self.came_up else OPENED)
