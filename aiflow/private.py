"""Descriptors by which others know that this process lives. A forked child closes its copies at once.

A lock, a socket or an abstract name is given up when its last descriptor is closed, and fork copies every descriptor: a
child would hold the name of its dead parent. Close-on-exec helps only where exec follows.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

__all__ = ["Descriptor", "keep"]


class _Closable(Protocol):
    def close(self) -> Any: ...


_Kept = TypeVar("_Kept", bound=_Closable)

_kept: weakref.WeakSet[Any] = weakref.WeakSet()
_making = threading.RLock()  # held while one is made, and by a fork: a child misses none


class Descriptor:
    """A file descriptor that is closed by `close`, or with its last reference; -1 from then on."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """The descriptor itself, for calls that take an object."""
        return self.fd

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


def keep(make: Callable[[], _Kept]) -> _Kept:
    """Return what `make` opens; forked children will close it.

    Parameters
    ----------
    make : callable
        Opens a socket or a `Descriptor`, without waiting.
    """
    with _making:
        made = make()
        _kept.add(made)
    return made


def _forked() -> None:
    """Runs in every forked child."""
    global _making
    _making = threading.RLock()
    for opened in list(_kept):
        with contextlib.suppress(OSError):
            opened.close()
    _kept.clear()


def _before() -> None:
    _making.acquire()


def _after() -> None:
    _making.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_forked)
