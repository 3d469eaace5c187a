"""The DPDK ports behind a Sender or Receiver."""

from __future__ import annotations

from typing import Any

import aiflow


def ports_of(side: aiflow.Sender | aiflow.Receiver) -> list[Any]:
    """Those that are up now."""
    return [port for opening in side._engine.ports._openings for port in opening.ports.ports()]
