"""Kernel threads, and the modules they wait with, even if gevent or eventlet has patched Python's.

A loop in C never yields to other greenlets. So it always runs in a thread that the kernel schedules. Objects that such
threads share (locks, sockets, polls) must not belong to a greenlet's hub.
"""

from __future__ import annotations

import _imp
import _thread
import contextlib
import importlib.machinery
import importlib.util
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

from aiflow.errors import EalError

__all__ = ["Flag", "Thread", "is_current", "start", "unpatched"]

NO_THREAD = (
    "no thread can be started ({}): raise the limit of processes (ulimit -u, pids.max of the container) or of the "
    "address space (ulimit -v), or pass a smaller memory=; then try again"
)

# name → the module, another module to copy before it, and whether it is unpatched
_MODULES: dict[str, tuple[Any, str, Callable[[], bool]]] = {
    "threading": (threading, "_thread", lambda: isinstance(_thread.start_new_thread, BuiltinFunctionType)),
    "select": (select, "", lambda: isinstance(getattr(select, "poll", None), BuiltinFunctionType)),
    "socket": (socket, "", lambda: socket.socket.__module__ == "socket"),
    "time": (time, "", lambda: isinstance(time.sleep, BuiltinFunctionType)),
}
_copies: dict[str, Any] = {}


def unpatched(name: str) -> Any:
    """Python's own module, or a fresh copy of it if another library has patched it.

    Parameters
    ----------
    name : {"threading", "select", "socket", "time"}

    Raises
    ------
    EalError
        If it is patched and no copy of it can be made.
    """
    module, below, is_python_s = _MODULES[name]
    if is_python_s():
        return module
    if name not in _copies:
        _copies.setdefault(name, _copy(name, below))
    return _copies[name]


def _copy(name: str, below: str) -> Any:
    names = [below, name] if below else [name]
    # Two threads could mistake each other's copy for the patched module. Python's own locks may be patched, too.
    _imp.acquire_lock()
    try:
        patched = {name: sys.modules[name] for name in names}
        try:
            for each in names:
                _load(each)
            return sys.modules[name]
        finally:
            sys.modules.update(patched)
    finally:
        _imp.release_lock()


def _load(name: str) -> None:
    """Put a new copy of a module into sys.modules, where it may look for itself, and the next copy imports it."""
    spec = importlib.machinery.BuiltinImporter.find_spec(name) or importlib.machinery.PathFinder.find_spec(name)
    if spec is None or spec.loader is None:
        raise EalError(
            f"the module {name} is patched (gevent, eventlet), and Python's own cannot be found: leave it unpatched, "
            "as monkey.patch_all(thread=False, select=False, socket=False, time=False) does"
        )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


class Thread:
    """A daemon thread that the kernel schedules; see `start`.

    Python 3.11 and 3.12 mistake an interrupted join for the thread's end. The join of this class can be repeated.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        self._target: Callable[[], object] | None = target
        self._pid = os.getpid()
        self._over = False
        self._thread: threading.Thread = unpatched("threading").Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        target, self._target = self._target, None
        try:
            assert target is not None
            target()
        finally:
            del target  # release what it refers to before a waiting thread goes on
            self._over = True

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system denies it."""
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Python's identifier; None until the thread runs."""
        return self._thread.ident

    @property
    def native_id(self) -> int | None:
        """The kernel's thread id."""
        return self._thread.native_id

    def is_alive(self) -> bool:
        """Whether the thread runs in this process; false in a forked child."""
        if sys.is_finalizing():  # daemon threads do not run then
            return False
        return self._thread.ident is not None and not self._over and os.getpid() == self._pid

    def join(self) -> None:
        """Wait for the thread's end; return at once while the interpreter ends, when daemon threads do not run."""
        if sys.is_finalizing():  # Python 3.13 would wait forever
            return
        self._thread.join()
        while self.is_alive():
            unpatched("time").sleep(0.0005)


class Flag:
    """Set once, to tell another thread to end. An interrupt of `set` leaves no lock held, unlike that of an Event."""

    def __init__(self) -> None:
        self._unset = unpatched("threading").Lock()
        self._unset.acquire()

    def set(self) -> None:
        """Idempotent."""
        with contextlib.suppress(RuntimeError):  # it is set
            self._unset.release()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait for `set`, so long at most; True if it was called."""
        if not self._unset.acquire(timeout=seconds):
            return False
        self.set()
        return True


def start(target: Callable[[], object], name: str) -> Thread:
    """Run `target` in a daemon thread that the kernel schedules.

    Raises
    ------
    EalError
        If the system denies it. The caller may try again.
    """
    thread = Thread(target, name)
    try:
        thread.start()
    except RuntimeError as exc:
        raise EalError(NO_THREAD.format(exc)) from exc
    return thread


def is_current(thread: Thread) -> bool:
    """Whether `thread` is the calling thread."""
    return bool(thread.native_id == unpatched("threading").get_native_id())
