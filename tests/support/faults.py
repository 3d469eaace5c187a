"""Counters of an open Sender or Receiver that only tests read. No other test code looks at them inside the package."""

from __future__ import annotations

import aiflow
from aiflow._dp_counters import PortCounters

End = aiflow.Sender | aiflow.Receiver


def faults_of(end: End) -> dict[str, int]:
    """Frames that `faults=` has hit at the ports of this end, by kind of fault."""
    return end._agent.loop.fault_counts()


def paths_of(end: End) -> list[PortCounters]:
    """The counters of each attached port of this end."""
    return end._agent.port_counters()


def sessions_of(receiver: aiflow.Receiver) -> int:
    """Sessions that this receiver holds state for."""
    return receiver._agent.nb_sessions
