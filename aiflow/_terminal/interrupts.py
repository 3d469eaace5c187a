"""Ctrl-C and a closing terminal, for commands that start processes of their own."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Start processes in the body that never receive SIGINT or SIGHUP, from their first instruction on.

    The terminal sends these signals to all processes of a command. Only the first process should act on them and end
    the others by SIGTERM; otherwise each process prints a traceback. A new process inherits the signal mask. A signal
    that arrives during the body is delivered to this process at the end of the body.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
