"""Move a thread, or a new process, into a network namespace."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["die_with_parent", "enter", "enter_new", "entered"]

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(path: Path | str) -> None:
    with open(path) as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def enter(path: Path | str) -> None:
    """Move the calling thread, and the threads and processes that it starts later, into a namespace."""
    _setns(path)


def enter_new() -> None:
    """Move the calling thread, as `enter`, into a new namespace. It has no name, and ends with its last process."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def entered(path: Path | str) -> Iterator[None]:
    """Move the calling thread into a namespace for the body. Threads and processes started there stay in it."""
    with open("/proc/thread-self/ns/net") as home:
        _setns(path)
        try:
            yield
        finally:
            _setns(f"/proc/self/fd/{home.fileno()}")


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends, even by ``kill -9``."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
