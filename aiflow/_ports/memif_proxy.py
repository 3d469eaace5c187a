"""The door in front of memif's server: no connection that reaches DPDK is dead before DPDK has answered it.

memif's listener (DPDK 22.11 to 26.07: ``memif_listener_handler``) registers an accepted connection and then greets it.
When its client is gone by then, it closes the descriptor and frees what the interrupt thread still watches: the process
panics. So clients come to a socket of ours, in the endpoint's directory. The connection that DPDK accepts is made from
this process and stays open at least until its greeting is here; messages, with the descriptors of memory and
interrupts that travel in them, are passed on between the two as they come: about a dozen for each port that connects.
Frames never pass here.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from aiflow._ports.listener import Listener
from aiflow._system import threads
from aiflow._system.descriptors import own_socket, pause_without_descriptor

__all__ = ["Door"]

_MAX_MESSAGE = 4096  # bytes; memif's own have 128
_MAX_DESCRIPTORS = 8
_ANSWERED = 1.0  # seconds within which DPDK's interrupt thread takes a connection

_unanswered: list[_Passage] = []  # left by doors that were closed meanwhile


class _Passage:
    """One client's connection (`outer`), and ours to DPDK on its behalf (`inner`)."""

    def __init__(self, outer: socket.socket, inner: socket.socket) -> None:
        self.outer: socket.socket | None = outer
        self.inner: socket.socket | None = inner
        self.answered = False

    def turn(self, ready: set[int]) -> None:
        """Pass on what has come."""
        if self.inner is not None and self.inner.fileno() in ready:
            passed = _pass_on(self.inner, self.outer)
            self.answered = True  # even if it hung up: it has accepted us
            if not passed:
                self.hang_up()
        if self.outer is not None and self.outer.fileno() in ready and not _pass_on(self.outer, self.inner):
            self.hang_up()

    def hang_up(self) -> None:
        """Close both ends; ours at DPDK only once it has answered."""
        if self.outer is not None:
            self.outer.close()
            self.outer = None
        if self.answered and self.inner is not None:
            self.inner.close()
            self.inner = None

    def sockets(self) -> list[socket.socket]:
        """What is open: nothing, once it is over."""
        return [sock for sock in (self.outer, self.inner) if sock is not None]


def _pass_on(source: socket.socket, target: socket.socket | None) -> bool:
    """One message; False when either side is gone."""
    descriptors: list[int] = []
    try:
        message, descriptors, _, _ = socket.recv_fds(source, _MAX_MESSAGE, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not message or target is None:
            return False
        return socket.send_fds(target, [message], descriptors, socket.MSG_NOSIGNAL) == len(message)
    except OSError:
        return False  # also for a full queue: memif sends a message at a time and waits
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class Door:
    """Where clients of one endpoint come to.

    Parameters
    ----------
    path : Path
        The socket that clients are told.
    allowed : callable
        Whether the peer of a connected socket may come in.

    Attributes
    ----------
    listener : Listener
    server : str
        The socket that DPDK listens on; set before a client is told the path.
    """

    def __init__(self, path: Path, allowed: Callable[[socket.socket], bool]) -> None:
        self.listener = Listener(path)
        self.server = ""
        self._allowed = allowed
        self._passages: list[_Passage] = []

    @property
    def path(self) -> str:
        """The socket that clients are told."""
        return str(self.listener.path)

    def sockets(self) -> list[socket.socket]:
        """What to wait for."""
        return [self.listener.sock, *(sock for passage in self._passages for sock in passage.sockets())]

    def turn(self, ready: set[int]) -> None:
        """Do what there is to do on the descriptors that are readable."""
        for passage in self._passages:
            passage.turn(ready)
        self._passages = [passage for passage in self._passages if passage.sockets()]
        if self.listener.fileno() in ready:
            self._accept()

    def _accept(self) -> None:
        with contextlib.ExitStack() as undo:
            try:
                outer = undo.enter_context(self.listener.accept())
                if not self._allowed(outer):
                    return
                inner = undo.enter_context(own_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))  # DPDK's backlog is 1
                inner.connect(self.server)
                inner.setblocking(False)
            except OSError as exc:
                pause_without_descriptor(exc)
                return
            undo.pop_all()
        self._passages.append(_Passage(outer, inner))

    def close(self) -> None:
        """Hang up everywhere. Call it once the endpoint's ports are closed."""
        self.listener.close()
        for passage in self._passages:
            passage.hang_up()
        left = [passage for passage in (*_unanswered, *self._passages) if passage.sockets()]
        self._passages.clear()
        deadline = time.monotonic() + _ANSWERED
        while left and time.monotonic() < deadline:
            poll = threads.unpatched("select").poll()
            for passage in left:
                poll.register(passage.sockets()[0], select.POLLIN)
            ready = {fd for fd, _ in poll.poll(50)}
            for passage in left:
                passage.turn(ready)
            left = [passage for passage in left if passage.sockets()]
        _unanswered[:] = left  # a connection may be lost, a process not: they stay open until DPDK has answered
