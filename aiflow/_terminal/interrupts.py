"""Ctrl-C and a closing terminal: for commands that start processes of their own, and within destructors."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN = signal.SIGRTMAX  # no library uses it; SIGINT may be ignored, and an alarm may be a test's
_AGAIN_SECONDS = 0.01


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


@contextlib.contextmanager
def interrupts_repeated() -> Iterator[None]:
    """Raise an interrupt of the body again if a destructor has swallowed it. For the main thread.

    Python cannot raise an exception of ``__del__``. It prints a traceback and goes on: the command would not end.
    """
    before, handler = sys.unraisablehook, signal.getsignal(_AGAIN)
    timers: list[threading.Timer] = []
    is_lost = False

    def repeat(lost: UnraisableHookArgs) -> None:
        nonlocal is_lost
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        # a moment later: nothing can be raised from here, either
        timers.append(threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.get_ident(), _AGAIN)))
        try:
            timers[-1].start()
        except (RuntimeError, MemoryError, KeyboardInterrupt):  # no thread can be started, or another interrupt
            is_lost = True

    signal.signal(_AGAIN, signal.default_int_handler)
    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()
            with contextlib.suppress(RuntimeError):  # it was not started
                timer.join()
        signal.signal(_AGAIN, handler)
    if is_lost:
        raise KeyboardInterrupt
