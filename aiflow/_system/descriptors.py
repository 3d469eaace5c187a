"""Descriptors by which others know that this process lives. A forked child closes its copies at once.

A lock, a socket or an abstract name is given up when its last descriptor is closed, and fork copies every descriptor: a
child would hold the name of its dead parent. Close-on-exec helps only where exec follows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from aiflow._system import threads

__all__ = ["Descriptor", "keep", "kept_sockets", "own_socket"]

_SO_DOMAIN = 39
_MADV_DONTFORK = 10


class _Closable(Protocol):
    def close(self) -> Any: ...


_Kept = TypeVar("_Kept", bound=_Closable)

_kept: weakref.WeakSet[Any] = weakref.WeakSet()
_of_libraries: set[tuple[int, int]] = set()  # (descriptor, inode): who opened one closes it in this process
_making = threads.unpatched("threading").RLock()  # held while one is made, and by a fork: a child misses none


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


def own_socket(family: int, kind: int) -> socket.socket:
    """A socket that no forked child keeps, and that blocks no greenlets."""
    made: socket.socket = keep(lambda: threads.unpatched("socket").socket(family, kind))
    return made


def _sockets(family: int) -> set[tuple[int, int]]:
    """Descriptor and inode of the process's sockets of an address family."""
    libc, found = ctypes.CDLL(None), set()
    domain, size = ctypes.c_int(), ctypes.c_uint(4)
    for fd in map(int, os.listdir("/proc/self/fd")):
        # no socket object: it would set a time-out on what is not ours
        if not libc.getsockopt(fd, socket.SOL_SOCKET, _SO_DOMAIN, ctypes.byref(domain), ctypes.byref(size)):
            with contextlib.suppress(OSError):
                found |= {(fd, os.fstat(fd).st_ino)} if domain.value == family else set()
    return found


@contextlib.contextmanager
def kept_sockets(family: int) -> Iterator[None]:
    """Let no child have the sockets of a family that a library opens meanwhile, nor what is mapped of them.

    A mapping keeps a socket open as a descriptor does, and fork copies both. Without /proc, or a descriptor to list it
    with, children have them: no port fails for that.
    """
    before: set[tuple[int, int]] | None = None
    with contextlib.suppress(OSError):
        before = _sockets(family)
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                _keep_from_children(_sockets(family) - before)


def _keep_from_children(sockets: set[tuple[int, int]]) -> None:
    """Raises OSError if they cannot all be kept."""
    _of_libraries.update(sockets)
    for fd, _ in sockets:
        os.set_inheritable(fd, False)
    names = {f"socket:[{inode}]" for _, inode in sockets}
    madvise = ctypes.CDLL(None).madvise
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            if fields[-1] in names:
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTFORK)


def _forked() -> None:
    """Runs in every forked child."""
    global _making
    _making = threads.unpatched("threading").RLock()
    for opened in list(_kept):
        with contextlib.suppress(OSError):
            opened.close()
    _kept.clear()
    for fd, inode in _of_libraries:
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == inode:
                os.close(fd)
    _of_libraries.clear()


def _before() -> None:
    _making.acquire()


def _after() -> None:
    _making.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_forked)
