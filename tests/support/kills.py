"""Kill a process in the middle of a slice, at a chosen fraction of it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from wait import Deadline


def kill_at(fraction: float, progress: Any, pid: int, size: int) -> tuple[int, int]:
    """Kill `pid` once `fraction` of a slice of `size` bytes has passed, and the slice is not over.

    On a busy core the rest of the slice may pass between the look and the signal. That kill came too late: the caller
    sees the whole slice and kills another sender.
    """
    deadline = Deadline()
    while True:
        done, total = progress()
        if total == size and max(fraction * total, total / 64) < done < 0.9 * total:  # more than its manifest
            os.kill(pid, signal.SIGKILL)
            return done, total
        deadline.check(f"the slice was not met at {fraction}: {done} of {total} bytes")
        time.sleep(0)


MOST_LATE = 4
"""Kills that may come too late for each that does not: on a busy core the killer also waits for its turn."""


def fraction_of(turn: int) -> float:
    return (0.0, 0.15, 0.3, 0.45, 0.6)[turn % 5]
