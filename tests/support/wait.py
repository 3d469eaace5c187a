"""Waiting for a condition until a deadline: no test sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 60.0
"""For a condition that has no promised time, on a machine that may be busy."""
POLL_S = 0.005

T = TypeVar("T")


class Deadline:
    """A point in time; for loops that do some work between two looks at their condition."""

    def __init__(self, seconds: float = PATIENCE_S) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        return time.monotonic() > self._end

    def check(self, why: object = "the condition does not hold") -> None:
        """Fail if the deadline has passed; `why` is part of the error."""
        assert not self.passed, f"waited {self.seconds} s: {why}"


def settle(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Poll `condition` until it holds; did it, within `seconds`?"""
    deadline = Deadline(seconds)
    while not condition():
        if deadline.passed:
            return False
        time.sleep(POLL_S)
    return True


def wait_for(condition: Callable[[], T], what: object = "a condition", seconds: float = PATIENCE_S) -> T:
    """Poll `condition` until it holds, and return its value; fail after `seconds`."""
    deadline = Deadline(seconds)
    while not (found := condition()):
        deadline.check(what)
        time.sleep(POLL_S)
    return found


def has_stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more: SIGSTOP takes a moment."""
    return all(
        path.read_text().rpartition(")")[2].split()[0] == "T" for path in Path(f"/proc/{pid}/task").glob("*/stat")
    )
