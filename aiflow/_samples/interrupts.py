"""Processes that a command starts for itself, Ctrl-C, and a terminal that closes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start processes in the body, and they never hear SIGINT or SIGHUP, from their first instruction on.

    The terminal sends these to all processes of a command. Only the first should act on them, and end the others by
    SIGTERM; else each of them prints a traceback. The signal mask is what a new process inherits. A signal that comes
    during the body is heard by us at its end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
