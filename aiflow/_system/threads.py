"""Threads of the system, and what they wait with, also where gevent or eventlet have put theirs in place of Python's.

A loop in C never gives a greenlet's turn back. So its thread is always one that the kernel schedules, and what two such
threads share (locks, sockets, polls) must not belong to a greenlet's hub.
"""

from __future__ import annotations

import _imp
import _thread
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

__all__ = ["Thread", "is_current", "start", "unpatched"]

NO_THREAD = (
    "no thread to be had ({}): raise the limit of processes (ulimit -u, pids.max of the container) or of the address "
    "space (ulimit -v), or pass a smaller memory=; then try again"
)

# module: it, what of it must be a copy first, and whether it is as Python made it
_MODULES: dict[str, tuple[Any, str, Callable[[], bool]]] = {
    "threading": (threading, "_thread", lambda: isinstance(_thread.start_new_thread, BuiltinFunctionType)),
    "select": (select, "", lambda: isinstance(getattr(select, "poll", None), BuiltinFunctionType)),
    "socket": (socket, "", lambda: socket.socket.__module__ == "socket"),
    "time": (time, "", lambda: isinstance(time.sleep, BuiltinFunctionType)),
}
_copies: dict[str, Any] = {}


def unpatched(name: str) -> Any:
    """A module as Python made it: such as ``threading``, or a copy while another library patches it.

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
    _imp.acquire_lock()  # two threads would take each other's copy for the patched one; Python's locks may be patched
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
    """Put a new copy of a module in its place: it may look for itself there, and the next one imports it."""
    spec = importlib.machinery.BuiltinImporter.find_spec(name) or importlib.machinery.PathFinder.find_spec(name)
    if spec is None or spec.loader is None:
        raise EalError(
            f"the module {name} is patched (gevent, eventlet), and Python's own cannot be found: leave it as it is, as "
            "monkey.patch_all(thread=False, select=False, socket=False, time=False) does"
        )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


class Thread:
    """A daemon thread of the system's; `start` makes one.

    Python 3.11 and 3.12 take a join that was interrupted for the thread's end. This one may be repeated.
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
            del target  # whoever waits for us may want what it holds to be gone
            self._over = True

    def start(self) -> None:
        """Raises RuntimeError if there is none to be had."""
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """None until it runs."""
        return self._thread.ident

    @property
    def native_id(self) -> int | None:
        """The kernel's number of it."""
        return self._thread.native_id

    def is_alive(self) -> bool:
        """Whether it runs, in this process and not the one that forked it."""
        if sys.is_finalizing():  # daemon threads stand still then
            return False
        return self._thread.ident is not None and not self._over and os.getpid() == self._pid

    def join(self) -> None:
        """Wait for its end. While the interpreter ends there is none: daemon threads stand still."""
        if sys.is_finalizing():  # Python 3.13 would wait for ever
            return
        self._thread.join()
        while self.is_alive():
            unpatched("time").sleep(0.0005)


def start(target: Callable[[], object], name: str) -> Thread:
    """Run `target` in a daemon thread of the system's.

    Raises
    ------
    EalError
        If there is none to be had. It may be tried again.
    """
    thread = Thread(target, name)
    try:
        thread.start()
    except RuntimeError as exc:
        raise EalError(NO_THREAD.format(exc)) from exc
    return thread


def is_current(thread: Thread) -> bool:
    """Whether the calling thread is this one."""
    return bool(thread.native_id == unpatched("threading").get_native_id())
