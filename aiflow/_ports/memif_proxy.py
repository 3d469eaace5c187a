"""A proxy in front of memif's server: every connection that DPDK accepts stays open until DPDK has greeted it.

memif's listener (DPDK 22.11 to 26.07: ``memif_listener_handler``) registers an accepted connection and then greets it.
If the client is gone by then, the handler closes the descriptor and frees an object that the interrupt thread still
watches: the process panics. Therefore clients connect to a socket of ours, in the endpoint's directory. DPDK accepts a
connection from this process, which stays open at least until its greeting has arrived.

The proxy relays messages between the two, with the descriptors of memory and interrupts that they carry: about a dozen
for each port that connects. Frames never pass here.
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

__all__ = ["MemifProxy"]

_MAX_MESSAGE = 4096  # bytes; memif's own messages have 128
_MAX_DESCRIPTORS = 8
_GREETING_TIMEOUT = 1.0  # seconds in which DPDK's interrupt thread accepts a connection

_ungreeted: list[_Relay] = []  # connections of closed proxies that DPDK has not greeted yet


class _Relay:
    """One client's connection (`outer`), and ours to DPDK on its behalf (`inner`)."""

    def __init__(self, outer: socket.socket, inner: socket.socket) -> None:
        self.outer: socket.socket | None = outer
        self.inner: socket.socket | None = inner
        self.greeted = False

    def relay(self, ready: set[int]) -> None:
        """Pass on the messages that have arrived."""
        if self.inner is not None and self.inner.fileno() in ready:
            passed = _pass_on(self.inner, self.outer)
            self.greeted = True  # even if it hung up: DPDK has accepted the connection
            if not passed:
                self.hang_up()
        if self.outer is not None and self.outer.fileno() in ready and not _pass_on(self.outer, self.inner):
            self.hang_up()

    def hang_up(self) -> None:
        """Close both ends; the inner one only once DPDK has greeted it."""
        if self.outer is not None:
            self.outer.close()
            self.outer = None
        if self.greeted and self.inner is not None:
            self.inner.close()
            self.inner = None

    def sockets(self) -> list[socket.socket]:
        """The open sockets; none once the connection is over."""
        return [sock for sock in (self.outer, self.inner) if sock is not None]


def _pass_on(source: socket.socket, target: socket.socket | None) -> bool:
    """Pass on one message; False if either side is gone."""
    descriptors: list[int] = []
    try:
        message, descriptors, _, _ = socket.recv_fds(source, _MAX_MESSAGE, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not message or target is None:
            return False
        return socket.send_fds(target, [message], descriptors, socket.MSG_NOSIGNAL) == len(message)
    except OSError:
        return False  # also for a full queue: memif sends one message at a time and waits
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class MemifProxy:
    """The socket that the clients of one endpoint connect to.

    Parameters
    ----------
    path : Path
        The socket's path.
    allowed : callable
        Whether the peer of a connected socket may connect.

    Attributes
    ----------
    listener : Listener
    server : str
        The socket that DPDK listens on; set it before a client learns the path.
    """

    def __init__(self, path: Path, allowed: Callable[[socket.socket], bool]) -> None:
        self.listener = Listener(path)
        self.server = ""
        self._allowed = allowed
        self._relays: list[_Relay] = []

    @property
    def path(self) -> str:
        """The socket's path, for clients."""
        return str(self.listener.path)

    def sockets(self) -> list[socket.socket]:
        """The sockets to poll."""
        return [self.listener.sock, *(sock for relay in self._relays for sock in relay.sockets())]

    def relay(self, ready: set[int]) -> None:
        """Serve the descriptors that are readable."""
        for relay in self._relays:
            relay.relay(ready)
        self._relays = [relay for relay in self._relays if relay.sockets()]
        if self.listener.fileno() in ready:
            self._accept()

    def _accept(self) -> None:
        with contextlib.ExitStack() as undo:
            try:
                outer = undo.enter_context(self.listener.accept())
                if not self._allowed(outer):
                    return
            except OSError:
                return
            try:
                inner = undo.enter_context(own_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))  # DPDK's backlog is 1
                inner.connect(self.server)
                inner.setblocking(False)
            except OSError as exc:
                pause_without_descriptor(exc)
                return
            undo.pop_all()
        self._relays.append(_Relay(outer, inner))

    def close(self) -> None:
        """Close all connections. Call it after the endpoint's ports are closed."""
        self.listener.close()
        for relay in self._relays:
            relay.hang_up()
        remaining = [relay for relay in (*_ungreeted, *self._relays) if relay.sockets()]
        self._relays.clear()
        deadline = time.monotonic() + _GREETING_TIMEOUT
        while remaining and time.monotonic() < deadline:
            poll = threads.unpatched("select").poll()
            for relay in remaining:
                poll.register(relay.sockets()[0], select.POLLIN)
            ready = {fd for fd, _ in poll.poll(50)}
            for relay in remaining:
                relay.relay(ready)
            remaining = [relay for relay in remaining if relay.sockets()]
        _ungreeted[:] = remaining  # they stay open until DPDK has greeted them: losing them would cost the process
