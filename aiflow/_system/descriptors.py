"""Descriptors that show other processes that this one is alive. A forked child closes its copies at once.

The kernel releases a lock, a socket or an abstract name when its last descriptor is closed. Fork copies every
descriptor, so that a child would hold the name of its dead parent. Close-on-exec helps only if exec follows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from aiflow._system import threads

__all__ = [
    "MORE_DESCRIPTORS",
    "Descriptor",
    "accepted",
    "keep",
    "kept_devices",
    "kept_sockets",
    "out_of_descriptors",
    "own_socket",
    "pause_without_descriptor",
    "sockets_of",
    "unforked",
]

MORE_DESCRIPTORS = "close some files, or raise ulimit -n"
"""Advice for error messages."""

_SO_DOMAIN = 39
_MADV_DONTFORK = 10
_DEVICES = ("/dev/vfio/", "anon_inode:[vfio-device]", "/dev/uio")  # an open group, an open card of vfio, one of uio
_PAUSE = 0.02  # seconds


class _Closable(Protocol):
    def close(self) -> Any: ...


_Kept = TypeVar("_Kept", bound=_Closable)

_kept: weakref.WeakSet[Any] = weakref.WeakSet()
_of_libraries: set[tuple[int, str]] = set()  # (descriptor, what it is): the library that opened one closes it
_making = threads.unpatched("threading").RLock()  # held while a descriptor is opened, and by fork: a child misses none


class Descriptor:
    """A file descriptor that is closed by `close`, or with its last reference; -1 afterwards."""

    fd = -1  # of one whose making was interrupted

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """The descriptor, for calls that take an object."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


def unforked() -> contextlib.AbstractContextManager[Any]:
    """A lock that a fork waits for: what is made within is marked before a child can have it."""
    lock: contextlib.AbstractContextManager[Any] = _making
    return lock


def keep(make: Callable[[], _Kept]) -> _Kept:
    """Return what `make` opens; forked children close it.

    Parameters
    ----------
    make : callable
        Opens a socket or a `Descriptor`; must not block.
    """
    with _making:
        made = make()
        _kept.add(made)
    return made


def own_socket(family: int, kind: int) -> socket.socket:
    """A socket that forked children close, and that does not belong to a greenlet's hub."""
    made: socket.socket = keep(lambda: threads.unpatched("socket").socket(family, kind))
    return made


def out_of_descriptors(exc: OSError) -> bool:
    """Whether the process or the system has no file descriptor left."""
    return exc.errno in (errno.EMFILE, errno.ENFILE)


def pause_without_descriptor(exc: OSError) -> None:
    """Sleep briefly if `accept` failed for want of a descriptor: the socket stays readable, a loop would spin."""
    if out_of_descriptors(exc):
        threads.unpatched("time").sleep(_PAUSE)


def accepted(sock: socket.socket) -> socket.socket:
    """The next connection of a listening socket, non-blocking; forked children close it. Raises OSError."""
    try:
        connection: socket.socket = keep(lambda: sock.accept()[0])
    except OSError as exc:
        pause_without_descriptor(exc)
        raise
    connection.setblocking(False)
    return connection


def sockets_of(family: int) -> set[tuple[int, str]]:
    """The process's sockets of an address family: descriptor, and its name in /proc. Raises OSError."""
    libc, found = ctypes.CDLL(None), set()
    domain, size = ctypes.c_int(), ctypes.c_uint(4)
    for fd in map(int, os.listdir("/proc/self/fd")):
        # not by a socket object: that would set a timeout on descriptors of other code
        if not libc.getsockopt(fd, socket.SOL_SOCKET, _SO_DOMAIN, ctypes.byref(domain), ctypes.byref(size)):
            with contextlib.suppress(OSError):
                found |= {(fd, _name(fd))} if domain.value == family else set()
    return found


def _name(fd: int) -> str:
    """What a descriptor is, as in /proc/self/maps. Raises OSError."""
    return os.readlink(f"/proc/self/fd/{fd}")


def _devices() -> set[tuple[int, str]]:
    """The process's descriptors of vfio and uio. Raises OSError."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            found |= {(fd, name)} if (name := _name(fd)).startswith(_DEVICES) else set()
    return found


@contextlib.contextmanager
def kept_sockets(family: int) -> Iterator[None]:
    """Keep forked children from inheriting sockets of a family that a library opens in this context.

    A mapping keeps a socket open as a descriptor does, and fork copies both. Without /proc, or without a free
    descriptor to list it, children do inherit them; the port is opened all the same.
    """
    with _kept_from_children(lambda: sockets_of(family)):
        yield


@contextlib.contextmanager
def kept_devices() -> Iterator[None]:
    """Keep forked children from inheriting the cards that DPDK opens in this context: see `kept_sockets`.

    A child with a copy would keep the card from every other process.
    """
    with _kept_from_children(_devices):
        yield


@contextlib.contextmanager
def _kept_from_children(found: Callable[[], set[tuple[int, str]]]) -> Iterator[None]:
    before: set[tuple[int, str]] | None = None
    with contextlib.suppress(OSError):
        before = found()
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                _keep_from_children(found() - before)


def _keep_from_children(opened: set[tuple[int, str]]) -> None:
    """Raises OSError if they cannot all be kept."""
    _of_libraries.update(opened)
    for fd, _ in opened:
        os.set_inheritable(fd, False)
    names = {name for _, name in opened}
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
    for fd, name in _of_libraries:
        with contextlib.suppress(OSError):
            if _name(fd) == name:
                os.close(fd)
    _of_libraries.clear()


def _before() -> None:
    _making.acquire()


def _after() -> None:
    _making.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_forked)
