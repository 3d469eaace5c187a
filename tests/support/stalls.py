"""How long a busy machine kept this process from running: a deadline of a test excludes that time."""

from __future__ import annotations

import threading
import time
from types import TracebackType

PERIOD_S = 0.005


class Stalls:
    """Time for which this process was ready and did not run, from `__enter__` on.

    A thread asks to be woken every few milliseconds. Its total lateness is about the time that other programs, the
    hypervisor and the interpreter's lock took from each thread of this process.
    """

    def __init__(self) -> None:
        self._late = 0.0
        self._asleep_since = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._asleep_since = time.monotonic()
            self._stop.wait(PERIOD_S)
            self._late += max(0.0, time.monotonic() - self._asleep_since - PERIOD_S)

    @property
    def allowance(self) -> float:
        """Seconds by which a deadline may be missed: twice the lateness, since busy threads lose more time."""
        return 2 * (self._late + max(0.0, time.monotonic() - self._asleep_since - PERIOD_S))

    def __enter__(self) -> Stalls:
        self._asleep_since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._asleep_since = time.monotonic() + 1e9  # what is counted is counted
